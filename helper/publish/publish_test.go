// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

func TestMain(m *testing.M) {
	if err := bpf.CheckBPFFS(testRoot); err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root and a bpffs:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const testRoot = "/sys/fs/bpf"

func load(t testing.TB, sizes map[string]uint32) *bpf.Runtime {
	t.Helper()
	dir := fmt.Sprintf("%s/kmesh_publish_%d_%d", testRoot, os.Getpid(), time.Now().UnixNano())
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: dir, MaxEntries: sizes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rt.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return rt
}

func publisher(t testing.TB, rt *bpf.Runtime) *Publisher {
	t.Helper()
	p, err := New(rt, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func publish(t testing.TB, p *Publisher, s *mesh.Snapshot) Result {
	t.Helper()
	res, err := p.Publish(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func endpoints(n, from int) []mesh.Endpoint {
	var eps []mesh.Endpoint
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(from >> 8), byte(from), byte(i + 1)})
		if i%3 == 2 {
			a = netip.MustParseAddr(fmt.Sprintf("fd00::%x:%x", from+1, i+1))
		}
		eps = append(eps, mesh.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: uint32(i%4 + 1)})
	}
	return eps
}

func snapshot(services map[string]*mesh.Service, clusters map[string]*mesh.Cluster) *mesh.Snapshot {
	sc := mesh.Scope{Clusters: clusters}
	for _, s := range services {
		sc.Services = append(sc.Services, s)
	}
	return &mesh.Snapshot{Scopes: []mesh.Scope{sc}}
}

func oneService(eps []mesh.Endpoint) *mesh.Snapshot {
	return snapshot(
		map[string]*mesh.Service{"s": {
			Name:      "s",
			Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix("10.96.0.1/32"), Port: 80, Protocol: mesh.TCP}},
			Clusters:  []mesh.WeightedCluster{{Cluster: "c", Weight: 1}},
		}},
		map[string]*mesh.Cluster{"c": {Name: "c", Localities: []mesh.Locality{{Endpoints: eps}}}})
}

// same holds two mirrors and their free spaces against each other.
func same(t *testing.T, what string, a, b *Publisher) {
	t.Helper()
	opts := cmp.Options{cmp.AllowUnexported(tables{}, name{}, cluster{}, vhost{}, route{}, reply{}), cmpopts.EquateEmpty(), cmpopts.IgnoreTypes(struct{}{})}
	if diff := cmp.Diff(a.now, b.now, opts); diff != "" {
		t.Fatalf("%s: %s", what, diff)
	}
	space := func(p *Publisher) []extents {
		return append([]extents{p.free, p.freeRoutes, p.freeShares}, p.programs.free...)
	}
	if diff := cmp.Diff(space(a), space(b), opts); diff != "" {
		t.Fatalf("%s: free slots, routes, shares, slabs: %s", what, diff)
	}
}

func TestSlotSize(t *testing.T) {
	if got := unsafe.Sizeof(bpf.Slot{}); got != slotSize {
		t.Errorf("sizeof(struct slot) is %d, slotSize %d", got, slotSize)
	}
}

// TestRandomHistory publishes random snapshots, one after another, and holds what
// the maps say against what was asked, by name.
func TestRandomHistory(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rt := load(t, map[string]uint32{"km_slots": 4096})
	p := publisher(t, rt)
	policies := []mesh.Policy{mesh.RoundRobin, mesh.Random, mesh.LeastRequest, mesh.Maglev}
	for step := range 60 {
		clusters := make(map[string]*mesh.Cluster)
		for i := range rng.IntN(12) + 1 {
			name := fmt.Sprintf("c%d", i)
			clusters[name] = &mesh.Cluster{
				Name: name, Policy: policies[rng.IntN(4)], MaglevTableSize: 53,
				Kind:       []mesh.ClusterKind{mesh.Endpoints, mesh.Endpoints, mesh.Endpoints, mesh.Passthrough, mesh.Blackhole, mesh.Refused}[rng.IntN(6)],
				Localities: []mesh.Locality{{Endpoints: endpoints(rng.IntN(20), rng.IntN(3))}},
			}
		}
		services := make(map[string]*mesh.Service)
		for i := range rng.IntN(20) {
			name := fmt.Sprintf("s%d", i)
			if i%5 == 0 {
				name = strings.Repeat("long", 80) + name
			}
			s := &mesh.Service{Name: name, Clusters: []mesh.WeightedCluster{{Cluster: "c0", Weight: rng.Uint32N(9) + 1}}}
			s.Frontends = []mesh.Frontend{
				{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), 32), Port: uint16(rng.IntN(2) + 80), Protocol: mesh.TCP},
				{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 97, byte(i), 0}), 24), Port: uint16(rng.IntN(2)), Protocol: mesh.UDP},
			}
			services[name] = s
		}
		snap := snapshot(services, clusters)
		publish(t, p, snap)
		same(t, fmt.Sprintf("step %d: read back", step), p, publisher(t, rt))
		checkAgainst(t, p, snap)
		// A part of the clusters changes, and nothing else: the short way.
		next := &mesh.Snapshot{Scopes: []mesh.Scope{{Services: snap.Scopes[0].Services, Clusters: maps.Clone(clusters)}}}
		for name, c := range clusters {
			if rng.IntN(3) == 0 {
				n := *c
				n.Policy = policies[rng.IntN(4)]
				n.Localities = []mesh.Locality{{Endpoints: endpoints(rng.IntN(20), rng.IntN(3))}}
				next.Scopes[0].Clusters[name] = &n
			}
		}
		if _, ok := p.changes(next); !ok {
			t.Fatalf("step %d: a change of clusters alone went the long way", step)
		}
		publish(t, p, next)
		same(t, fmt.Sprintf("step %d: the short way, read back", step), p, publisher(t, rt))
		checkAgainst(t, p, next)
		snap = next
		if again := publish(t, p, snap); again.Written+again.Deleted != 0 {
			t.Fatalf("step %d: the same snapshot again wrote %d and deleted %d", step, again.Written, again.Deleted)
		}
		if rng.IntN(4) == 0 {
			p = publisher(t, rt) // a restart
		}
	}
	publish(t, p, &mesh.Snapshot{})
	if diff := cmp.Diff(allFree(4096), p.free, cmpopts.IgnoreTypes(struct{}{})); diff != "" {
		t.Errorf("slots leaked: %s", diff)
	}
	for _, name := range rt.MapNames() {
		if name == "km_slots" {
			continue // an array: always full
		}
		// The grammar of responses, and the programs' own answers.
		want := map[string]int{"km_vhosts": 1, "km_replies": len(programStatuses) + 1}[name]
		if n := len(rawKeys(t, rt, name)); n != want {
			t.Errorf("%s: %d entries left after an empty snapshot, want %d", name, n, want)
		}
	}
}

