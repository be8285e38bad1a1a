// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmesh/helper/mesh"
)

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func ep(i int, weight uint32) mesh.Endpoint {
	return mesh.Endpoint{Addr: addr(i), Weight: weight}
}

func cluster(p mesh.Policy, eps ...mesh.Endpoint) *mesh.Cluster {
	return &mesh.Cluster{Policy: p, Localities: []mesh.Locality{{Endpoints: eps}}}
}

// shares returns each endpoint's exact probability under a table.
func shares(p mesh.Policy, slots []Slot) map[int]float64 {
	got := make(map[int]float64)
	n := float64(len(slots))
	for _, s := range slots {
		if p == mesh.RoundRobin || p == mesh.Maglev {
			got[s.Endpoint] += 1 / n
			continue
		}
		keep := float64(s.Cut) / (1 << 32)
		got[s.Endpoint] += keep / n
		got[slots[s.Alias].Endpoint] += (1 - keep) / n
	}
	return got
}

func TestSharesFollowWeights(t *testing.T) {
	tests := []struct {
		name    string
		weights []uint32
	}{
		{"one", []uint32{7}},
		{"equal", []uint32{1, 1, 1}},
		{"equal but not one", []uint32{100, 100}},
		{"uneven", []uint32{1, 2, 3, 4}},
		{"extreme", []uint32{1, 999}},
		{"prime sum", []uint32{13, 7, 3}},
		{"largest", []uint32{math.MaxUint32, math.MaxUint32, math.MaxUint32 / 2}},
	}
	tolerance := map[mesh.Policy]float64{
		mesh.Random: 1e-6, mesh.LeastRequest: 1e-6,
		mesh.RoundRobin: 1e-3, // extreme weights are scaled
		mesh.Maglev:     0.01,
	}
	for _, tt := range tests {
		for policy, within := range tolerance {
			t.Run(tt.name+"/"+policy.String(), func(t *testing.T) {
				var eps []mesh.Endpoint
				var sum float64
				for i, w := range tt.weights {
					eps = append(eps, ep(i, w))
					sum += float64(w)
				}
				got := shares(policy, Build(cluster(policy, eps...)).V4)
				for i, w := range tt.weights {
					if want := float64(w) / sum; math.Abs(got[i]-want) > within {
						t.Errorf("endpoint %d: share %.6f, want %.6f", i, got[i], want)
					}
				}
			})
		}
	}
}

