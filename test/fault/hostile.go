// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/netns/failpoint"
	"kmesh/test/node"
)

// deed is one thing that a hostile process tries, and what came of it: "" when it was done.
type deed struct{ Name, Err string }

// roles of this program inside a pod.
const (
	roleEnv    = "KMESH_FAULT_ROLE"
	roleRemove = "remove" // everything of TC that NET_ADMIN can
	roleReach  = "reach"  // for what is not its own: the socket and the cgroup, whose paths are the arguments

	roleRewrite = "rewrite" // no pod's: writes a file again and again
)

func play(role string) int {
	var deeds []deed
	do := func(name string, err error) {
		d := deed{Name: name}
		if err != nil {
			d.Err = err.Error()
		}
		deeds = append(deeds, d)
	}
	switch role {
	case roleRewrite:
		if err := rewrite(os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "fault:", err)
			return 1
		}
		return 0
	case roleRemove:
		removeTC(do)
	case roleReach:
		c, err := net.Dial("unix", os.Args[1])
		if err == nil {
			// It is let in, or closed: only an answer tells.
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		do("socket", err)
		do("cgroup", os.WriteFile(filepath.Join(os.Args[2], "cgroup.procs"), []byte("0"), 0))
	default:
		fmt.Fprintln(os.Stderr, "fault: no such role:", role)
		return 2
	}
	if err := json.NewEncoder(os.Stdout).Encode(deeds); err != nil {
		return 1
	}
	return 0
}

// rewrite puts what is on standard input into a file every 50 ms, by a rename, until the time is over.
func rewrite(path, limit string) error {
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	during, err := time.ParseDuration(limit)
	if err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(during); ; {
		select {
		case <-end:
			return nil
		case <-tick.C:
			tmp := filepath.Join(filepath.Dir(path), ".other-writer")
			if err := errors.Join(os.WriteFile(tmp, content, 0o644), os.Rename(tmp, path)); err != nil {
				return err
			}
		}
	}
}

// removeTC tries to take the programs off the pod's interface.
func removeTC(do func(string, error)) {
	i, err := netlink.LinkByName(node.IfName)
	if err != nil {
		do("find the interface", err)
		return
	}
	index := i.Attrs().Index
	for name, at := range map[string]ebpf.AttachType{"detach ingress": ebpf.AttachTCXIngress, "detach egress": ebpf.AttachTCXEgress} {
		res, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
		if err == nil && len(res.Programs) == 0 {
			err = errors.New("there is none")
		}
		var p *ebpf.Program
		if err == nil {
			p, err = ebpf.NewProgramFromID(res.Programs[0].ID)
		}
		if err == nil {
			err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Attach: at, Program: p})
		}
		do(name, err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(i, parent)
		if err == nil && len(filters) == 0 {
			err = errors.New("there is none")
		}
		for _, f := range filters {
			err = errors.Join(err, netlink.FilterDel(f))
		}
		do("remove filters", err)
	}
	do("remove the qdisc", netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
}