func rawKeys(t *testing.T, rt *bpf.Runtime, name string) [][]byte {
	t.Helper()
	var keys [][]byte
	var k, v []byte
	it := rt.Map(name).Iterate()
	for it.Next(&k, &v) {
		keys = append(keys, append([]byte(nil), k...))
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return keys
}

// checkAgainst follows every frontend through the maps to its endpoints.
func checkAgainst(t *testing.T, p *Publisher, s *mesh.Snapshot) {
	t.Helper()
	sc := s.Scopes[0]
	for _, svc := range sc.Services {
		f := svc.Frontends[0]
		words, family := bpf.AddrWords(f.Prefix.Addr())
		var id uint32
		key := bpf.FrontendKey{Proto: uint8(f.Protocol), Family: family, Port: bpf.PortWord(f.Port), Addr: words}
		if err := p.rt.Frontends.Lookup(key, &id); err != nil {
			t.Fatalf("%s: %v", svc.Name, err)
		}
		var v bpf.Service
		if err := p.rt.Services.Lookup(id, &v); err != nil {
			t.Fatalf("%s: %v", svc.Name, err)
		}
		if v.Total != svc.Clusters[0].Weight || v.N != 1 {
			t.Fatalf("%s: %+v", svc.Name, v)
		}
		var c bpf.Cluster
		if err := p.rt.Clusters.Lookup(v.Shares[0].Cluster, &c); err != nil {
			t.Fatalf("%s: %v", svc.Name, err)
		}
		got := make(map[netip.AddrPort]bool)
		for _, x := range []bpf.Extent{c.V4, c.V6} {
			for i := range x.N {
				var slot bpf.Slot
				var e bpf.Endpoint
				if err := p.rt.Slots.Lookup(x.Offset+i, &slot); err != nil {
					t.Fatal(err)
				}
				if err := p.rt.Endpoints.Lookup(slot.Endpoint, &e); err != nil {
					t.Fatalf("%s: slot %d names endpoint %d: %v", svc.Name, x.Offset+i, slot.Endpoint, err)
				}
				var active uint64
				if err := p.rt.Active.Lookup(slot.Endpoint, &active); err != nil {
					t.Fatalf("%s: endpoint %d has no count of connections: %v", svc.Name, slot.Endpoint, err)
				}
				got[endpointAddr(e)] = true
			}
		}
		want := make(map[netip.AddrPort]bool)
		if cl := sc.Clusters["c0"]; cl.Kind == mesh.Endpoints {
			for _, e := range cl.Localities[0].Endpoints {
				want[e.Addr] = true
			}
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Fatalf("%s: endpoints: %s", svc.Name, diff)
		}
	}
}

func TestIdsNeverComeBack(t *testing.T) {
	rt := load(t, nil)
	p := publisher(t, rt)
	seen := make(map[uint32]bool)
	for i := range 10 {
		publish(t, p, oneService(endpoints(3, i)))
		for id := range p.now.endpoints {
			if seen[id] {
				t.Fatalf("round %d: endpoint id %d was given out before", i, id)
			}
			seen[id] = true
		}
		p = publisher(t, rt)
	}
}

func TestRefusedSnapshotsChangeNothing(t *testing.T) {
	good := oneService(endpoints(3, 0))
	conflict := oneService(endpoints(4, 0))
	second := *conflict.Scopes[0].Services[0]
	second.Name = "other"
	conflict.Scopes[0].Services = append(conflict.Scopes[0].Services, &second)
	dangling := oneService(nil)
	dangling.Scopes[0].Clusters = nil
	weights := oneService(endpoints(3, 1))
	weights.Scopes[0].Services[0].Clusters = []mesh.WeightedCluster{{Cluster: "c", Weight: 1<<32 - 1}, {Cluster: "c", Weight: 1}}
	zero := oneService(endpoints(3, 1))
	zero.Scopes[0].Services[0].Clusters[0].Weight = 0
	maglev := oneService(endpoints(3, 1))
	maglev.Scopes[0].Clusters["c"].Policy = mesh.Maglev
	tests := []struct {
		name string
		snap *mesh.Snapshot
		want string
	}{
		{"two services with one frontend", conflict, "another service has the same frontend"},
		{"dangling cluster", dangling, `cluster "c" is not in the snapshot`},
		{"weights overflow", weights, "weights sum to 4294967296"},
		{"no weight", zero, "weights sum to 0"},
		{"too many endpoints", oneService(endpoints(40, 1)), "map km_endpoints holds 3 of 32"},
		{"too many slots", maglev, "no 16381 slots in a row"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rt := load(t, map[string]uint32{"km_endpoints": 32, "km_slots": 64})
			p := publisher(t, rt)
			before := publish(t, p, good)
			if _, err := p.Publish(context.Background(), tt.snap); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one that says %q", err, tt.want)
			}
			if g, live := p.Live(); g != before.Generation || !live {
				t.Errorf("generation %d, live %v after a refusal", g, live)
			}
			checkAgainst(t, p, goodNamed(good))
			if res := publish(t, p, good); len(res.Removed) != 0 {
				t.Errorf("going back removed %v", res.Removed)
			}
			same(t, "after going back", p, publisher(t, rt))
		})
	}
}

