// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"kmesh/bpf"
)

func forceClsact(o *Options) { o.ForceClsact = true }

// ourFilters counts them inside the namespace, and says whether there is a clsact qdisc.
func ourFilters(t *testing.T, path string) (count int, qdisc bool) {
	t.Helper()
	inNetns(t, path, func() error {
		index, err := ifindex("eth0")
		if err != nil {
			return err
		}
		if qdisc, err = hasClsact(index); err != nil || !qdisc {
			return err
		}
		for _, h := range bpf.TCHooks {
			ours, _, err := filters(index, h)
			if err != nil {
				return err
			}
			count += len(ours)
		}
		return nil
	})
	return count, qdisc
}

func TestClsactWhereTCXIsMissing(t *testing.T) {
	for _, c := range []struct {
		name       string
		qdiscFirst bool // somebody made the qdisc before us
		drop       string
	}{
		{"own qdisc", false, "del"},
		{"own qdisc, path given", false, "del in"},
		{"somebody's qdisc", true, "del"},
		{"namespace gone first", false, "netns"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, forceClsact)
			r := n.pod("c1")
			if c.qdiscFirst {
				inNetns(t, r.NetnsPath, func() error {
					index, err := ifindex("eth0")
					if err != nil {
						return err
					}
					return netlink.QdiscAdd(clsactQdisc(index))
				})
			}
			p := n.enroll(r)
			if !p.Live() || len(p.Links) != nCgroup+nTC {
				t.Fatalf("pod is %+v", p)
			}
			n.wantLinks(nCgroup, 0)
			if k, _ := ourFilters(t, r.NetnsPath); k != nTC {
				t.Errorf("%d filters", k)
			}
			before := n.tree()
			n.enroll(r)
			n.wantTree(before, "after the same ADD again")
			if k, _ := ourFilters(t, r.NetnsPath); k != nTC {
				t.Errorf("%d filters after the same ADD again", k)
			}
			replacePrograms(t, n)
			if err := n.Upgrade(ctx, n.load().Program); err != nil {
				t.Fatal(err)
			}
			q, err := n.Get(ctx, r.Attachment)
			if err != nil || q.Links[nCgroup].ProgramID == p.Links[nCgroup].ProgramID || q.Links[nCgroup].ProgramTag == "" {
				t.Errorf("upgraded filter is %+v, %v", q.Links, err)
			}
			if s, err := n.Sweep(ctx); err != nil || s != (Swept{}) {
				t.Errorf("swept %+v, %v of a living pod", s, err)
			}
			switch c.drop {
			case "del", "del in":
				path := ""
				if c.drop == "del in" {
					path = r.NetnsPath
				}
				if err := n.ReleaseIn(ctx, r.Attachment, path); err != nil {
					t.Fatal(err)
				}
				if k, qdisc := ourFilters(t, r.NetnsPath); k != 0 || qdisc != c.qdiscFirst {
					t.Errorf("%d filters, qdisc %v", k, qdisc)
				}
			case "netns":
				dropNetns(t, r.NetnsPath)
				if s, err := n.Sweep(ctx); err != nil || s.Pods != 1 {
					t.Errorf("swept %+v, %v", s, err)
				}
			}
			n.wantTree(nil, "at the end")
			n.wantLinks(0, 0)
		})
	}
}

func TestClsactFilterRemovedIsDrift(t *testing.T) {
	n := newNode(t, forceClsact)
	r := n.pod("c1")
	n.enroll(r)
	inNetns(t, r.NetnsPath, func() error {
		index, err := ifindex("eth0")
		if err != nil {
			return err
		}
		return netlink.FilterDel(filterOf(index, bpf.TCHooks[0]))
	})
	if err := n.Verify(ctx, r.Attachment); err == nil || !strings.Contains(err.Error(), "tc_ingress is not attached") {
		t.Errorf("verify says %v", err)
	}
}

// A failure after the filters takes them back, and the qdisc with them.
func TestClsactRollback(t *testing.T) {
	n := newNode(t, forceClsact)
	r := n.pod("c1")
	e := &enrolment{ctx: ctx, Node: n.Node, Request: r}
	defer e.close()
	var err error
	if e.dir, err = n.podDir(r.Attachment); err != nil {
		t.Fatal(err)
	}
	if e.progs, err = n.openPrograms(); err != nil {
		t.Fatal(err)
	}
	e.onClose(e.progs.Close)
	if e.netns, err = openNetns(r.NetnsPath); err != nil {
		t.Fatal(err)
	}
	e.onClose(func() { e.netns.Close() })
	inNetns(t, r.NetnsPath, e.readInterface)
	if err := e.attachTC(); err != nil {
		t.Fatal(err)
	}
	if k, qdisc := ourFilters(t, r.NetnsPath); k != nTC || !qdisc {
		t.Fatal(fmt.Errorf("%d filters, qdisc %v", k, qdisc))
	}
	if err := e.rollback(); err != nil {
		t.Fatal(err)
	}
	if k, qdisc := ourFilters(t, r.NetnsPath); k != 0 || qdisc {
		t.Errorf("%d filters, qdisc %v", k, qdisc)
	}
	n.wantTree(nil, "after the rollback")
}
