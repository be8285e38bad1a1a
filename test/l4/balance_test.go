// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	"kmesh/helper/mesh"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// sample makes n connections and returns how many each server got.
type sample func(n int) map[string]int

// wantShares fails unless each count is within 3 standard deviations of n*p; a share
// of 0 must not be seen at all. One of several hundred right samples is farther off,
// so a sample that is gets a second chance: both are wrong by chance once in a
// hundred thousand runs.
func wantShares(t *testing.T, get sample, n int, want map[string]float64) {
	t.Helper()
	problems := offShares(get(n), n, want)
	if len(problems) > 0 {
		t.Logf("a second sample, because of the first: %v", problems)
		problems = offShares(get(n), n, want)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

func offShares(got map[string]int, n int, want map[string]float64) (problems []string) {
	total := 0
	for name, p := range want {
		total += got[name]
		sigma := math.Sqrt(float64(n) * p * (1 - p))
		if off := math.Abs(float64(got[name]) - float64(n)*p); off > 3*sigma {
			problems = append(problems, fmt.Sprintf("%s: %d of %d, want %.0f within 3 standard deviations (%.0f)", name, got[name], n, float64(n)*p, 3*sigma))
		}
	}
	if total != n {
		problems = append(problems, fmt.Sprintf("%d of %d went to the named ones: %v", total, n, got))
	}
	return problems
}

// vipSample dials the VIP from a pod and fails on any error.
func (b *bed) vipSample(p *node.Pod, parallel int) sample {
	return func(n int) map[string]int {
		b.Helper()
		got := b.dialN(p, n, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}, Parallel: parallel})
		b.wantErrnos(got, nil)
		return got.Servers
	}
}

// TestWeightedClusters: 90/10 over 10,000 connections, a weight of 0, any sum.
func TestWeightedClusters(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "v", 3)
	client := b.pod("client", true)
	for _, c := range []struct {
		name    string
		n       int
		weights []uint32
	}{
		{"90/10", 10_000, []uint32{90, 10, 0}},
		{"sum of 7", 2_000, []uint32{1, 2, 4}},
		{"a single one", 200, []uint32{0, 1, 0}},
		{"the largest sum", 2_000, []uint32{math.MaxUint32 - 2_000_000_000, 1_000_000_000, 1_000_000_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.publish(serve(mesh.TCP, to("c0", mesh.Random, s[0].v4), to("c1", mesh.Random, s[1].v4), to("c2", mesh.Random, s[2].v4)).weights(c.weights...))
			sum := 0.0
			for _, w := range c.weights {
				sum += float64(w)
			}
			want := make(map[string]float64)
			for i, w := range c.weights {
				want[s[i].pod.Name] = float64(w) / sum
			}
			wantShares(t, b.vipSample(client, 4), c.n, want)
		})
	}
}

// TestPolicies: each policy spreads over endpoints by their weights.
func TestPolicies(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 3)
	client := b.pod("client", true)
	const n = 3000
	for _, policy := range []mesh.Policy{mesh.RoundRobin, mesh.Random, mesh.LeastRequest, mesh.Maglev} {
		for name, weights := range map[string][]uint32{"equal": {1, 1, 1}, "1:2:3": {1, 2, 3}} {
			t.Run(policy.String()+"/"+name, func(t *testing.T) {
				c := to("c", policy, v4s(s)...)
				sum := 0.0
				for i, w := range weights {
					c.Localities[0].Endpoints[i].Weight = w
					sum += float64(w)
				}
				b.publish(serve(mesh.TCP, c))
				want := make(map[string]float64)
				for i, w := range weights {
					want[s[i].pod.Name] = float64(w) / sum
				}
				get := b.vipSample(client, 1)
				switch policy {
				case mesh.RoundRobin: // exact
					got := get(n)
					for name, p := range want {
						if math.Abs(float64(got[name])-n*p) > 1 {
							t.Errorf("%s: %d of %d, want exactly %.0f", name, got[name], n, n*p)
						}
					}
				case mesh.LeastRequest:
					// The last connection may still be counted: shares even out a
					// little. No endpoint may be far off.
					got := get(n)
					for name, p := range want {
						if off := math.Abs(float64(got[name])/n - p); off > 0.08 {
							t.Errorf("%s: share %.3f, want about %.3f", name, float64(got[name])/n, p)
						}
					}
				default:
					wantShares(t, get, n, want)
				}
			})
		}
	}
}