// goodNamed renames the cluster for checkAgainst, which looks for c0.
func goodNamed(s *mesh.Snapshot) *mesh.Snapshot {
	sc := s.Scopes[0]
	sc.Clusters = map[string]*mesh.Cluster{"c0": sc.Clusters["c"]}
	return &mesh.Snapshot{Scopes: []mesh.Scope{sc}}
}

func TestStateBecomesLive(t *testing.T) {
	rt := load(t, nil)
	if st, err := bpf.ReadState(rt.BPFFS); err != nil || st.Phase != bpf.PhaseLoaded || st.ABI != bpf.ABI {
		t.Fatalf("after load: %+v, %v", st, err)
	}
	p := publisher(t, rt)
	publish(t, p, &mesh.Snapshot{})
	if st, err := bpf.ReadState(rt.BPFFS); err != nil || st.Phase != bpf.PhaseLive || st.Generation != 1 {
		t.Fatalf("after an empty snapshot: %+v, %v", st, err)
	}
	publish(t, p, oneService(endpoints(3, 0)))
	if st, err := bpf.ReadState(rt.BPFFS); err != nil || st.Generation != 2 {
		t.Fatalf("after a change: %+v, %v", st, err)
	}
	publish(t, p, oneService(endpoints(3, 0)))
	if st, err := bpf.ReadState(rt.BPFFS); err != nil || st.Generation != 2 {
		t.Fatalf("after no change: %+v, %v", st, err)
	}
}

func BenchmarkPublish(b *testing.B) {
	const services, perService = 10_000, 10
	rt := load(b, nil)
	build := func() *mesh.Snapshot {
		sv, cl := make(map[string]*mesh.Service), make(map[string]*mesh.Cluster)
		for i := range services {
			name := fmt.Sprintf("outbound|80||svc-%d.default.svc.cluster.local", i)
			cl[name] = &mesh.Cluster{Name: name, Policy: mesh.LeastRequest, Localities: []mesh.Locality{{Endpoints: endpoints(perService, i)}}}
			sv[name] = &mesh.Service{Name: name, Clusters: []mesh.WeightedCluster{{Cluster: name, Weight: 1}},
				Frontends: []mesh.Frontend{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 32), Port: 80, Protocol: mesh.TCP}}}
		}
		return snapshot(sv, cl)
	}
	b.Run("cold-10k-services-100k-endpoints", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			p := publisher(b, rt)
			publish(b, p, &mesh.Snapshot{})
			b.StartTimer()
			publish(b, p, build())
		}
	})
	b.Run("one-endpoint-of-100k", func(b *testing.B) {
		p, s := publisher(b, rt), build()
		publish(b, p, s)
		c := s.Scopes[0].Clusters["outbound|80||svc-77.default.svc.cluster.local"]
		n := 0
		for b.Loop() {
			n++
			next := *c
			next.Localities = []mesh.Locality{{Endpoints: endpoints(perService-n%2, 77)}}
			s = &mesh.Snapshot{Scopes: []mesh.Scope{{Services: s.Scopes[0].Services, Clusters: maps.Clone(s.Scopes[0].Clusters)}}}
			s.Scopes[0].Clusters[c.Name] = &next
			publish(b, p, s)
		}
	})
}
