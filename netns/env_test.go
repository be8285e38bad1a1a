// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

var serial atomic.Uint64

// node is a node of its own for one test: a bpffs with loaded programs, a cgroup2 subtree, a run directory.
type node struct {
	*Node
	t       testing.TB
	bpffs   string
	run     string
	cgroups string // absolute path of the subtree
	prefix  string // the same, below the cgroup2 mount
	rt      *bpf.Runtime
}

func newNode(t testing.TB, change ...func(*Options)) *node {
	t.Helper()
	n := &node{t: t, bpffs: filepath.Join(mountBPFFS(t), "kmesh"), run: filepath.Join(t.TempDir(), "run")}
	root, err := (cgroupFinder{}).openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	n.prefix = fmt.Sprintf("/kmesh-netns-test-%d-%d", os.Getpid(), serial.Add(1))
	n.cgroups = root.Name() + n.prefix
	n.mkcgroup("")
	n.rt = n.load()
	if err := n.rt.SetState(bpf.PhaseLive, 1, 1); err != nil {
		t.Fatal(err)
	}
	opts := Options{BPFFS: n.bpffs, RunDir: n.run}
	for _, c := range change {
		c(&opts)
	}
	n.Node = New(opts)
	return n
}

func (n *node) load() *bpf.Runtime {
	n.t.Helper()
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: n.bpffs})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { rt.Close() })
	return rt
}

// mountBPFFS mounts a bpffs that only this test uses; what is pinned there goes with it.
func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs (root needed): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// mkcgroup makes a cgroup below the test's subtree, gone after the test.
func (n *node) mkcgroup(rel string) string {
	n.t.Helper()
	at := n.cgroups
	for _, part := range append([]string{""}, strings.FieldsFunc(rel, func(r rune) bool { return r == '/' })...) {
		at = filepath.Join(at, part)
		err := os.Mkdir(at, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			n.t.Fatal(err)
		}
		dir := at
		n.t.Cleanup(func() { rmcgroup(n.t, dir) })
	}
	return at
}

func rmcgroup(t testing.TB, dir string) {
	t.Helper()
	poll(t, "remove "+dir, func() error {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// poll repeats until f is satisfied or ten seconds are over.
func poll(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// pod is a pod's cgroup and sandbox as kubelet and the runtime make them.
func (n *node) pod(containerID string) Request {
	n.t.Helper()
	uid := fmt.Sprintf("6f9619ff-8b86-d011-b42d-%012x", serial.Add(1))
	n.mkcgroup("kubepods/burstable/pod" + uid)
	return Request{
		Attachment: Attachment{ContainerID: containerID, Network: "cluster.net", IfName: "eth0"},
		Namespace:  "shop", Name: "web-0", UID: uid,
		NetnsPath:  newNetns(n.t),
		CgroupPath: n.prefix + "/kubepods/burstable/pod" + uid,
	}
}

// sandbox is another sandbox of the same pod.
func (n *node) sandbox(r Request, containerID string) Request {
	r.ContainerID = containerID
	r.NetnsPath = newNetns(n.t)
	return r
}

func (n *node) inode(r Request) uint64 {
	n.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(n.path(r), &st); err != nil {
		n.t.Fatal(err)
	}
	return st.Ino
}

// newNetns makes a network namespace with an eth0, bound to a path.
func newNetns(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}); err != nil {
				return err
			}
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr("10.7.0.2/24")
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l)); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { dropNetns(t, path) })
	return path
}

func dropNetns(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount network namespace: %v", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func (n *node) enroll(r Request) Pod {
	n.t.Helper()
	p, err := n.Enroll(context.Background(), r)
	if err != nil {
		n.t.Fatalf("enroll %s: %v", r.ContainerID, err)
	}
	return p
}

// links counts the links in the kernel that run a program of this node, by cgroup and by interface.
func (n *node) links() (cgroup, tcx int) {
	n.t.Helper()
	ours := make(map[ebpf.ProgramID]bool)
	for _, h := range append(slices.Clone(bpf.CgroupHooks), bpf.TCHooks...) {
		p, err := ebpf.LoadPinnedProgram(bpf.ProgPath(n.bpffs, h.Name), nil)
		if err != nil {
			n.t.Fatal(err)
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			n.t.Fatal(err)
		}
		id, _ := info.ID()
		ours[id] = true
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || !ours[info.Program] {
			continue
		}
		switch {
		case info.Cgroup() != nil:
			cgroup++
		case info.TCX() != nil:
			tcx++
		}
	}
	if err := it.Err(); errors.Is(err, unix.EAGAIN) {
		return n.links() // somebody on this machine is making a link at this moment
	} else if err != nil {
		n.t.Fatal(err)
	}
	return cgroup, tcx
}

// wantLinks polls for exact numbers: a closed link is freed a moment later.
func (n *node) wantLinks(cgroup, tcx int) {
	n.t.Helper()
	poll(n.t, "links of this node in the kernel", func() error {
		if c, t := n.links(); c != cgroup || t != tcx {
			return fmt.Errorf("%d on cgroups and %d on interfaces, want %d and %d", c, t, cgroup, tcx)
		}
		return nil
	})
}

// tree is everything below the bpffs beside programs and maps, with the program in each link.
func (n *node) tree() []string {
	n.t.Helper()
	var out []string
	for _, top := range []string{"pods", "cgroups"} {
		err := filepath.WalkDir(filepath.Join(n.bpffs, top), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(path, n.bpffs)
			if !d.IsDir() {
				l, err := link.LoadPinnedLink(path, nil)
				if err != nil {
					return err
				}
				info, err := l.Info()
				l.Close()
				if err != nil {
					return err
				}
				rel += fmt.Sprintf(" link %d program %d", info.ID, info.Program)
			}
			if rel != "/"+top {
				out = append(out, rel)
			}
			return nil
		})
		if err != nil {
			n.t.Fatal(err)
		}
	}
	return out
}

func (n *node) wantTree(want []string, when string) {
	n.t.Helper()
	if got := n.tree(); !slices.Equal(got, want) {
		n.t.Errorf("%s the bpffs has\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// podsMap is the number of entries in the pods map.
func (n *node) podsMap() int {
	n.t.Helper()
	pods, err := bpf.OpenPods(n.bpffs)
	if err != nil {
		n.t.Fatal(err)
	}
	defer pods.Close()
	all, err := pods.List()
	if err != nil {
		n.t.Fatal(err)
	}
	return len(all)
}
