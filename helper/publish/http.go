// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

// compileAlways enters what the programs need whatever the mesh is: the grammar of
// responses, and the answers that they give on their own account.
func (p *Publisher) compileAlways(want *tables) {
	want.vhosts[bpf.VHostResponse] = vhost{program: p.programs.enter(automaton.Response().Bytes)}
	for _, status := range programStatuses {
		want.replies[uint32(status)] = statusReply(status)
	}
	want.replies[bpf.ReplyOverflow] = overflowReply()
}

// httpService is a service whose requests are routed, on its way into the tables.
type httpService struct {
	id     uint32
	svc    *mesh.Service
	value  bpf.HTTP
	vhosts []uint32 // ids, in the order of the model
}

// compileHTTP enters the hosts and virtual hosts of a service. Its own value comes
// last: it depends on whether there are guesses.
func (c *scopeCompiler) compileHTTP(id uint32, svc *mesh.Service) (*httpService, error) {
	h := &httpService{id: id, svc: svc}
	if svc.HTTP.IgnorePort {
		h.value.Flags |= bpf.HTTPIgnorePort
	}
	starOnly := true
	for _, vh := range svc.HTTP.VirtualHosts {
		vhostID, err := c.compileVHost(id, svc, vh)
		if err != nil {
			return nil, fmt.Errorf("service %q: %w", svc.Name, err)
		}
		h.vhosts = append(h.vhosts, vhostID)
		for _, domain := range vh.Domains {
			if domain == "*" {
				if h.value.Star == 0 {
					h.value.Star = vhostID
				}
				continue
			}
			starOnly = false
			if err := c.addDomain(h, domain, vhostID); err != nil {
				return nil, fmt.Errorf("service %q: virtual host %q: %w", svc.Name, vh.Name, err)
			}
		}
	}
	if starOnly {
		h.value.Flags |= bpf.HTTPStarOnly
	}
	if len(h.vhosts) == 0 {
		// Some program must read the heads that are then answered 404.
		none, err := c.compileVHost(id, svc, noHost)
		if err != nil {
			return nil, fmt.Errorf("service %q: %w", svc.Name, err)
		}
		h.vhosts = append(h.vhosts, none)
	}
	h.value.Any = h.vhosts[0]
	if all := everyCluster(svc, c.clusters); all != nil {
		id, err := c.compileVHost(id, svc, all)
		if err != nil {
			return nil, fmt.Errorf("service %q: %w", svc.Name, err)
		}
		h.value.All = id
	}
	return h, nil
}

// noHost has no routes and no domains.
var noHost = &mesh.VirtualHost{}

// addDomain enters a domain other than "*"; the first virtual host that has it keeps
// it.
func (c *scopeCompiler) addDomain(h *httpService, domain string, vhostID uint32) error {
	kind, text := bpf.HostExact, domain
	switch {
	case strings.HasPrefix(domain, "*"):
		kind, text = bpf.HostSuffix, domain[1:]
		h.value.Suffixes[len(text)>>6&3] |= 1 << (len(text) & 63)
	case strings.HasSuffix(domain, "*"):
		kind, text = bpf.HostPrefix, domain[:len(domain)-1]
		h.value.Prefixes[len(text)>>6&3] |= 1 << (len(text) & 63)
	}
	if len(text) > bpf.MaxHost {
		return fmt.Errorf("domain %q has more than %d bytes", domain, bpf.MaxHost)
	}
	if len(text) > bpf.ShortHost {
		k := bpf.LongHostKey{Service: h.id, Kind: kind, Len: uint16(len(text))}
		copy(k.Name[:], text)
		if _, taken := c.want.longHosts[k]; !taken {
			c.want.longHosts[k] = vhostID
		}
		return nil
	}
	k := bpf.HostKey{Service: h.id, Kind: kind, Len: uint16(len(text))}
	copy(k.Name[:], text)
	if _, taken := c.want.hosts[k]; !taken {
		c.want.hosts[k] = vhostID
	}
	return nil
}

// finishHTTP decides how a connection begins, and enters the service.
func (c *scopeCompiler) finishHTTP(h *httpService) {
	switch {
	case c.guessed[h.id]:
	case len(h.svc.Clusters) == 0 || evenlySpread(h.svc):
		h.value.Flags |= bpf.HTTPLocal
	}
	c.want.http[h.id] = h.value
}

// evenlySpread tells that a guess would mostly be wrong: no cluster has half of what
// the routes forward, each route counting the same.
func evenlySpread(svc *mesh.Service) bool {
	shares := make(map[string]float64)
	routes := 0
	eachRoute(svc, func(r *mesh.Route) {
		total := 0.0
		for _, w := range r.Clusters {
			total += float64(w.Weight)
		}
		if total == 0 {
			return
		}
		routes++
		for _, w := range r.Clusters {
			shares[w.Cluster] += float64(w.Weight) / total
		}
	})
	best := 0.0
	for _, share := range shares {
		best = max(best, share)
	}
	return routes > 0 && best < float64(routes)/2
}

// needless tells whether a request of a route may need no endpoint.
func needless(r *mesh.Route) bool { return len(r.Clusters) == 0 || r.Abort != nil }

// everyCluster is a virtual host whose one route leads to every cluster that a route
// of the service leads to: where none of them has an endpoint, a connection can be
// refused, as that of any other service. nil: some request needs no endpoint, or is
// answered 503 in any case.
func everyCluster(svc *mesh.Service, clusters map[string]*mesh.Cluster) *mesh.VirtualHost {
	weights := make(map[string]uint32)
	needed := true
	for _, w := range svc.Clusters {
		weights[w.Cluster] = 1
	}
	eachRoute(svc, func(r *mesh.Route) {
		if needless(r) {
			needed = false
		}
		for _, w := range r.Clusters {
			weights[w.Cluster] = 1
		}
	})
	if !needed || len(weights) == 0 {
		return nil
	}
	route := &mesh.Route{}
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		if kind := clusters[name].Kind; kind == mesh.Blackhole || kind == mesh.Refused {
			return nil
		}
		route.Clusters = append(route.Clusters, mesh.WeightedCluster{Cluster: name, Weight: 1})
	}
	return &mesh.VirtualHost{Name: "(every cluster)", Routes: []*mesh.Route{route}}
}

func eachRoute(svc *mesh.Service, f func(*mesh.Route)) {
	for _, vh := range svc.HTTP.VirtualHosts {
		for _, r := range vh.Routes {
			f(r)
		}
	}
}
