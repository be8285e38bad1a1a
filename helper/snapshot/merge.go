// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload"
)

// Merge joins what Envoy's types say for one scope with the services that the workload API
// announces. Envoy's word is about this scope's pods and wins wherever there is one; the
// rest is filled in:
//
//   - A destination that a listener governs itself stays with it.
//   - One inside a wildcard listener with HTTP routes stays with that if the port speaks
//     HTTP/1 or has not been declared; a port that speaks something else would only be
//     carried by it, and is announced.
//   - One that a wildcard listener refuses or leads nowhere (REGISTRY_ONLY) stays refused:
//     that the mesh has the service does not mean that this scope may reach it.
//   - Of two announced services that have one destination the first has it.
//
// Neither input is changed, and what has not changed is the same object again: in this
// scope as in the next one, and after the next change. The verdicts say what was left out
// because another has it or because of a mistake; what Envoy's types govern is no mistake,
// and needs no word.
func Merge(scope mesh.Scope, announced *Announced) (mesh.Scope, []mesh.Verdict) {
	m := newMerger(scope, announced)
	out := mesh.Scope{
		Key: scope.Key, HTTP: scope.HTTP,
		Services: make([]*mesh.Service, 0, len(scope.Services)+len(announced.list)),
		// Most of what is announced stays: what does not is taken out.
		Clusters: maps.Clone(announced.clusters),
	}
	own := scope.Services // not in out yet; both lists are sorted
	var verdicts []mesh.Verdict
	var keep []bool
	for _, a := range announced.list {
		svc := a.Service
		keep = append(keep[:0], make([]bool, len(svc.Frontends))...)
		kept := 0
		for i, f := range svc.Frontends {
			why, ok := m.take(f, a)
			if ok {
				keep[i] = true
				kept++
			} else if why != "" {
				verdicts = append(verdicts, leftOut(a, why))
			}
		}
		if kept > 0 && m.named(a) {
			verdicts = append(verdicts, leftOut(a, "Envoy's types have a service or a cluster of its name: give theirs another one"))
			kept = 0
		}
		if kept == 0 {
			for _, c := range a.Clusters {
				delete(out.Clusters, c.Name)
			}
			continue
		}
		if kept < len(keep) {
			svc = announced.parts.of(svc, keep)
		}
		for len(own) > 0 && own[0].Name < svc.Name {
			out.Services, own = append(out.Services, own[0]), own[1:]
		}
		out.Services = append(out.Services, svc)
	}
	out.Services = append(out.Services, own...)
	maps.Copy(out.Clusters, scope.Clusters)
	return out, verdicts
}

func leftOut(a *mesh.Announced, why string) mesh.Verdict {
	return mesh.Verdict{
		Type: workload.TypeService, Resource: a.Namespace + "/" + a.Hostname, Field: "addresses", Class: mesh.Invalid,
		Message: fmt.Sprintf("%s is left out: %s", a.Service.Name, why),
	}
}

// merger knows who has which destination.
type merger struct {
	scope     mesh.Scope
	contested map[mesh.Frontend]bool
	// names are those of Envoy's services and clusters that might be an announced one's.
	names   map[string]bool
	claimed map[mesh.Frontend]bool   // by Envoy's types
	taken   map[mesh.Frontend]string // by an announced service, if another one has it too
	wide    map[uint16][]wide        // by port
}

// wide is a destination of more than one address, or of every port.
type wide struct {
	frontend mesh.Frontend
	service  *mesh.Service
}

func newMerger(scope mesh.Scope, announced *Announced) *merger {
	m := &merger{
		scope: scope, contested: announced.contested, names: map[string]bool{},
		claimed: make(map[mesh.Frontend]bool, len(scope.Services)+len(scope.HTTP)),
		taken:   map[mesh.Frontend]string{}, wide: map[uint16][]wide{},
	}
	name := func(name string) {
		if strings.HasPrefix(name, workload.Prefix) {
			m.names[name] = true
		}
	}
	for cluster := range scope.Clusters {
		name(cluster)
	}
	for _, list := range [][]*mesh.Service{scope.Services, scope.HTTP} {
		for _, svc := range list {
			name(svc.Name)
			for _, f := range svc.Frontends {
				m.claimed[f] = true
				if f.Port == 0 || !f.Prefix.IsSingleIP() {
					m.wide[f.Port] = append(m.wide[f.Port], wide{f, svc})
				}
			}
		}
	}
	return m
}

// named tells whether one of Envoy's types has a name of an announced service.
func (m *merger) named(a *mesh.Announced) bool {
	return len(m.names) > 0 && (m.names[a.Service.Name] ||
		slices.ContainsFunc(a.Clusters, func(c *mesh.Cluster) bool { return m.names[c.Name] }))
}

// take tells whether an announced service gets a destination. Otherwise why is a mistake,
// or empty if Envoy's types govern it.
func (m *merger) take(f mesh.Frontend, a *mesh.Announced) (why string, ok bool) {
	if m.claimed[f] {
		return "", false
	}
	contested := len(m.contested) > 0 && m.contested[f]
	if by := m.taken[f]; contested && by != "" {
		return fmt.Sprintf("%s has %s port %d too", by, f.Prefix, f.Port), false
	}
	if svc := m.covering(f); svc != nil {
		routed := svc.HTTP != nil && (a.App == mesh.AppHTTP1 || a.App == mesh.AppUnknown)
		if routed || m.refuses(svc) {
			return "", false
		}
	}
	if contested {
		m.taken[f] = a.Service.Name
	}
	return "", true
}

// covering returns the service that connections to a destination belong to without the
// announced one: the longest prefix with its port, then with every port.
func (m *merger) covering(f mesh.Frontend) *mesh.Service {
	for _, port := range [...]uint16{f.Port, 0} {
		var best *wide
		for i, w := range m.wide[port] {
			if w.frontend.Protocol == f.Protocol && contains(w.frontend.Prefix, f.Prefix) &&
				(best == nil || w.frontend.Prefix.Bits() > best.frontend.Prefix.Bits()) {
				best = &m.wide[port][i]
			}
		}
		if best != nil {
			return best.service
		}
	}
	return nil
}

// contains tells whether a prefix is inside another one.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// refuses tells whether a service lets no connection through.
func (m *merger) refuses(svc *mesh.Service) bool {
	if svc.HTTP != nil {
		return false
	}
	return !slices.ContainsFunc(svc.Clusters, func(w mesh.WeightedCluster) bool {
		c := m.scope.Clusters[w.Cluster]
		return w.Weight > 0 && c != nil && c.Kind != mesh.Blackhole && c.Kind != mesh.Refused
	})
}
