// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// RouteUse is a published route and the requests that it took, of all pods.
type RouteUse struct {
	Scope, Service string
	VirtualHost    *mesh.VirtualHost
	Index          int    // in the virtual host
	Name           string // what the counters are under
	Requests       uint64
}

// Route is the route itself.
func (u *RouteUse) Route() *mesh.Route { return u.VirtualHost.Routes[u.Index] }

// RouteUses returns the routes of the last publication of this run, by service and
// virtual host, in the order in which they are tried.
func (p *Publisher) RouteUses(ctx context.Context) ([]RouteUse, error) {
	requests := make(map[uint32]uint64)
	err := readCounted(ctx, p.rt, "km_requests", func(k bpf.RequestKey, v bpf.RequestStats) { requests[k.Route] += v.Count })
	if err != nil {
		return nil, fmt.Errorf("requests of routes: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	inner := make(map[uint32]bool) // made by everyCluster: no request takes its route
	for _, h := range p.now.http {
		inner[h.All] = true
	}
	var out []RouteUse
	for key, id := range p.hostIDs {
		host, svc := p.now.vhosts[id], p.now.names[key.service]
		if inner[id] || len(host.routes) != len(key.vh.Routes) {
			continue
		}
		for i := range host.routes {
			route := host.routes[i].value.Id
			out = append(out, RouteUse{
				Scope: p.now.names[svc.scope].name, Service: svc.name, VirtualHost: key.vh, Index: i,
				Name: p.now.names[route].name, Requests: requests[route],
			})
		}
	}
	slices.SortFunc(out, func(a, b RouteUse) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Service, b.Service),
			cmp.Compare(a.VirtualHost.Name, b.VirtualHost.Name), cmp.Compare(a.Index, b.Index))
	})
	return out, nil
}
