// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"kmesh/bpf"
)

var ctx = context.Background()

const (
	nCgroup = 9 // links of one cgroup
	nTC     = 2 // links of one interface
)

func TestEnrollGovernsTheCgroupAndTheInterface(t *testing.T) {
	n := newNode(t)
	r := n.pod("c1")
	p := n.enroll(r)
	if !p.Live() || !p.Owner || len(p.Links) != nCgroup+nTC {
		t.Fatalf("pod is %+v", p)
	}
	if p.Cgroup != n.inode(r) {
		t.Errorf("cgroup is %d, want inode %d", p.Cgroup, n.inode(r))
	}
	for _, l := range p.Links {
		if !l.Live || l.ID == 0 || l.ProgramTag == "" {
			t.Errorf("link is %+v", l)
		}
		if tc := strings.HasPrefix(l.Hook, "tc_"); tc == (l.Ifindex == 0) || tc == (l.CgroupID == p.Cgroup) {
			t.Errorf("link is on the wrong thing: %+v", l)
		}
	}
	n.wantLinks(nCgroup, nTC)
	pods, err := bpf.OpenPods(n.bpffs)
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Close()
	all, err := pods.List()
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := all[p.NetnsCookie]; !ok || got.IPv4.String() != "10.7.0.2" {
		t.Errorf("pods map has %+v", all)
	}
	if err := n.Verify(ctx, r.Attachment); err != nil {
		t.Error(err)
	}
	list, err := n.List(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "web-0" || list[0].Time.IsZero() {
		t.Errorf("list is %+v, %v", list, err)
	}

	before := n.tree()
	n.enroll(r)
	n.wantTree(before, "after the same ADD again")

	for range 3 {
		if err := n.Release(ctx, r.Attachment); err != nil {
			t.Fatal(err)
		}
	}
	n.wantTree(nil, "after release")
	n.wantLinks(0, 0)
	if k := n.podsMap(); k != 0 {
		t.Errorf("pods map has %d entries", k)
	}
	if records, err := n.Records(ctx); err != nil || len(records) != 0 {
		t.Errorf("records are %v, %v", records, err)
	}
	if err := n.Verify(ctx, r.Attachment); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("verify after release: %v", err)
	}
}

// The old sandbox's DEL may come before, after or never; one link per hook at every step.
func TestSandboxMadeAnew(t *testing.T) {
	for _, oldDel := range []string{"early", "late", "never"} {
		t.Run(oldDel, func(t *testing.T) {
			n := newNode(t)
			first := n.pod("old")
			n.enroll(first)
			second := n.sandbox(first, "new")
			if oldDel == "early" {
				if err := n.Release(ctx, first.Attachment); err != nil {
					t.Fatal(err)
				}
				n.wantLinks(0, 0)
			}
			p := n.enroll(second)
			if !p.Live() || !p.Owner {
				t.Fatalf("new sandbox is %+v", p)
			}
			switch oldDel {
			case "early":
				n.wantLinks(nCgroup, nTC)
			case "late":
				n.wantLinks(nCgroup, 2*nTC)
				if err := n.Release(ctx, first.Attachment); err != nil {
					t.Fatal(err)
				}
			case "never":
				dropNetns(t, first.NetnsPath)
				poll(t, "sweep the old sandbox", func() error {
					s, err := n.Sweep(ctx)
					if err == nil && s.Pods != 1 {
						err = fmt.Errorf("swept %+v", s)
					}
					return err
				})
			}
			n.wantLinks(nCgroup, nTC)
			if err := n.Verify(ctx, second.Attachment); err != nil {
				t.Error(err)
			}
			if k := n.podsMap(); k != 1 {
				t.Errorf("pods map has %d entries", k)
			}
			if err := n.Release(ctx, second.Attachment); err != nil {
				t.Fatal(err)
			}
			n.wantLinks(0, 0)
			n.wantTree(nil, "at the end")
		})
	}
}

