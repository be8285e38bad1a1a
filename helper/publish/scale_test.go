// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"kmesh/helper/mesh"
)

// manyHosts are 10,000 virtual hosts of one listener, as a control plane makes them of
// 10,000 services: each with one route. One in other has conditions of its own.
func manyHosts(n, other int) *mesh.Snapshot {
	sc := mesh.Scope{Clusters: make(map[string]*mesh.Cluster)}
	h := &mesh.HTTP{IgnorePort: true}
	for i := range n {
		name := fmt.Sprintf("svc-%d.default.svc.cluster.local", i)
		c := fmt.Sprintf("outbound|80||%s", name)
		sc.Clusters[c] = &mesh.Cluster{Name: c, Policy: mesh.LeastRequest, Localities: []mesh.Locality{{Endpoints: endpoints(10, i)}}}
		r := forward("/", c)
		if i%other == 0 {
			r.Match.Path.Value = fmt.Sprintf("/api/%d/", i)
		}
		h.VirtualHosts = append(h.VirtualHosts, &mesh.VirtualHost{
			Name: name + ":80", Routes: []*mesh.Route{r},
			Domains: []string{name, fmt.Sprintf("svc-%d", i), fmt.Sprintf("svc-%d.default", i), netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()},
		})
	}
	sc.HTTP = []*mesh.Service{{Name: "0.0.0.0_80", HTTP: h, Frontends: []mesh.Frontend{frontend("0.0.0.0/0", 80)}}}
	return &mesh.Snapshot{Scopes: []mesh.Scope{sc}}
}

func BenchmarkPublishHTTP(b *testing.B) {
	const n = 10_000
	for _, other := range []int{n, 100} {
		rt := load(b, nil)
		s := manyHosts(n, other)
		b.Run(fmt.Sprintf("cold-10k-hosts-%d-programs", n/other+1), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				p := publisher(b, rt)
				publish(b, p, &mesh.Snapshot{})
				b.StartTimer()
				publish(b, p, s)
				b.StopTimer()
				used := 0
				for _, x := range p.programs.at {
					used += x.size
				}
				b.ReportMetric(float64(used)/1024, "KiB-slabs")
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("one-route-%d-programs", n/other+1), func(b *testing.B) {
			p := publisher(b, rt)
			publish(b, p, s)
			i := 0
			for b.Loop() {
				i++
				sc := s.Scopes[0]
				svc := *sc.HTTP[0]
				h := *svc.HTTP
				h.VirtualHosts = slices.Clone(h.VirtualHosts)
				vh := *h.VirtualHosts[77]
				r := *vh.Routes[0]
				r.Match.Path.Value = fmt.Sprintf("/v%d", i)
				vh.Routes = []*mesh.Route{&r}
				h.VirtualHosts[77], svc.HTTP, sc.HTTP = &vh, &h, []*mesh.Service{&svc}
				s = &mesh.Snapshot{Scopes: []mesh.Scope{sc}}
				publish(b, p, s)
			}
		})
		b.Run(fmt.Sprintf("restart-%d-programs", n/other+1), func(b *testing.B) {
			for b.Loop() {
				p := publisher(b, rt)
				publish(b, p, s)
			}
		})
	}
}