// TestLeastRequestAvoidsTheBusy: an endpoint that holds connections is chosen only
// when both draws give it.
func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 2)
	client := b.pod("client", true)
	// Ten connections that stay, all on e0.
	b.publish(serve(mesh.TCP, to("c", mesh.LeastRequest, s[0].v4)))
	for range 10 {
		if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), Keep: true}); res.Server != "e0" {
			t.Fatalf("%+v", res)
		}
	}
	b.publish(serve(mesh.TCP, to("c", mesh.LeastRequest, v4s(s)...)))
	const n = 2000
	wantShares(t, b.vipSample(client, 1), n, map[string]float64{"e0": 0.25, "e1": 0.75})
}

// TestMaglevBySource: with a source hash a pod keeps its endpoint, and another
// endpoint's removal does not move it.
func TestMaglevBySource(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 4)
	svc := serve(mesh.TCP, to("c", mesh.Maglev, v4s(s)...))
	svc.HashSource = true
	b.publish(svc)
	client := b.pod("client", true)
	got := b.dialN(client, 200, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}})
	b.wantErrnos(got, nil)
	if len(got.Servers) != 1 {
		t.Fatalf("one pod was sent to %v", got.Servers)
	}
	for i := range s {
		if got.Servers[s[i].pod.Name] > 0 {
			continue
		}
		rest := append(append([]netip.AddrPort(nil), v4s(s)[:i]...), v4s(s)[i+1:]...)
		svc := serve(mesh.TCP, to("c", mesh.Maglev, rest...))
		svc.HashSource = true
		b.publish(svc)
		after := b.dialN(client, 50, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}})
		for name := range got.Servers {
			if after.Servers[name] != 50 {
				t.Errorf("without %s the pod moved from %s: %v", s[i].pod.Name, name, after.Servers)
			}
		}
		break
	}
}

// TestFailover: a lower priority serves only while the upper one has nothing
// healthy.
func TestFailover(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 3)
	client := b.pod("client", true)
	c := func(health ...mesh.Health) *mesh.Cluster {
		c := &mesh.Cluster{Name: "c", Policy: mesh.RoundRobin}
		for i, h := range health {
			c.Localities = append(c.Localities, mesh.Locality{Priority: uint32(min(i, 1)),
				Endpoints: []mesh.Endpoint{{Addr: s[i].v4, Weight: 1, Health: h}}})
		}
		return c
	}
	for _, step := range []struct {
		name    string
		cluster *mesh.Cluster
		want    map[string]float64
	}{
		{"upper healthy", c(mesh.Healthy, mesh.Healthy, mesh.Healthy), map[string]float64{"e0": 1}},
		{"upper down", c(mesh.Unhealthy, mesh.Healthy, mesh.Healthy), map[string]float64{"e1": 0.5, "e2": 0.5}},
		{"upper draining, lower half", c(mesh.Draining, mesh.Unhealthy, mesh.Healthy), map[string]float64{"e2": 1}},
		{"upper back", c(mesh.Healthy, mesh.Healthy, mesh.Healthy), map[string]float64{"e0": 1}},
	} {
		b.publish(serve(mesh.TCP, step.cluster))
		got := b.dialN(client, 100, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}})
		b.wantErrnos(got, nil)
		for name, share := range step.want {
			if got.Servers[name] != int(share*100) {
				t.Errorf("%s: %v, want %v", step.name, got.Servers, step.want)
			}
		}
	}
}
