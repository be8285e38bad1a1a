// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	core "k8s.io/api/core/v1"

	"kmesh/bpf"
	"kmesh/netns"
	"kmesh/test/node"
)

// inKernel is what the kernel has on a pod, found without Kmesh's pins: by the pod's cgroup, and by its interface in
// the network namespace of its processes.
type inKernel struct {
	cgroup  uint64            // inode
	ifindex uint32            // of eth0, in the pod
	at      map[string]uint32 // hook -> id of the program there; cgroup hooks and interface hooks
}

// kernel looks. More than one program at one of our hooks is an error: nobody else attaches any on this node.
func (b *bed) kernel(p *core.Pod) (inKernel, error) {
	k := inKernel{at: map[string]uint32{}}
	dir := b.cgroup(p)
	info, err := os.Stat(dir)
	if err != nil {
		return k, err
	}
	k.cgroup = info.Sys().(*syscall.Stat_t).Ino
	f, err := os.Open(dir)
	if err != nil {
		return k, err
	}
	defer f.Close()
	for _, h := range bpf.CgroupHooks {
		if err := k.query(h, int(f.Fd())); err != nil {
			return k, err
		}
	}
	pid, err := processIn(dir)
	if err != nil {
		return k, err
	}
	err = netns.Do(fmt.Sprintf("/proc/%d/ns/net", pid), func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		k.ifindex = uint32(l.Attrs().Index)
		for _, h := range bpf.TCHooks {
			if err := k.query(h, l.Attrs().Index); err != nil {
				return err
			}
		}
		return nil
	})
	return k, err
}

func (k *inKernel) query(h bpf.Hook, target int) error {
	res, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: h.Attach})
	if err != nil {
		return fmt.Errorf("asking for the programs at %s: %w", h.Name, err)
	}
	switch len(res.Programs) {
	case 0:
	case 1:
		k.at[h.Name] = uint32(res.Programs[0].ID)
	default:
		return fmt.Errorf("%d programs at %s, want one at most", len(res.Programs), h.Name)
	}
	return nil
}

// processIn is a process of a pod, as seen from outside.
func processIn(cgroup string) (int, error) {
	files, err := filepath.Glob(filepath.Join(cgroup, "*", "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		if fields := strings.Fields(string(b)); len(fields) > 0 {
			return strconv.Atoi(fields[0])
		}
	}
	return 0, fmt.Errorf("no process in a container's cgroup below %s", cgroup)
}

// governed says what is not as it should be on a pod that opted in: one program at each hook, each by a link that Kmesh
// pinned, and each link on this pod's cgroup inode or interface.
func (b *bed) governed(p *core.Pod) error {
	k, err := b.kernel(p)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.Name, err)
	}
	pod, err := b.attachment(p)
	if err != nil {
		return err
	}
	if pod == nil {
		return fmt.Errorf("pod %s is not enrolled; the kernel has %v", p.Name, k.at)
	}
	var errs []error
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("pod %s: "+format, append([]any{p.Name}, args...)...))
	}
	if !pod.Live() || !pod.Owner || pod.Cgroup != k.cgroup {
		fault("enrolled as %+v, want it live, owner, and on cgroup %d", *pod, k.cgroup)
	}
	linked := map[string]uint32{}
	for _, l := range pod.Links {
		if _, twice := linked[l.Hook]; twice {
			fault("two links at %s", l.Hook)
		}
		linked[l.Hook] = l.ProgramID
		onCgroup := slices.ContainsFunc(bpf.CgroupHooks, func(h bpf.Hook) bool { return h.Name == l.Hook })
		switch {
		case !l.Live:
			fault("link at %s is severed", l.Hook)
		case onCgroup && l.CgroupID != k.cgroup:
			fault("link at %s is on cgroup %d, not %d", l.Hook, l.CgroupID, k.cgroup)
		case !onCgroup && l.Ifindex != k.ifindex:
			fault("link at %s is on interface %d, not %d", l.Hook, l.Ifindex, k.ifindex)
		}
	}
	if !maps.Equal(linked, k.at) {
		fault("pinned links have programs %v, the kernel has %v", linked, k.at)
	}
	if want := len(bpf.CgroupHooks) + len(bpf.TCHooks); len(k.at) != want {
		fault("programs at %d hooks, want %d: %v", len(k.at), want, k.at)
	}
	return errors.Join(errs...)
}

// untouched says what there is of ours on a pod that did not opt in.
func (b *bed) untouched(p *core.Pod) error {
	k, err := b.kernel(p)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.Name, err)
	}
	if len(k.at) > 0 {
		return fmt.Errorf("pod %s did not opt in and has programs: %v", p.Name, k.at)
	}
	pod, err := b.attachment(p)
	if err == nil && pod != nil {
		err = fmt.Errorf("pod %s did not opt in and is enrolled as %+v", p.Name, *pod)
	}
	return err
}

// attachment is what is pinned for a pod; nil when there is nothing. A sandbox that was replaced may still have pins:
// the one that owns the links counts.
func (b *bed) attachment(p *core.Pod) (*netns.Pod, error) {
	pods, err := netns.New(netns.Options{BPFFS: b.n.BPFFS, RunDir: b.n.RunDir}).List(b.ctx)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].UID == string(p.UID) && (pods[i].Owner || len(pods) == 1) {
			return &pods[i], nil
		}
	}
	return nil, nil
}

// gone says what is left of pods that were deleted: pins, records, addresses, what libcni remembers.
func (b *bed) gone() error {
	var left []string
	for _, pattern := range []string{
		filepath.Join(b.n.BPFFS, "pods", "*"), filepath.Join(b.n.BPFFS, "cgroups", "*"),
		filepath.Join(b.n.RunDir, "pods", "*"),
		b.n.Disk("var/lib/cni/results/*"), b.n.Disk("var/lib/cni/networks/*/[0-9]*"),
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		left = append(left, files...)
	}
	if len(left) > 0 {
		return fmt.Errorf("left of deleted pods: %q", left)
	}
	return nil
}

// programsOn counts the programs at our hooks of a pod's cgroup, for a pod whose processes are not asked for.
func (b *bed) programsOn(p *core.Pod) int {
	b.Helper()
	at, err := node.Attached(b.cgroup(p))
	if err != nil {
		b.Fatal(err)
	}
	return len(at)
}
