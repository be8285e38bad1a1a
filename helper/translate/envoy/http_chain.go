// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"kmesh/helper/mesh"
)

// speaksHTTP tells whether the chain ends in an HTTP connection manager.
func speaksHTTP(fc *listenerv3.FilterChain) bool {
	filters := fc.GetFilters()
	return len(filters) > 0 && filters[len(filters)-1].GetTypedConfig().MessageName() == typeHCM
}

// part is a share of a chain's frontends that has one place for what is not
// HTTP/1.
type part struct {
	chain     *chain
	fallback  *chain // nil: the routes say it
	frontends []mesh.Frontend
}

// pair gives every HTTP chain the chain that gets what is not HTTP/1, and takes
// the frontends away from that one: a frontend belongs to one service. Envoy asks
// the chains of the longest prefix, and if none of them matches, the default one.
func (r *report) pair(chains []*chain) {
	owner := map[mesh.Frontend]*chain{}
	for _, c := range chains {
		if c.http == nil || !c.served {
			continue
		}
		for _, f := range c.frontends {
			if o := owner[f.Frontend]; o != nil {
				for _, one := range []*chain{o, c} {
					if one.served {
						one.served = false
						r.add(one.path, mesh.UnsupportedCondition, "not served: two HTTP chains for the same destination cannot be told apart here")
					}
				}
				continue
			}
			owner[f.Frontend] = c
		}
	}
	r.shadow(chains)
	for _, c := range chains {
		if c.http == nil || !c.served {
			continue
		}
		for _, f := range c.frontends {
			c.addPart(f.Frontend, fallbackChain(chains, c, f.Frontend))
		}
	}
	for _, c := range chains {
		if c.http == nil {
			c.frontends = slices.DeleteFunc(c.frontends, func(f frontend) bool {
				o := owner[f.Frontend]
				return o != nil && o.served
			})
		}
	}
}

// fallbackChain is the chain that gets what c refuses at one frontend.
func fallbackChain(chains []*chain, c *chain, f mesh.Frontend) *chain {
	if !conditional(c) {
		return nil // c takes everything
	}
	for _, o := range chains {
		if o == c || o.http != nil || o.isDefault || !o.served || len(o.clusters) == 0 {
			continue
		}
		if slices.ContainsFunc(o.frontends, func(g frontend) bool { return g.Frontend == f }) {
			return o
		}
	}
	for _, o := range chains {
		if o.isDefault && o != c && o.http == nil && o.served && len(o.clusters) > 0 {
			return o
		}
	}
	return nil
}

func (c *chain) addPart(f mesh.Frontend, to *chain) {
	for _, p := range c.parts {
		if p.fallback == to {
			p.frontends = append(p.frontends, f)
			return
		}
	}
	c.parts = append(c.parts, &part{chain: c, fallback: to, frontends: []mesh.Frontend{f}})
}

// httpServices makes the services of a listener of which a chain speaks HTTP. The
// chains that do not are among them.
func (r *report) httpServices(name string, chains []*chain) (services []*HTTPService, refs []Reference) {
	taken := map[string]bool{}
	several := len(chains)
	for _, c := range chains {
		if !c.served {
			continue
		}
		if c.http == nil {
			if len(c.frontends) == 0 {
				continue
			}
			h := &HTTPService{service: mesh.Service{Name: serviceName(name, c, several, taken), Clusters: c.clusters, HashSource: c.hash}}
			for _, f := range c.frontends {
				h.service.Frontends = append(h.service.Frontends, f.Frontend)
			}
			sortFrontends(h.service.Frontends)
			services, refs = append(services, h), append(refs, c.refs...)
			continue
		}
		for _, p := range c.parts {
			h := *c.http
			h.service = mesh.Service{Name: serviceName(name, c, several+len(c.parts)-1, taken), Frontends: p.frontends}
			if p.fallback != nil {
				h.service.Clusters, h.service.HashSource = p.fallback.clusters, p.fallback.hash
				refs = append(refs, p.fallback.refs...)
			}
			sortFrontends(h.service.Frontends)
			services = append(services, &h)
		}
		if len(c.parts) > 0 {
			refs = append(refs, c.refs...)
		}
	}
	if len(services) == 1 {
		services[0].service.Name = name
	}
	return services, refs
}
