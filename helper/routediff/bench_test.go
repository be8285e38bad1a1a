// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"testing"

	"kmesh/helper/mesh"
)

// many makes n routes in a virtual host, of which the third last goes elsewhere.
func many(n int, path func(i int) mesh.PathMatch, other string) *mesh.HTTP {
	vh := &mesh.VirtualHost{Name: "v", Domains: []string{"*"}}
	for i := range n {
		cluster := fmt.Sprint("c", i)
		if i == n-3 {
			cluster = other
		}
		vh.Routes = append(vh.Routes, &mesh.Route{
			Name: fmt.Sprint("r", i), Match: mesh.RouteMatch{Path: path(i)},
			Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}},
		})
	}
	return &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{vh}}
}

func BenchmarkCompare(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int
		path func(i int) mesh.PathMatch
	}{
		{"exact", 1000, func(i int) mesh.PathMatch {
			return mesh.PathMatch{Kind: mesh.PathExact, Value: fmt.Sprintf("/api/v%d/svc%d/res", i%7, i)}
		}},
		{"templates", 1000, func(i int) mesh.PathMatch {
			return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf("/v[0-9]+/svc%d/[^/]+/res(/[^/]+)?", i)}
		}},
		{"prefixes", 1000, func(i int) mesh.PathMatch {
			return mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: fmt.Sprintf("/api/v%d/svc%d", i%7, i)}
		}},
		{"infixes", 10, func(i int) mesh.PathMatch {
			return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf(".*/admin%d/.*", i)}
		}},
	} {
		b.Run(fmt.Sprintf("%s-%d", bb.name, bb.n), func(b *testing.B) {
			before, after := many(bb.n, bb.path, "old"), many(bb.n, bb.path, "new")
			for b.Loop() {
				got, err := Compare(before, after, Limits{})
				if err != nil {
					b.Fatal(err)
				}
				if len(got.Changes) != 1 {
					b.Fatalf("%d changes, want 1", len(got.Changes))
				}
			}
		})
	}
	b.Run("hosts-1000", func(b *testing.B) {
		var hs [2]*mesh.HTTP
		for side := range hs {
			hs[side] = &mesh.HTTP{IgnorePort: true}
			for i := range 1000 {
				name := fmt.Sprintf("reviews%d", i)
				cluster := name
				if i == 500 {
					cluster = fmt.Sprint(name, side)
				}
				hs[side].VirtualHosts = append(hs[side].VirtualHosts, &mesh.VirtualHost{
					Name:    name,
					Domains: []string{name + ".default.svc.cluster.local", name, name + ".default", fmt.Sprintf("10.96.%d.%d", i/250, i%250)},
					Routes:  []*mesh.Route{{Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}},
				})
			}
		}
		for b.Loop() {
			got, err := Compare(hs[0], hs[1], Limits{})
			if err != nil {
				b.Fatal(err)
			}
			if len(got.Changes) != 1 {
				b.Fatalf("%d changes, want 1", len(got.Changes))
			}
		}
	})
}
