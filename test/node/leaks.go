// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// goneLimit is how long the kernel may take to free what nobody holds any more.
const goneLimit = 30 * time.Second

// cgroupAttachments are the cgroup hooks that kmesh uses.
var cgroupAttachments = []ebpf.AttachType{
	ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
	ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername,
	ebpf.AttachCGroupSockOps,
}

// Attached counts the programs on a cgroup itself, by hook; empty when there are none.
func Attached(cgroup string) (map[ebpf.AttachType]int, error) {
	f, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	counts := map[ebpf.AttachType]int{}
	for _, at := range cgroupAttachments {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: at})
		if err != nil {
			return nil, fmt.Errorf("asking for the %s programs of %s: %w", at, cgroup, err)
		}
		if len(res.Programs) > 0 {
			counts[at] = len(res.Programs)
		}
	}
	return counts, nil
}

// checkCgroup notes programs that a pod's last DEL left on its cgroup.
func (n *Node) checkCgroup(p *Pod) {
	at, err := Attached(p.CgroupPath)
	for deadline := time.Now().Add(10 * time.Second); n.opts.LateEnrolment && len(at) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		at, err = Attached(p.CgroupPath)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		n.seen.leak("cannot tell: %v", err)
	case len(at) > 0:
		n.seen.leak("programs on the cgroup of pod %s after CNI DEL: %v", p.Name, at)
	}
}

// leftInside looks at what is still there when all pods are deleted and the helper is gone, before it is swept away.
func (n *Node) leftInside(ctx context.Context) []string {
	n.seen.mu.Lock()
	left := slices.Clone(n.seen.found)
	n.seen.mu.Unlock()
	note := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }

	_ = filepath.WalkDir(n.BPFFS, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, n.BPFFS+"/")
		// The first level of folders is the helper's own and stays until it is uninstalled.
		if err == nil && path != n.BPFFS && (!d.IsDir() || strings.Contains(rel, "/")) {
			note("pin %s", rel)
		}
		return nil
	})
	for _, pattern := range []string{filepath.Join(n.RunDir, "pods", "*"), filepath.Join(n.RunDir, "*.sock"), filepath.Join(n.Dir, "cni", "results", "*")} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			note("file %s", f)
		}
	}
	if n.cni != nil {
		held, err := n.cni.reservations()
		if err != nil {
			note("cannot tell about addresses: %v", err)
		}
		for _, a := range held {
			note("address %s, still reserved", a)
		}
		// An interface whose peer's namespace is gone goes with it, but not at once.
		var stray []string
		poll(ctx, goneLimit, func() bool {
			stray, err = n.strayLinks()
			return err != nil || len(stray) == 0
		})
		if err != nil {
			note("cannot tell about links: %v", err)
		}
		for _, l := range stray {
			note("network interface %s in the node's namespace", l)
		}
	}
	pids, err := processes(n.CgroupRoot)
	if err != nil {
		note("cannot tell about processes: %v", err)
	}
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		note("process %d: %s", pid, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	dirs, err := cgroupTree(n.CgroupRoot)
	if err != nil {
		note("cannot tell about cgroups: %v", err)
	}
	for _, d := range dirs {
		if strings.HasPrefix(filepath.Base(d), "pod") {
			note("cgroup %s", d)
		}
	}
	return left
}

// leftOutside looks for everything the ledger knows on the whole machine, once nobody should hold it any more.
func (n *Node) leftOutside(ctx context.Context) []string {
	var left []string
	poll(ctx, goneLimit, func() bool {
		left = slices.Concat(n.leftIDs(), n.leftNamespaces(), n.leftDescriptors(), n.leftPaths())
		return len(left) == 0
	})
	return left
}

// hasMap tells whether a map is in the kernel, and takes no hold of it. A prog array whose last holder has just gone is emptied by a work queue; when it is
// opened and closed before that, the kernel counts one reference too many, and it stays for good.
func hasMap(id uint32) bool {
	next, err := ebpf.MapGetNextID(ebpf.MapID(id - 1))
	return err == nil && uint32(next) == id
}

func (n *Node) leftIDs() []string {
	var left []string
	n.seen.mu.Lock()
	defer n.seen.mu.Unlock()
	for id, name := range n.seen.links {
		if l, err := link.NewFromID(link.ID(id)); err == nil {
			l.Close()
			left = append(left, fmt.Sprintf("link %d (%s)", id, name))
		}
	}
	for id, name := range n.seen.progs {
		if next, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id - 1)); err == nil && uint32(next) == id {
			left = append(left, fmt.Sprintf("program %d (%s)", id, name))
		}
	}
	for id, name := range n.seen.maps {
		if hasMap(id) {
			left = append(left, fmt.Sprintf("map %d (%s)", id, name))
		}
	}
	slices.Sort(left)
	return left
}

// leftNamespaces looks at every thread of every process and every mount for one of our network namespaces.
func (n *Node) leftNamespaces() []string {
	var left []string
	held, err := n.heldNamespaces()
	if err != nil {
		left = append(left, fmt.Sprintf("cannot tell about mounts: %v", err))
	}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		for _, by := range held[name] {
			left = append(left, fmt.Sprintf("network namespace %s: %s", name, by))
		}
	}
	return left
}

// heldNamespaces says by what each of our network namespaces that is still there is held.
func (n *Node) heldNamespaces() (map[string][]string, error) {
	n.seen.mu.Lock()
	ours := maps.Clone(n.seen.spaces)
	n.seen.mu.Unlock()
	held := map[string][]string{}
	// By what a link leads to: its text is of no use where the namespace is, or was, mounted on a file.
	match := func(path, format string) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			s, is := ours[nsID{st.Dev, st.Ino}]
			if !is {
				return
			}
			// It may be somebody's new one. One that is gone meanwhile is not held by this.
			if cookie, err := cookieOf(path); err == nil && cookie == s.cookie {
				held[s.name] = append(held[s.name], fmt.Sprintf(format, path))
			}
		}
	}
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	for _, t := range tasks {
		match(t, "a thread is in it: %s")
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		match(fd, "a descriptor is open on it: %s")
	}
	points, err := mountsBelow("/")
	for _, p := range points {
		match(p, "it is mounted on %s")
	}
	return held, err
}

// leftDescriptors looks at our own process for open links, programs and maps of the node.
func (n *Node) leftDescriptors() []string {
	var left []string
	infos, _ := filepath.Glob("/proc/self/fdinfo/*")
	n.seen.mu.Lock()
	defer n.seen.mu.Unlock()
	for _, path := range infos {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			ids := map[string]map[uint32]string{"link_id": n.seen.links, "prog_id": n.seen.progs, "map_id": n.seen.maps}[key]
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if ids == nil || err != nil {
				continue
			}
			if name, ok := ids[uint32(id)]; ok {
				left = append(left, fmt.Sprintf("descriptor %s of %s", filepath.Base(path), name))
			}
		}
	}
	return left
}

func (n *Node) leftPaths() []string {
	var left []string
	paths := []string{n.Dir}
	mounts, err := hierarchies()
	if err != nil {
		left = append(left, fmt.Sprintf("cannot tell about cgroups: %v", err))
	}
	for _, m := range mounts {
		paths = append(paths, filepath.Join(m, filepath.Base(n.CgroupRoot)))
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			left = append(left, "folder "+p)
		}
	}
	points, err := mountsBelow(n.Dir)
	if err != nil {
		left = append(left, fmt.Sprintf("cannot tell about mounts: %v", err))
	}
	for _, p := range points {
		left = append(left, "mount "+p)
	}
	return left
}