// hostileIn runs a role in a pod, as root or as nobody, with NET_ADMIN and no other capability.
func (b *bed) hostileIn(p *node.Pod, role string, uid uint32, args ...string) map[string]string {
	cmd := exec.CommandContext(b.t.ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "hostile"
	cmd.Args = append([]string{"hostile"}, args...)
	cmd.Env = []string{roleEnv + "=" + role}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	proc, err := p.StartCmd(cmd)
	b.t.must(err)
	if err := proc.Wait(); err != nil {
		b.t.must(fmt.Errorf("%s: %w: %s", role, err, errs.Bytes()))
	}
	var deeds []deed
	b.t.must(json.Unmarshal(out.Bytes(), &deeds))
	came := map[string]string{}
	for _, d := range deeds {
		came[d.Name] = d.Err
	}
	return came
}

const nobody = 65534

// hostile: a pod that wants to be rid of us.
func hostile(t *trial) {
	b, _ := t.live(node.Options{})
	start := b.holdings()
	for range t.of(5, 1) {
		for range versions {
			p, err := b.optedIn()
			t.must(err)
			came := b.hostileIn(p, roleRemove, nobody)
			if err := b.governed(p); err != nil || came["detach ingress"] == "" || came["detach egress"] == "" {
				t.claim("NET_ADMIN cannot remove TCX links", false, "%v: %v", came, err)
			}
			// Its own annotation is read when it is made, and at no other time.
			err = b.Del(t.ctx, p.Sandbox, func(rt *libcni.RuntimeConf) {
				rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = map[string]string{node.EnrollAnnotation: "false"}
			})
			if err != nil {
				t.claim("an annotation that was changed changes nothing", false, "%v", err)
			}
			b.gone(p, "DEL with another annotation")
			b.bystander()
			b.del(p)
		}
	}
	b.unreachable()
	b.settled(start)
	t.claim("TCX links stay, annotations of running pods are not read", true, "%d pods", t.res.n)
	t.note("a live pod's changed annotation in the API server is the helper's matter: see its tests")
	hostileToFilters(t)
}

// hostileToFilters: where the kernel has no TCX, a pod can remove what is on its interface; that is seen, and put back.
func hostileToFilters(t *trial) {
	tagged, err := node.Tagged(t.ctx, "failpoint", "kmesh-cni", "kmesh-helper", "kmeshctl")
	t.must(err)
	// Plugin and helper both have it from here.
	t.must(os.Setenv(failpoint.Variable, "unsupported@attach tcx"))
	t.cleanup(func() { os.Unsetenv(failpoint.Variable) })
	b := t.bed(node.Options{})
	b.UsePlugin(tagged)
	b.UseHelper(tagged)
	b.serve()
	b.start()
	b.warm()
	start := b.holdings()
	for range t.of(5, 1) {
		for range versions {
			p, err := b.optedIn()
			t.must(err)
			came := b.hostileIn(p, roleRemove, nobody)
			if came["remove the qdisc"] != "" {
				t.must(fmt.Errorf("a pod with NET_ADMIN could not remove its qdisc: %v", came))
			}
			if on, err := node.Attached(p.CgroupPath); err != nil || len(on) == 0 {
				t.claim("what is bound at connect stays governed", false, "%v, %v", on, err)
			}
			took, err := t.until(settleLimit, func() error { return b.governed(p) })
			if err != nil {
				t.claim("filters that were removed are put back", false, "after %s: %v", ms(took), err)
			}
			t.time(took)
			b.bystander()
			b.del(p)
		}
	}
	b.settled(start)
	t.limit("filters that were removed are put back within 1 s", t.res.percentile(100) < time.Second, shared, "%s at most", ms(t.res.percentile(100)))
}

// unreachable: the socket and the cgroup are not the pod's, also where their folders are open to it.
func (b *bed) unreachable() {
	t := b.t
	p, err := b.optedIn()
	t.must(err)
	for _, open := range []bool{false, true} {
		if open { // as if an administrator had opened the folders
			for _, dir := range []string{node.Base, b.Dir, b.RunDir} {
				t.must(os.Chmod(dir, 0o755))
			}
			t.must(os.Chmod(b.Socket(), 0o777))
		}
		came := b.hostileIn(p, roleReach, nobody, b.Socket(), filepath.Dir(b.CgroupRoot))
		t.claim("the socket refuses it", came["socket"] != "", "folders open: %v: %s", open, came["socket"])
		t.claim("it cannot leave its cgroup", came["cgroup"] != "", "%s", came["cgroup"])
	}
	for _, dir := range []string{node.Base, b.Dir, b.RunDir} {
		t.must(os.Chmod(dir, 0o700))
	}
	t.must(os.Chmod(b.Socket(), 0o600))
	if err := b.governed(p); err != nil {
		t.claim("it stays governed", false, "%v", err)
	}
	b.del(p)
}
