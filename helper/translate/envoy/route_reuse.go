// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"reflect"
	"slices"

	"kmesh/helper/mesh"
)

// Adopt replaces the virtual hosts that are equal to those of an older version by
// them: what has not changed keeps its identity. A RouteConfiguration holds the
// routes of many services, and is sent again whole when one of them changes.
func (rc *RouteConfig) Adopt(old *RouteConfig) {
	if rc.HTTP == nil || old == nil || old.HTTP == nil {
		return
	}
	// Most of them are the same already if they were translated one by one.
	var byName map[string]*mesh.VirtualHost
	for i, vh := range rc.HTTP.VirtualHosts {
		if i < len(old.HTTP.VirtualHosts) && old.HTTP.VirtualHosts[i] == vh {
			continue
		}
		if byName == nil {
			byName = make(map[string]*mesh.VirtualHost, len(old.HTTP.VirtualHosts))
			for _, vh := range old.HTTP.VirtualHosts {
				byName[vh.Name] = vh
			}
		}
		o := byName[vh.Name]
		if o == nil || o == vh || !reflect.DeepEqual(vh, o) {
			continue
		}
		same := true
		for j, r := range vh.Routes {
			same = same && reflect.DeepEqual(rc.faults[r], old.faults[o.Routes[j]])
		}
		if !same {
			continue
		}
		for j, r := range vh.Routes {
			if f, ok := rc.faults[r]; ok {
				delete(rc.faults, r)
				rc.faults[o.Routes[j]] = f
			}
		}
		rc.HTTP.VirtualHosts[i] = o
	}
}

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
