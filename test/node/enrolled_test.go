// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"testing"

	"kmesh/bpf"
	"kmesh/test/node"
)

// A node on which no helper runs, only what one would have pinned: the ledger must know every link, program and map
// of an enrolled pod, else Close proves nothing.
func TestCloseLooksForWhatWasPinned(t *testing.T) {
	n, err := node.New(testContext(t), node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: n.BPFFS})
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.SetState(bpf.PhaseLive, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	p := addPod(t, n, node.PodSpec{Name: "enrolled", Annotations: node.Enrolled()})
	attached, err := node.Attached(p.CgroupPath)
	if err != nil || len(attached) != len(bpf.CgroupHooks) {
		t.Errorf("programs on the pod's cgroup: %v (%v), want one for each of %d hooks", attached, err, len(bpf.CgroupHooks))
	}
	for name, verb := range map[string]func() error{
		"CHECK":  func() error { return n.Check(testContext(t), p.Sandbox) },
		"STATUS": func() error { return n.Status(testContext(t)) },
		"GC":     func() error { return n.GC(testContext(t), p.Sandbox) },
	} {
		if err := verb(); err != nil {
			t.Errorf("CNI %s: %v", name, err)
		}
	}
	if err := n.DelPod(testContext(t), p); err != nil {
		t.Errorf("CNI DEL: %v", err)
	}
	addPod(t, n, node.PodSpec{Name: "second", Annotations: node.Enrolled()})
	if err := bpf.Unpin(n.BPFFS); err != nil {
		t.Fatal(err)
	}
	report, err := n.Close(testContext(t))
	if err != nil {
		t.Errorf("Close: %v", err)
	}
	links := 2 * (len(bpf.CgroupHooks) + len(bpf.TCHooks))
	if report.Links != links || report.Programs < links/2 || report.Maps == 0 || report.Cgroups < 2 || report.Namespaces != 3 {
		t.Errorf("Close looked for %+v, want %d links and their programs, maps, cgroups and 3 network namespaces", report, links)
	}
}