// A runtime may keep the namespace: the old sandbox's late DEL must not take the new one's entry.
func TestLateDelInASharedNamespace(t *testing.T) {
	n := newNode(t)
	first := n.pod("old")
	n.enroll(first)
	second := first
	second.ContainerID = "new"
	n.enroll(second)
	if err := n.Release(ctx, first.Attachment); err != nil {
		t.Fatal(err)
	}
	if k := n.podsMap(); k != 1 {
		t.Errorf("pods map has %d entries", k)
	}
	if err := n.Verify(ctx, second.Attachment); err != nil {
		t.Error(err)
	}
}

func TestTwoNetworksOfOneSandbox(t *testing.T) {
	n := newNode(t)
	first := n.pod("c1")
	second := first
	second.Network = "storage"
	second.IfName = "lo"
	n.enroll(first)
	n.enroll(second)
	n.wantLinks(nCgroup, 2*nTC)
	if err := n.Release(ctx, first.Attachment); err != nil {
		t.Fatal(err)
	}
	n.wantLinks(nCgroup, nTC)
	if err := n.Verify(ctx, second.Attachment); err != nil || n.podsMap() != 1 {
		t.Errorf("the other network: %v, pods map %d", err, n.podsMap())
	}
	gone, err := n.Retain(ctx, "cluster.net", nil)
	if err != nil || len(gone) != 0 {
		t.Errorf("another network's collection removed %v, %v", gone, err)
	}
	gone, err = n.Retain(ctx, "storage", []Attachment{second.Attachment})
	if err != nil || len(gone) != 0 {
		t.Errorf("collection removed a valid one: %v, %v", gone, err)
	}
	gone, err = n.Retain(ctx, "storage", nil)
	if err != nil || len(gone) != 1 || gone[0] != second.Attachment {
		t.Errorf("collection removed %v, %v", gone, err)
	}
	n.wantLinks(0, 0)
	n.wantTree(nil, "at the end")
}

