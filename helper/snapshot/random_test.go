// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// TestRandomChanges delivers random changes, good and bad, to two stores: one as
// it is, and one that always builds from everything. They must agree, every
// snapshot must be closed, and a listener that was served must stay served while
// the source has it.
func TestRandomChanges(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		quick, slow := newBench(t, Options{}), newBench(t, Options{})
		names := []string{"a", "b", "c", "d"}
		pick := func() string { return names[r.IntN(len(names))] }
		present := map[string]bool{} // listeners at the source
		servedBefore := map[string]bool{}
		snapshots := 0
		for step := range 150 {
			var u xds.Update
			var absent []string
			switch r.IntN(10) {
			case 0:
				var list []xds.Resource
				for _, n := range names {
					switch r.IntN(6) {
					case 0:
					case 1:
						list = append(list, static(t, n, r.IntN(3))) // port 0 is invalid
					case 2:
						list = append(list, res(t, &clusterv3.Cluster{}, "{name: "+n+", type: EDS, eds_cluster_config: {service_name: "+pick()+"}}"))
					case 3:
						list = append(list, res(t, &clusterv3.Cluster{}, "{name: "+n+", type: EDS, transport_socket: {name: tls}}"))
					default:
						list = append(list, eds(t, n))
					}
				}
				u = clusters(list...)
			case 1:
				var list []xds.Resource
				present = map[string]bool{}
				for i := range 4 {
					name := fmt.Sprintf("l%d", i)
					switch r.IntN(6) {
					case 0:
						continue
					case 1:
						list = append(list, lis(t, name, "not-an-address", pick()))
					case 2, 3:
						list = append(list, hcm(t, name, fmt.Sprintf("10.0.0.%d", 1+r.IntN(5)), "r"+pick()))
					default:
						list = append(list, lis(t, name, fmt.Sprintf("10.0.0.%d", 1+r.IntN(5)), pick(), pick()))
					}
					present[name] = true
				}
				u = listeners(list...)
			case 2:
				absent = []string{pick(), "r" + pick()}
			case 3:
				u = routes(rds(t, "r"+pick(), pick(), pick()))
			case 4:
				u = routes(rds(t, "r"+pick())) // no virtual host is valid, no cluster is not
			default:
				u = assignments(cla(t, pick(), r.IntN(20), 1+r.IntN(20))) // port 0 is invalid
			}
			slow.dirty.remake()
			slow.wantedNames = nil
			if absent != nil {
				for _, b := range []*bench{quick, slow} {
					b.Absent(xds.AssignmentType, absent[:1])
					b.Absent(xds.RouteType, absent[1:])
				}
			} else {
				errQ := quick.Apply(context.Background(), u)
				errS := slow.Apply(context.Background(), u)
				if fmt.Sprint(errQ) != fmt.Sprint(errS) {
					t.Fatalf("seed %d step %d: %v and %v", seed, step, errQ, errS)
				}
			}
			if r.IntN(3) == 0 {
				continue // several changes in one build
			}
			q, s := settled(quick), settled(slow)
			if text(q) != text(s) || quick.problem() != slow.problem() {
				t.Fatalf("seed %d step %d:\n%s\n%s\n%s\n%s", seed, step, text(q), text(s), quick.problem(), slow.problem())
			}
			if fmt.Sprint(states(quick)) != fmt.Sprint(states(slow)) {
				t.Fatalf("seed %d step %d: states\n%v\n%v", seed, step, states(quick), states(slow))
			}
			if q == nil {
				continue
			}
			snapshots++
			now := closed(t, q)
			for name := range servedBefore {
				if present[name] && !now[name] {
					t.Fatalf("seed %d step %d: %s is not served any more\n%s\n%s", seed, step, name, text(q), quick.problem())
				}
			}
			servedBefore = now
		}
		if snapshots < 5 {
			t.Fatalf("seed %d: only %d snapshots", seed, snapshots)
		}
	}
}

// settled builds until nothing changes any more, as Run does.
func settled(b *bench) (last *mesh.Snapshot) {
	for {
		snap, _ := b.step()
		if snap == nil {
			return last
		}
		last = snap
	}
}

func states(b *bench) []string {
	var out []string
	for _, r := range b.Status().Resources {
		out = append(out, r.Type+" "+r.Name+" "+string(r.State))
	}
	return out
}

// closed checks what the model promises of a snapshot, and returns its listeners.
func closed(t *testing.T, s *mesh.Snapshot) map[string]bool {
	t.Helper()
	scope := s.Scopes[0]
	used, names, owned := map[string]bool{}, map[string]bool{}, map[mesh.Frontend]bool{}
	for _, list := range [][]*mesh.Service{scope.Services, scope.HTTP} {
		for i, svc := range list {
			if i > 0 && list[i-1].Name >= svc.Name {
				t.Fatalf("services are not sorted: %s", text(s))
			}
		}
	}
	for _, svc := range slices.Concat(scope.Services, scope.HTTP) {
		if names[svc.Name] {
			t.Fatalf("service %q twice: %s", svc.Name, text(s))
		}
		names[svc.Name] = true
		clustersOf(svc, func(name string) {
			used[name] = true
			if c := scope.Clusters[name]; c == nil || c.Name != name {
				t.Fatalf("cluster %q is missing: %s", name, text(s))
			}
		})
		for _, f := range svc.Frontends {
			if owned[f] {
				t.Fatalf("frontend %v twice: %s", f, text(s))
			}
			owned[f] = true
		}
	}
	if len(used) != len(scope.Clusters) {
		t.Fatalf("%d clusters, %d used: %s", len(scope.Clusters), len(used), text(s))
	}
	return names
}
