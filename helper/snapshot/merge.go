// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

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
// Neither input is changed. The verdicts say what was left out because another has it or
// because of a mistake; what Envoy's types govern is no mistake, and needs no word.
func Merge(scope mesh.Scope, announced iter.Seq[*mesh.Announced]) (mesh.Scope, []mesh.Verdict) {
	m := newMerger(scope)
	out := mesh.Scope{Key: scope.Key, HTTP: scope.HTTP, Clusters: maps.Clone(scope.Clusters)}
	if out.Clusters == nil {
		out.Clusters = map[string]*mesh.Cluster{}
	}
	out.Services = slices.Clone(scope.Services)
	var verdicts []mesh.Verdict
	for a := range announced {
		svc := a.Service
		keep := make([]bool, len(svc.Frontends))
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
		if kept == 0 {
			continue
		}
		if m.names[svc.Name] || slices.ContainsFunc(a.Clusters, func(c *mesh.Cluster) bool { return scope.Clusters[c.Name] != nil }) {
			verdicts = append(verdicts, leftOut(a, "Envoy's types have a service or a cluster of its name: give theirs another one"))
			continue
		}
		if kept < len(keep) {
			part := *svc
			part.Frontends = nil
			for i, f := range svc.Frontends {
				if keep[i] {
					part.Frontends = append(part.Frontends, f)
				}
			}
			svc = &part
		}
		out.Services = append(out.Services, svc)
		for _, c := range a.Clusters {
			out.Clusters[c.Name] = c
		}
	}
	sortServices(out.Services)
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
	scope   mesh.Scope
	names   map[string]bool
	claimed map[mesh.Frontend]bool   // by Envoy's types
	taken   map[mesh.Frontend]string // by an announced service
	wide    map[uint16][]wide        // by port
}

// wide is a destination of more than one address, or of every port.
type wide struct {
	frontend mesh.Frontend
	service  *mesh.Service
}

func newMerger(scope mesh.Scope) *merger {
	m := &merger{
		scope: scope, names: map[string]bool{}, claimed: map[mesh.Frontend]bool{},
		taken: map[mesh.Frontend]string{}, wide: map[uint16][]wide{},
	}
	for _, svc := range slices.Concat(scope.Services, scope.HTTP) {
		m.names[svc.Name] = true
		for _, f := range svc.Frontends {
			m.claimed[f] = true
			if f.Port == 0 || !f.Prefix.IsSingleIP() {
				m.wide[f.Port] = append(m.wide[f.Port], wide{f, svc})
			}
		}
	}
	return m
}

// take tells whether an announced service gets a destination. Otherwise why is a mistake,
// or empty if Envoy's types govern it.
func (m *merger) take(f mesh.Frontend, a *mesh.Announced) (why string, ok bool) {
	if m.claimed[f] {
		return "", false
	}
	if by := m.taken[f]; by != "" {
		return fmt.Sprintf("%s has %s port %d too", by, f.Prefix, f.Port), false
	}
	if svc := m.covering(f); svc != nil {
		routed := svc.HTTP != nil && (a.App == mesh.AppHTTP1 || a.App == mesh.AppUnknown)
		if routed || m.refuses(svc) {
			return "", false
		}
	}
	m.taken[f] = a.Service.Name
	return "", true
}

// covering returns the service that connections to a destination belong to without the
// announced one: the longest prefix with its port, then with every port.
func (m *merger) covering(f mesh.Frontend) *mesh.Service {
	for _, port := range []uint16{f.Port, 0} {
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