func TestConcurrentEnrolmentsOfOneCgroup(t *testing.T) {
	n := newNode(t)
	const k = 64
	base := n.pod("c")
	requests := make([]Request, k)
	for i := range requests {
		requests[i] = n.sandbox(base, fmt.Sprintf("c%d", i))
	}
	var wg sync.WaitGroup
	errs := make([]error, k)
	for i, r := range requests {
		wg.Go(func() { _, errs[i] = n.Enroll(ctx, r) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n.wantLinks(nCgroup, k*nTC)
	owners, err := names(n.ownersDir(n.inode(base)))
	if err != nil || len(owners) != 1 {
		t.Errorf("owners are %v, %v", owners, err)
	}
	for i, r := range requests {
		wg.Go(func() { errs[i] = n.Release(ctx, r.Attachment) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n.wantLinks(0, 0)
	n.wantTree(nil, "at the end")
	if got := n.podsMap(); got != 0 {
		t.Errorf("pods map has %d entries", got)
	}
}

// A failure at any step leaves what was there before, links and their programs included.
func TestFailureLeavesWhatWasThere(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, n *node, r *Request)
		code  Code
		says  string
		old   bool // an older sandbox is there, and the programs have changed since
	}{
		{"exclusive program above", func(t *testing.T, n *node, r *Request) { attachExclusive(t, n.cgroups+"/kubepods") }, CodeForeign, "exclusive", false},
		{"64 programs", func(t *testing.T, n *node, r *Request) { fillCgroup(t, n.path(*r)) }, CodeForeign, "64 programs", false},
		{"no interface", func(t *testing.T, n *node, r *Request) { r.IfName = "eth9" }, 0, "eth9", true},
		{"no namespace", func(t *testing.T, n *node, r *Request) { r.NetnsPath += "x" }, 0, "network namespace", true},
		{"namespace is a file", func(t *testing.T, n *node, r *Request) { r.NetnsPath = os.Args[0] }, 0, "network namespace", true},
		{"last TC program", func(t *testing.T, n *node, r *Request) { fillInterface(t, r.NetnsPath) }, 0, "tc_egress", false},
		{"last TC program of a take-over", func(t *testing.T, n *node, r *Request) { fillInterface(t, r.NetnsPath) }, 0, "tc_egress", true},
		{"cgroup removed", func(t *testing.T, n *node, r *Request) { rmcgroup(t, n.path(*r)) }, CodeCgroup, "cgroup", false},
		{"out of time", nil, 0, "deadline", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			r := n.pod("new")
			entries := 0
			if c.old {
				n.enroll(n.sandbox(r, "old"))
				replacePrograms(t, n)
				entries = 1
			}
			ctx := ctx
			if c.spoil != nil {
				c.spoil(t, n, &r)
			} else {
				// The older sandbox's cgroup is locked by somebody who does not let go.
				unlock, err := lock(ctx, openDir(t, n.path(r)))
				if err != nil {
					t.Fatal(err)
				}
				defer unlock()
				short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				ctx = short
			}
			before := n.tree()
			_, err := n.Enroll(ctx, r)
			if err == nil || CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error is %v (code %d), want code %d and %q", err, CodeOf(err), c.code, c.says)
			}
			if c.code != 0 && len(err.Error()) > maxMessage {
				t.Errorf("message has %d bytes: %s", len(err.Error()), err)
			}
			n.wantTree(before, "after the failure")
			if k := n.podsMap(); k != entries {
				t.Errorf("pods map has %d entries, want %d", k, entries)
			}
		})
	}
}

// A take-over brings the links to the programs of today, without a new link.
func TestTakeOverUpdatesPrograms(t *testing.T) {
	n := newNode(t)
	r := n.pod("old")
	was := n.enroll(r)
	replacePrograms(t, n)
	is := n.enroll(n.sandbox(r, "new"))
	for i := range nCgroup {
		if is.Links[i].ID != was.Links[i].ID || is.Links[i].ProgramID == was.Links[i].ProgramID {
			t.Errorf("link %+v became %+v", was.Links[i], is.Links[i])
		}
	}
}

func TestNotReady(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, n *node)
		says  string
	}{
		{"loaded, not live", func(t *testing.T, n *node) { n.setState(bpf.PhaseLoaded) }, "no configuration yet"},
		{"nothing loaded", func(t *testing.T, n *node) { removeAll(t, bpf.Dir(n.bpffs)) }, "not loaded"},
		{"a program is missing", func(t *testing.T, n *node) { removeAll(t, bpf.ProgPath(n.bpffs, "connect6")) }, "connect6"},
		{"not a bpffs", func(t *testing.T, n *node) { n.opts.BPFFS = t.TempDir() }, "bpf filesystem"},
		{"not a directory", func(t *testing.T, n *node) { n.opts.BPFFS = "/proc/version/kmesh" }, "bpf filesystem"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			r := n.pod("c1")
			c.spoil(t, n)
			_, err := n.Enroll(ctx, r)
			if CodeOf(err) != CodeNotReady || !strings.Contains(err.Error(), c.says) || len(err.Error()) > maxMessage {
				t.Errorf("error is %v, code %d", err, CodeOf(err))
			}
			if err := n.Release(ctx, r.Attachment); err != nil {
				t.Errorf("release: %v", err)
			}
		})
	}
}

func (n *node) setState(p bpf.Phase) {
	n.t.Helper()
	if err := n.rt.SetState(p, 1, 1); err != nil {
		n.t.Fatal(err)
	}
}

// path is where the pod's cgroup is in the file system.
func (n *node) path(r Request) string { return n.cgroups + strings.TrimPrefix(r.CgroupPath, n.prefix) }

func removeAll(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// A full table of pods is named, with its size, and leaves nothing of the pod.
func TestFullTableOfPods(t *testing.T) {
	n := newNode(t)
	if err := os.Remove(bpf.MapPath(n.bpffs, "km_pods")); err != nil {
		t.Fatal(err)
	}
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: n.bpffs, MaxEntries: map[string]uint32{"km_pods": 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	n.enroll(n.pod("c1"))
	r := n.pod("c2")
	n.enroll(r)
	before := n.tree()
	late := n.pod("c3")
	_, err = n.Enroll(ctx, late)
	if CodeOf(err) != CodeFull || !strings.Contains(err.Error(), "holds 2 pods and is full") {
		t.Errorf("the third of two pods: %v", err)
	}
	n.wantTree(before, "after that")
	if err := n.Release(ctx, r.Attachment); err != nil {
		t.Fatal(err)
	}
	n.enroll(late)
}
