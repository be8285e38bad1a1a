// SPDX-License-Identifier: Apache-2.0

package api

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
)

// numbers are the kernel's counters, found by the names that the maps hold, which
// may be shorter than the configuration's.
type numbers struct {
	uses    map[[3]string]*apiv1.Counters   // scope, service, cluster
	refused map[[2]string]map[string]uint64 // scope, service: by reason
	active  map[endpointKey]uint64
}

type endpointKey struct {
	scope, cluster string
	addr           netip.AddrPort
}

func newNumbers(c publish.Counters) numbers {
	n := numbers{
		uses:    make(map[[3]string]*apiv1.Counters, len(c.Uses)),
		refused: make(map[[2]string]map[string]uint64),
		active:  make(map[endpointKey]uint64, len(c.Endpoints)),
	}
	for _, u := range c.Uses {
		n.uses[[3]string{u.Scope, u.Service, u.Cluster}] = &apiv1.Counters{
			Opened: u.Opened, Closed: u.Closed, Failed: u.Failed,
			SentBytes: u.Sent, ReceivedBytes: u.Received,
			UdpFlows: u.Flows, Passed: u.Passed,
		}
	}
	for _, r := range c.Refusals {
		key := [2]string{r.Scope, r.Service}
		if n.refused[key] == nil {
			n.refused[key] = make(map[string]uint64)
		}
		n.refused[key][r.Reason.String()] += r.Count
	}
	for _, e := range c.Endpoints {
		n.active[endpointKey{e.Scope, e.Cluster, e.Addr}] += e.Active
	}
	return n
}

// ServicesOf shows a snapshot with the counters that belong to it, ordered by
// scope and name.
func ServicesOf(snap *mesh.Snapshot, counters publish.Counters) *apiv1.ServicesResponse {
	out := &apiv1.ServicesResponse{}
	if snap == nil {
		return out
	}
	n := newNumbers(counters)
	for i := range snap.Scopes {
		scope := &snap.Scopes[i]
		for _, svc := range scope.Services {
			out.Services = append(out.Services, serviceOf(scope, svc, n))
		}
	}
	slices.SortStableFunc(out.Services, func(a, b *apiv1.Service) int {
		return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func serviceOf(scope *mesh.Scope, svc *mesh.Service, n numbers) *apiv1.Service {
	key := publish.ScopeName(scope.Key)
	out := &apiv1.Service{Scope: key, Name: svc.Name, Refused: n.refused[[2]string{key, publish.StoredName(svc.Name)}]}
	for _, f := range svc.Frontends {
		out.Frontends = append(out.Frontends, &apiv1.Frontend{
			Prefix: f.Prefix.String(), Port: uint32(f.Port), Protocol: f.Protocol.String(),
		})
	}
	var total uint64
	for _, w := range svc.Clusters {
		total += uint64(w.Weight)
	}
	for _, w := range svc.Clusters {
		c := &apiv1.ServiceCluster{
			Name: w.Cluster, Weight: w.Weight, Counters: n.uses[[3]string{key, publish.StoredName(svc.Name), publish.StoredName(w.Cluster)}],
		}
		if total > 0 {
			c.Share = float64(w.Weight) / float64(total)
		}
		if cluster := scope.Clusters[w.Cluster]; cluster != nil {
			c.Kind = cluster.Kind.String()
			c.Policy = cluster.Policy.String()
			c.MaxConnections = cluster.MaxConnections
			c.Endpoints = endpointsOf(key, cluster, n)
		}
		out.Clusters = append(out.Clusters, c)
	}
	return out
}

// endpointsOf orders endpoints by priority, then as the control plane gave them.
func endpointsOf(scope string, cluster *mesh.Cluster, n numbers) []*apiv1.Endpoint {
	var out []*apiv1.Endpoint
	for _, l := range cluster.Localities {
		locality := strings.TrimRight(strings.Join([]string{l.Region, l.Zone, l.SubZone}, "/"), "/")
		for _, e := range l.Endpoints {
			out = append(out, &apiv1.Endpoint{
				Address:           e.Addr.String(),
				Health:            e.Health.String(),
				Priority:          l.Priority,
				Weight:            e.Weight,
				Locality:          locality,
				ActiveConnections: n.active[endpointKey{scope, publish.StoredName(cluster.Name), e.Addr}],
			})
		}
	}
	slices.SortStableFunc(out, func(a, b *apiv1.Endpoint) int { return cmp.Compare(a.Priority, b.Priority) })
	return out
}
