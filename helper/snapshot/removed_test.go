// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"kmesh/helper/xds"
)

// TestRemoved: what a source says it does not have any more is gone, as what is
// absent from a complete update is: but nothing that something else needs.
func TestRemoved(t *testing.T) {
	removed := func(typeURL string, names ...string) xds.Update {
		return xds.Update{Type: typeURL, Removed: append(names, "unheard of")}
	}
	some := func(u xds.Update) xds.Update {
		u.Complete = false
		return u
	}
	b := newBench(t, Options{})
	b.want(b.apply(some(clusters(eds(t, "a"), eds(t, "b"))), assignments(cla(t, "a", 1), cla(t, "b", 2)), routes(rds(t, "80", "a")),
		some(listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.2", "b"), hcm(t, "web", "10.0.0.3", "80")))),
		"l@10.0.0.1>a(1) m@10.0.0.2>b(2) http:web@10.0.0.3>a(1)")
	b.want(b.apply(removed(xds.ListenerType, "l")), "m@10.0.0.2>b(2) http:web@10.0.0.3>a(1)")
	b.want(b.apply(removed(xds.ListenerType)), "=")

	// What a listener needs stays in its last good version, and the problem is told.
	b.want(b.apply(removed(xds.AssignmentType, "b")), "=")
	b.Absent(xds.AssignmentType, []string{"b"})
	b.want(b.built(), "=")
	if p := b.problem(); !strings.Contains(p, `ClusterLoadAssignment "b" is gone: its last good version stays`) {
		t.Errorf("problems %s", p)
	}
	b.want(b.apply(assignments(cla(t, "b", 3))), "m@10.0.0.2>b(3) http:web@10.0.0.3>a(1)")
	b.want(b.apply(removed(xds.RouteType, "80")), "=")
	b.Absent(xds.RouteType, []string{"80"})
	b.want(b.built(), "=")
	if p := b.problem(); !strings.Contains(p, `RouteConfiguration "80"`) || !strings.Contains(p, "last good version stays") {
		t.Errorf("problems %s", p)
	}
	b.want(b.apply(routes(rds(t, "80", "b"))), "m@10.0.0.2>b(3) http:web@10.0.0.3>b(3)")
	b.want(b.apply(removed(xds.ClusterType, "b")), "=")
	if p := b.problem(); !strings.Contains(p, `"b"`) {
		t.Errorf("problems %s", p)
	}
	b.want(b.apply(removed(xds.ListenerType, "m", "web")), "")
	if p := b.problem(); p != "" {
		t.Errorf("problems %s", p)
	}

	// An assignment that a source has said it does not give, and that is held, stays.
	b.want(b.apply(some(clusters(eds(t, "c"))), some(listeners(lis(t, "n", "10.0.0.4", "c"))), assignments(cla(t, "c", 4))), "n@10.0.0.4>c(4)")
	b.Absent(xds.AssignmentType, []string{"c"})
	b.want(b.built(), "=")
	if p := b.problem(); !strings.Contains(p, `"c" is gone`) {
		t.Errorf("problems %s", p)
	}
}

// TestDeltaIsTheWorld: the same history, told as the state of the world and as its
// differences, leads to the same snapshots and the same problems.
func TestDeltaIsTheWorld(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 11))
		whole, parts := newBench(t, Options{}), newBench(t, Options{})
		held := map[string]map[string]xds.Resource{xds.ClusterType: {}, xds.ListenerType: {}}
		// difference is what leads from what is held to an update.
		difference := func(u xds.Update) xds.Update {
			now := map[string]xds.Resource{}
			d := xds.Update{Type: u.Type}
			for _, res := range u.Resources {
				now[res.Name] = res
				if old, had := held[u.Type][res.Name]; !had || old.Hash != res.Hash {
					d.Resources = append(d.Resources, res)
				}
			}
			for name := range held[u.Type] {
				if _, still := now[name]; !still {
					d.Removed = append(d.Removed, name)
				}
			}
			held[u.Type] = now
			return d
		}
		names := []string{"a", "b", "c"}
		pick := func() string { return names[r.IntN(len(names))] }
		for step := range 100 {
			var u xds.Update
			switch r.IntN(4) {
			case 0:
				var list []xds.Resource
				for _, n := range names {
					switch r.IntN(5) {
					case 0:
					case 1:
						list = append(list, static(t, n, r.IntN(3))) // port 0 is invalid
					case 2:
						list = append(list, res(t, &clusterv3.Cluster{}, "{name: "+n+", type: EDS, eds_cluster_config: {service_name: "+pick()+"}}"))
					default:
						list = append(list, eds(t, n))
					}
				}
				u = clusters(list...)
			case 1:
				var list []xds.Resource
				for i := range 3 {
					if r.IntN(4) > 0 {
						list = append(list, lis(t, fmt.Sprintf("l%d", i), fmt.Sprintf("10.0.0.%d", 1+r.IntN(4)), pick(), pick()))
					}
				}
				u = listeners(list...)
			default:
				u = assignments(cla(t, pick(), 1+r.IntN(20)))
			}
			d := u
			if u.Complete {
				d = difference(u)
			}
			_ = whole.Apply(context.Background(), u) // the errors differ: what is rejected is not sent again
			_ = parts.Apply(context.Background(), d)
			w, p := settled(whole), settled(parts)
			if text(w) != text(p) || whole.problem() != parts.problem() {
				t.Fatalf("seed %d step %d:\n%s\n%s\n%s\n%s", seed, step, text(w), text(p), whole.problem(), parts.problem())
			}
		}
	}
}
