// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"kmesh/helper/mesh"
)

// Announced are the services that the workload API announces, as of one moment. It is
// not changed any more, and may be read by several goroutines; what does not depend on
// the scope that it is merged with is found out once, here.
type Announced struct {
	// list is sorted by the service's name.
	list []*mesh.Announced
	// clusters are all of theirs, by name.
	clusters map[string]*mesh.Cluster
	// contested are destinations that more than one of them has.
	contested map[mesh.Frontend]bool
	parts     *parts
}

// NewAnnounced makes it of services in any order, with what can be kept of the last one;
// last may be nil. The same services give the last one.
func NewAnnounced(services iter.Seq[*mesh.Announced], last *Announced) *Announced {
	return announce(slices.Collect(services), last)
}

// announce does so, and takes the list.
func announce(list []*mesh.Announced, last *Announced) *Announced {
	// The order of services is nearly that of names.
	slices.SortStableFunc(list, func(a, b *mesh.Announced) int { return strings.Compare(a.Service.Name, b.Service.Name) })
	a := &Announced{list: list}
	if last == nil {
		last = &Announced{}
	}
	if last.parts != nil && slices.Equal(list, last.list) {
		return last
	}
	// Endpoints change far more often than services.
	if last.parts != nil && a.alike(last) {
		a.contested, a.parts, a.clusters = last.contested, last.parts, maps.Clone(last.clusters)
		for i, one := range list {
			if one == last.list[i] {
				continue
			}
			for _, c := range one.Clusters {
				a.clusters[c.Name] = c
			}
		}
		return a
	}
	a.contested, a.parts = contested(list), last.parts.keep(list)
	a.clusters = make(map[string]*mesh.Cluster, len(list))
	for _, one := range list {
		for _, c := range one.Clusters {
			a.clusters[c.Name] = c
		}
	}
	return a
}

// alike tells whether two lists differ in the endpoints of their clusters only.
func (a *Announced) alike(b *Announced) bool {
	return slices.EqualFunc(a.list, b.list, func(a, b *mesh.Announced) bool { return a.Service == b.Service && a.App == b.App })
}

// contested returns the destinations that several services have.
func contested(list []*mesh.Announced) map[mesh.Frontend]bool {
	seen := make(map[mesh.Frontend]bool, len(list))
	out := map[mesh.Frontend]bool{}
	for _, a := range list {
		for _, f := range a.Service.Frontends {
			if seen[f] {
				out[f] = true
			}
			seen[f] = true
		}
	}
	return out
}

// All returns the services, sorted by their names.
func (a *Announced) All() iter.Seq[*mesh.Announced] { return slices.Values(a.list) }

// Len is how many there are.
func (a *Announced) Len() int { return len(a.list) }

// parts are services with some of their destinations: the others are another's. They are
// remembered, so that the same part is the same object, in every scope and as long as its
// service is.
type parts struct {
	mu   sync.Mutex
	made map[part]*mesh.Service
}

// part names one: by the service, and by which of its destinations are kept.
type part struct {
	of   *mesh.Service
	kept string
}

// keep returns what is left of them for a list.
func (p *parts) keep(list []*mesh.Announced) *parts {
	out := &parts{made: map[part]*mesh.Service{}}
	if p == nil {
		return out
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, svc := range p.made {
		at, ok := slices.BinarySearchFunc(list, key.of.Name, func(a *mesh.Announced, name string) int { return strings.Compare(a.Service.Name, name) })
		if ok && list[at].Service == key.of {
			out.made[key] = svc
		}
	}
	return out
}

// of returns the part of a service that has these of its destinations.
func (p *parts) of(svc *mesh.Service, kept []bool) *mesh.Service {
	var bits strings.Builder
	for _, k := range kept {
		if k {
			bits.WriteByte('1')
		} else {
			bits.WriteByte('0')
		}
	}
	key := part{svc, bits.String()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if made := p.made[key]; made != nil {
		return made
	}
	out := *svc
	out.Frontends = nil
	for i, f := range svc.Frontends {
		if kept[i] {
			out.Frontends = append(out.Frontends, f)
		}
	}
	p.made[key] = &out
	return &out
}
