// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// No DEL ever comes. The cgroup and the namespace go, and the sweep finds what is left by what the kernel says of it.
func TestSweepWithoutAnyDel(t *testing.T) {
	n := newNode(t)
	dead, alive := n.pod("dead"), n.pod("alive")
	n.enroll(dead)
	n.enroll(alive)
	if s, err := n.Sweep(ctx); err != nil || s != (Swept{}) {
		t.Fatalf("swept %+v, %v of living pods", s, err)
	}
	rmcgroup(t, n.path(dead))
	dropNetns(t, dead.NetnsPath)
	s, err := n.Sweep(ctx)
	if err != nil || s.Pods != 1 {
		t.Fatalf("swept %+v, %v", s, err)
	}
	n.wantLinks(nCgroup, nTC)
	if err := n.Verify(ctx, alive.Attachment); err != nil {
		t.Error(err)
	}
	if k := n.podsMap(); k != 1 {
		t.Errorf("pods map has %d entries", k)
	}
	rmcgroup(t, n.path(alive))
	if _, err := n.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	n.wantTree(nil, "after the sweeps")
	n.wantLinks(0, 0)
	if k := n.podsMap(); k != 0 {
		t.Errorf("pods map has %d entries", k)
	}
	if s, err := n.Sweep(ctx); err != nil || s != (Swept{}) {
		t.Errorf("swept %+v, %v of nothing", s, err)
	}
}