func TestScheduleSpreadsTurns(t *testing.T) {
	var got []int
	for _, s := range Build(cluster(mesh.RoundRobin, ep(0, 4), ep(1, 2))).V4 {
		got = append(got, s.Endpoint)
	}
	if diff := cmp.Diff([]int{0, 1, 0}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPriorities(t *testing.T) {
	at := func(p uint32, h ...mesh.Health) mesh.Locality {
		l := mesh.Locality{Priority: p, Weight: 1}
		for i, h := range h {
			l.Endpoints = append(l.Endpoints, mesh.Endpoint{Addr: addr(int(p)*10 + i), Weight: 1, Health: h})
		}
		return l
	}
	tests := []struct {
		name string
		locs []mesh.Locality
		want []netip.AddrPort
	}{
		{"the highest that is healthy", []mesh.Locality{at(1, mesh.Healthy), at(0, mesh.Healthy)}, []netip.AddrPort{addr(0)}},
		{"failover when the upper is empty", []mesh.Locality{at(0), at(1, mesh.Healthy)}, []netip.AddrPort{addr(10)}},
		{"failover when the upper is unhealthy", []mesh.Locality{at(0, mesh.Unhealthy, mesh.Draining), at(1, mesh.Healthy)}, []netip.AddrPort{addr(10)}},
		{"one healthy endpoint keeps its priority", []mesh.Locality{at(0, mesh.Unhealthy, mesh.Healthy), at(1, mesh.Healthy)}, []netip.AddrPort{addr(1)}},
		{"healthy below before degraded above", []mesh.Locality{at(0, mesh.Degraded), at(1, mesh.Healthy)}, []netip.AddrPort{addr(10)}},
		{"degraded when nothing is healthy", []mesh.Locality{at(0, mesh.Unhealthy), at(1, mesh.Degraded, mesh.Unhealthy)}, []netip.AddrPort{addr(10)}},
		{"none", []mesh.Locality{at(0, mesh.Unhealthy, mesh.Draining)}, nil},
		{"two localities of one priority", []mesh.Locality{at(0, mesh.Healthy), {Priority: 0, Endpoints: []mesh.Endpoint{ep(5, 1)}}}, []netip.AddrPort{addr(0), addr(5)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Build(&mesh.Cluster{Localities: tt.locs}).Endpoints
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLocalityWeights(t *testing.T) {
	c := &mesh.Cluster{Policy: mesh.Random, LocalityWeighted: true, Localities: []mesh.Locality{
		{Weight: 80, Endpoints: []mesh.Endpoint{ep(0, 1), ep(1, 3)}},
		{Weight: 20, Endpoints: []mesh.Endpoint{ep(2, 5)}},
		{Weight: 0, Endpoints: []mesh.Endpoint{ep(3, 1)}},
	}}
	got := shares(c.Policy, Build(c).V4)
	for i, want := range []float64{0.2, 0.6, 0.2, 0} {
		if math.Abs(got[i]-want) > 1e-5 {
			t.Errorf("endpoint %d: share %f, want %f", i, got[i], want)
		}
	}
}

func TestMaglevDisruption(t *testing.T) {
	const n = 100
	var eps []mesh.Endpoint
	for i := range n {
		eps = append(eps, ep(i, 1))
	}
	owner := func(eps []mesh.Endpoint) []netip.AddrPort {
		b := Build(cluster(mesh.Maglev, eps...))
		var all []netip.AddrPort
		for _, s := range b.V4 {
			all = append(all, b.Endpoints[s.Endpoint])
		}
		return all
	}
	before := owner(eps)
	for gone := 0; gone < n; gone += 9 {
		after := owner(slices.Delete(slices.Clone(eps), gone, gone+1))
		moved := 0
		for i := range before {
			if before[i] != after[i] {
				moved++
			}
		}
		if share := float64(moved) / float64(len(before)); share > 0.03 {
			t.Errorf("without endpoint %d: %.2f %% of the slots moved, want at most 3 %%", gone, 100*share)
		}
	}
}

func TestOrderAndDuplicatesDoNotMatter(t *testing.T) {
	eps := []mesh.Endpoint{ep(1, 1), ep(2, 2), ep(3, 3), ep(4, 1)}
	eps = append(eps, mesh.Endpoint{Addr: netip.MustParseAddrPort("[fd00::1]:80"), Weight: 2})
	for _, policy := range []mesh.Policy{mesh.RoundRobin, mesh.Random, mesh.LeastRequest, mesh.Maglev} {
		want := Build(cluster(policy, eps...))
		if len(want.V6) == 0 {
			t.Fatalf("%v: no table for IPv6", policy)
		}
		for seed := range uint64(20) {
			shuffled := append(slices.Clone(eps), eps[0])
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) {
				shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
			})
			if diff := cmp.Diff(want, Build(cluster(policy, shuffled...)), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Fatalf("%v, seed %d: %s", policy, seed, diff)
			}
		}
	}
}

func TestOtherKindsHaveNoTable(t *testing.T) {
	for _, kind := range []mesh.ClusterKind{mesh.Passthrough, mesh.Blackhole, mesh.Refused} {
		c := cluster(mesh.Random, ep(1, 1))
		c.Kind = kind
		if b := Build(c); b.Endpoints != nil || b.V4 != nil || b.V6 != nil {
			t.Errorf("%v: %+v", kind, b)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, policy := range []mesh.Policy{mesh.RoundRobin, mesh.Random, mesh.Maglev} {
		for _, n := range []int{10, 1000} {
			var eps []mesh.Endpoint
			for i := range n {
				eps = append(eps, ep(i, uint32(i%7+1)))
			}
			c := cluster(policy, eps...)
			b.Run(fmt.Sprintf("%v/%d", policy, n), func(b *testing.B) {
				for b.Loop() {
					Build(c)
				}
			})
		}
	}
}
