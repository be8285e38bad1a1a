// SPDX-License-Identifier: Apache-2.0

// Package balance turns a cluster's endpoints, weights, priorities and policy into
// the tables that the kernel draws from.
//
// It is pure, and deterministic: the same cluster gives the same tables, whatever
// the order of its endpoints, so that a repeated configuration changes nothing, and
// maglev tables agree between nodes.
package balance

import (
	"cmp"
	"net/netip"
	"slices"

	"kmesh/helper/mesh"
)

// Slot is one element of a table. What it means depends on the policy:
//
//	ROUND_ROBIN            a schedule; Endpoint only
//	RANDOM, LEAST_REQUEST  an alias table: keep the slot with probability
//	                       Cut/2^32, else take the slot numbered Alias
//	MAGLEV                 the lookup table; Endpoint only
type Slot struct {
	Endpoint int    // index into Tables.Endpoints
	Weight   uint32 // of the endpoint, in the table's own scale
	Alias    uint32
	Cut      uint32
}

// Tables are what one cluster becomes.
type Tables struct {
	// Endpoints that may be chosen now, sorted by address.
	Endpoints []netip.AddrPort
	// V4 and V6 are the tables by family; empty where the family has no endpoint.
	V4, V6 []Slot
}

// Build computes the tables of a cluster. Clusters of a kind other than Endpoints
// have none.
func Build(c *mesh.Cluster) Tables {
	var t Tables
	if c.Kind != mesh.Endpoints {
		return t
	}
	var v4, v6 []weighted
	for i, w := range choosable(c) {
		w.index = i
		t.Endpoints = append(t.Endpoints, w.addr)
		if w.addr.Addr().Is4() {
			v4 = append(v4, w)
		} else {
			v6 = append(v6, w)
		}
	}
	t.V4 = table(c, v4)
	t.V6 = table(c, v6)
	return t
}

// weighted is an endpoint with its weight after localities are counted in.
type weighted struct {
	addr   netip.AddrPort
	index  int
	weight uint32
}

func table(c *mesh.Cluster, eps []weighted) []Slot {
	if len(eps) == 0 {
		return nil
	}
	switch c.Policy {
	case mesh.RoundRobin:
		return schedule(eps)
	case mesh.Maglev:
		size := c.MaglevTableSize
		if size == 0 {
			size = DefaultMaglevSize
		}
		return maglev(eps, int(size))
	default:
		return alias(eps)
	}
}

// choosable returns the endpoints of the highest priority that has a healthy one;
// failing that, of the highest that has a degraded one. They are sorted by address;
// of two with the same address the first given counts, as in Envoy.
func choosable(c *mesh.Cluster) []weighted {
	for _, health := range []mesh.Health{mesh.Healthy, mesh.Degraded} {
		if p, ok := topPriority(c, health); ok {
			return atPriority(c, p, health)
		}
	}
	return nil
}

func topPriority(c *mesh.Cluster, health mesh.Health) (uint32, bool) {
	best, found := uint32(0), false
	for _, l := range c.Localities {
		if !takesPart(c, l) || found && l.Priority >= best {
			continue
		}
		if slices.ContainsFunc(l.Endpoints, func(e mesh.Endpoint) bool { return e.Health == health }) {
			best, found = l.Priority, true
		}
	}
	return best, found
}

// takesPart tells whether a locality gets traffic at all: with locality weights, a
// weight of 0 means none.
func takesPart(c *mesh.Cluster, l mesh.Locality) bool {
	return !c.LocalityWeighted || l.Weight > 0
}

func atPriority(c *mesh.Cluster, priority uint32, health mesh.Health) []weighted {
	type share struct {
		addr   netip.AddrPort
		weight float64
	}
	var all []share
	seen := make(map[netip.AddrPort]bool)
	for _, l := range c.Localities {
		if l.Priority != priority || !takesPart(c, l) {
			continue
		}
		first, sum := len(all), 0.0
		for _, e := range l.Endpoints {
			if e.Health != health || seen[e.Addr] {
				continue
			}
			seen[e.Addr] = true
			all = append(all, share{e.Addr, float64(max(e.Weight, 1))})
			sum += float64(max(e.Weight, 1))
		}
		if c.LocalityWeighted {
			for i := first; i < len(all); i++ {
				all[i].weight *= float64(l.Weight) / sum
			}
		}
	}
	slices.SortFunc(all, func(a, b share) int { return a.addr.Compare(b.addr) })
	eps := make([]weighted, len(all))
	if !c.LocalityWeighted {
		for i, s := range all {
			eps[i] = weighted{addr: s.addr, weight: uint32(s.weight)}
		}
		return reduce(eps)
	}
	// Shares of localities are fractions: scale the largest to 2^20, which keeps
	// a share's error below one in a million.
	top := slices.MaxFunc(all, func(a, b share) int { return cmp.Compare(a.weight, b.weight) }).weight
	for i, s := range all {
		eps[i] = weighted{addr: s.addr, weight: max(1, uint32(s.weight/top*(1<<20)))}
	}
	return reduce(eps)
}

// reduce divides the weights by their greatest common divisor, so that equal
// weights become 1 and schedules short.
func reduce(eps []weighted) []weighted {
	d := uint32(0)
	for _, e := range eps {
		for a, b := d, e.weight; ; a, b = b, a%b {
			if b == 0 {
				d = a
				break
			}
		}
	}
	for i := range eps {
		eps[i].weight /= d
	}
	return eps
}
