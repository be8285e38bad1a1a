// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"slices"

	"kmesh/helper/mesh"
)

// Without returns the configuration without clusters that cannot be used. A
// virtual host that names one keeps its version in last, if it has the same
// domains there: what was served stays served. One that has none answers 503 where
// the cluster would be used, as Envoy does; refused has the names of those.
func (rc *RouteConfig) Without(last *RouteConfig, unusable func(cluster string) bool) (out *RouteConfig, refused map[string]bool) {
	older := map[string]*mesh.VirtualHost{}
	if last != nil {
		for _, vh := range last.HTTP.VirtualHosts {
			if !last.refused[vh.Name] {
				older[vh.Name] = vh
			}
		}
	}
	next := *rc
	http := *rc.HTTP
	http.VirtualHosts = slices.Clone(http.VirtualHosts)
	next.HTTP, next.faults = &http, maps.Clone(rc.faults)
	refused = map[string]bool{}
	next.refused = refused
	for i, vh := range http.VirtualHosts {
		bad := func(r *mesh.Route) bool {
			return slices.ContainsFunc(r.Clusters, func(c mesh.WeightedCluster) bool { return unusable(c.Cluster) })
		}
		if !slices.ContainsFunc(vh.Routes, bad) {
			continue
		}
		if o := older[vh.Name]; o != nil && slices.Equal(o.Domains, vh.Domains) {
			http.VirtualHosts[i] = o
			for _, r := range o.Routes {
				if f, ok := last.faults[r]; ok {
					next.faults[r] = f
				}
			}
			continue
		}
		clone := *vh
		clone.Routes = slices.Clone(vh.Routes)
		for j, r := range clone.Routes {
			if bad(r) {
				clone.Routes[j] = &mesh.Route{Name: r.Name, Match: r.Match, Unsupported: true}
			}
		}
		http.VirtualHosts[i] = &clone
		refused[vh.Name] = true
	}
	return &next, refused
}