// What an ADD that was killed may leave, at any of its steps.
func TestSweepOfInterruptedWork(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(t *testing.T, n *node, dir string, p Pod)
	}{
		{"before ready", func(t *testing.T, n *node, dir string, p Pod) { mustRemove(t, filepath.Join(dir, markReady)) }},
		{"before the claim", func(t *testing.T, n *node, dir string, p Pod) {
			mustRemove(t, filepath.Join(dir, markReady))
			mustRemove(t, filepath.Join(n.ownersDir(p.Cgroup), "c1"))
		}},
		{"before TC", func(t *testing.T, n *node, dir string, p Pod) {
			mustRemove(t, filepath.Join(dir, markReady))
			mustRemove(t, filepath.Join(dir, "tc_egress"))
		}},
		{"claim without an attachment", func(t *testing.T, n *node, dir string, p Pod) {
			removeAll(t, filepath.Join(n.podsDir(), "c1"))
			pods, err := bpf.OpenPods(n.bpffs)
			if err != nil {
				t.Fatal(err)
			}
			defer pods.Close()
			if err := pods.Delete(p.NetnsCookie); err != nil {
				t.Fatal(err)
			}
		}},
		{"empty directories", func(t *testing.T, n *node, dir string, p Pod) {
			if err := n.Release(ctx, p.Attachment); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(n.podsDir(), "c2", "x"), 0o700); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		for _, by := range []string{"sweep", "del", "add"} {
			if by == "del" && c.name == "claim without an attachment" {
				continue // a DEL cannot know of it
			}
			t.Run(c.name+"/"+by, func(t *testing.T) {
				n := newNode(t)
				r := n.pod("c1")
				p := n.enroll(r)
				dir, err := n.podDir(r.Attachment)
				if err != nil {
					t.Fatal(err)
				}
				c.cut(t, n, dir, p)
				switch by {
				case "add":
					if p := n.enroll(r); !p.Live() || len(p.Links) != nCgroup+nTC {
						t.Errorf("pod is %+v", p)
					}
					n.wantLinks(nCgroup, nTC)
					if err := n.Release(ctx, r.Attachment); err != nil {
						t.Fatal(err)
					}
				case "del":
					if err := n.Release(ctx, r.Attachment); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := n.Sweep(ctx); err != nil {
					t.Fatal(err)
				}
				n.wantTree(nil, "at the end")
				n.wantLinks(0, 0)
				if k := n.podsMap(); k != 0 {
					t.Errorf("pods map has %d entries", k)
				}
			})
		}
	}
}

func mustRemove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// An attachment at work holds the lock: the sweep waits and finds it finished.
func TestSweepLeavesWorkAlone(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	n.enroll(r)
	dir, err := n.podDir(r.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	mustRemove(t, filepath.Join(dir, markReady))
	unlock, err := lock(ctx, openDir(t, n.path(r)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := n.Sweep(ctx); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("the sweep did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := mkdir(filepath.Join(dir, markReady)); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := n.Verify(ctx, r.Attachment); err != nil {
		t.Error(err)
	}
}

// A pod that may change its namespace deletes its interface: it stays governed, and shows as drift.
func TestDeletedInterfaceIsDriftNotFreedom(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	n.enroll(r)
	dir := openDir(t, n.path(r))
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	defer stop()
	inNetns(t, r.NetnsPath, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	severed := func() error {
		if err := n.Verify(ctx, r.Attachment); err == nil || !strings.Contains(err.Error(), "tc_ingress is severed") {
			return fmt.Errorf("verify says %v", err)
		}
		return nil
	}
	poll(t, "drift", severed)
	if s, err := n.Sweep(ctx); err != nil || s != (Swept{}) {
		t.Errorf("swept %+v, %v", s, err)
	}
	if c, _ := n.links(); c != nCgroup {
		t.Errorf("%d links on the cgroup", c)
	}
	stop()
	poll(t, "sweep after the pod's end", func() error {
		if s, err := n.Sweep(ctx); err != nil || s.Pods != 1 {
			return fmt.Errorf("swept %+v, %v", s, err)
		}
		return nil
	})
	n.wantTree(nil, "at the end")
}

// systemd may make the slice anew at the same path: the links are on the old one.
func TestCgroupMadeAnewIsDrift(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	n.enroll(r)
	rmcgroup(t, n.path(r))
	if err := os.Mkdir(n.path(r), 0o755); err != nil {
		t.Fatal(err)
	}
	poll(t, "drift", func() error {
		p, err := n.Get(ctx, r.Attachment)
		if err == nil && (p.Live() || !slices.ContainsFunc(p.Drift, func(d string) bool { return strings.Contains(d, "the pod's cgroup is") })) {
			err = fmt.Errorf("pod is %+v", p)
		}
		return err
	})
	if p := n.enroll(r); !p.Live() {
		t.Errorf("enrolled again it is %+v", p)
	}
	n.wantLinks(nCgroup, nTC)
	if err := n.Release(ctx, r.Attachment); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	n.wantTree(nil, "at the end")
}

func TestUpgradeSwapsProgramsInPlace(t *testing.T) {
	n := newNode(t)
	r, dead := n.pod("c1"), n.pod("c2")
	was := n.enroll(r)
	n.enroll(dead)
	rmcgroup(t, n.path(dead))
	replacePrograms(t, n)
	rt := n.load()
	if err := n.Upgrade(ctx, rt.Program); err != nil {
		t.Fatal(err)
	}
	is, err := n.Get(ctx, r.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range is.Links {
		if l.ID != was.Links[i].ID || l.ProgramID == was.Links[i].ProgramID {
			t.Errorf("link %+v became %+v", was.Links[i], l)
		}
	}
	if err := n.Upgrade(ctx, func(hook string) (*ebpf.Program, error) { return nil, errors.New("none") }); err == nil {
		t.Error("an upgrade without programs succeeded")
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.enroll(n.pod("c1"))
	r := n.pod("c2")
	n.enroll(r)
	if err := n.Record(ctx, n.pod("c3"), Passed, "because"); err != nil {
		t.Fatal(err)
	}
	rmcgroup(t, n.path(r))
	for range 2 {
		if err := n.Uninstall(ctx); err != nil {
			t.Fatal(err)
		}
	}
	n.wantLinks(0, 0)
	left, err := os.ReadDir(n.bpffs)
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(bpf.Dir("/")) {
		t.Errorf("bpffs has %v, %v", left, err)
	}
	if k := n.podsMap(); k != 0 {
		t.Errorf("pods map has %d entries", k)
	}
	if _, err := os.Stat(filepath.Join(n.run, "pods")); !os.IsNotExist(err) {
		t.Errorf("records: %v", err)
	}
}

func TestReleaseOfWhatNeverWas(t *testing.T) {
	n := newNode(t)
	for _, a := range []Attachment{
		{}, {"x", "y", "z"}, {"..", "..", ".."}, {strings.Repeat("x", 300), "n", "eth0"}, {"a/b", "\x00", "é"},
	} {
		if err := n.Release(ctx, a); err != nil {
			t.Errorf("%+v: %v", a, err)
		}
	}
	empty := New(Options{BPFFS: "/nonexistent", RunDir: "/nonexistent"})
	if err := empty.Release(ctx, Attachment{"x", "y", "z"}); err != nil {
		t.Error(err)
	}
	if s, err := empty.Sweep(ctx); err != nil || s != (Swept{}) {
		t.Errorf("swept %+v, %v", s, err)
	}
}

func TestRecords(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	for _, o := range []Outcome{Failed, Passed} {
		if err := n.Record(ctx, r, o, "reason"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.run, "pods", "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := n.Records(ctx)
	if err != nil || len(all) != 1 || all[0].Request != r || all[0].Outcome != Passed || all[0].Reason != "reason" || all[0].Time.IsZero() {
		t.Fatalf("records are %+v, %v", all, err)
	}
	if _, err := n.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if all, _ := n.Records(ctx); len(all) != 1 {
		t.Errorf("the sweep took the record of a sandbox that is there: %v", all)
	}
	dropNetns(t, r.NetnsPath)
	if _, err := n.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if all, _ := n.Records(ctx); len(all) != 0 {
		t.Errorf("records are %v", all)
	}
}

// The helper sweeps and lists while the plugin works: nothing alive is lost, and nothing fails.
func TestSweepBesideEnrolments(t *testing.T) {
	n := newNode(t)
	const k = 8
	var requests []Request
	for i := range k {
		requests = append(requests, n.pod(fmt.Sprintf("c%d", i)))
	}
	stop := make(chan struct{})
	var helper, plugin sync.WaitGroup
	helper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := n.Sweep(ctx); err != nil {
				t.Errorf("sweep: %v", err)
			}
			if _, err := n.List(ctx); err != nil {
				t.Errorf("list: %v", err)
			}
			if err := n.Upgrade(ctx, n.rt.Program); err != nil {
				t.Errorf("upgrade: %v", err)
			}
		}
	})
	for _, r := range requests {
		plugin.Go(func() {
			for i := range 10 {
				s := r
				s.ContainerID = fmt.Sprintf("%s-%d", r.ContainerID, i)
				p, err := n.Enroll(ctx, s)
				if err != nil || !p.Live() {
					t.Errorf("enroll %s: %+v, %v", s.ContainerID, p, err)
					return
				}
				if err := n.Verify(ctx, s.Attachment); err != nil {
					t.Error(err)
				}
				if err := n.Release(ctx, s.Attachment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	plugin.Wait()
	close(stop)
	helper.Wait()
	n.wantLinks(0, 0)
	n.wantTree(nil, "at the end")
}

// What a killed writer of a record left goes, also when the clock was set back since; what is being written stays.
func TestSweepOfUnfinishedRecords(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.run, "pods")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{".record-old": time.Hour, ".record-future": -time.Hour, ".record-locked": time.Hour, ".record-new": 0} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if name == ".record-locked" {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(f.Name(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.sweepUnfinished(); err != nil {
		t.Fatal(err)
	}
	left, err := names(dir)
	if err != nil || !slices.Equal(left, []string{".record-locked", ".record-new"}) {
		t.Errorf("left are %v, %v", left, err)
	}
}
