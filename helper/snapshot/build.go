// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
)

// State says what a resource is doing.
type State string

// The states of a resource.
const (
	// Live: the newest version is in the snapshot.
	Live State = "live"
	// LastGood: an older version is in the snapshot, because of a problem with
	// the newest.
	LastGood State = "last-good"
	// Warming: it waits for endpoints.
	Warming State = "warming"
	// LeftOut: there is a problem, and there never was a good version.
	LeftOut State = "left-out"
	// NotGoverned: the listener is valid, and nothing of it is served.
	NotGoverned State = "not-governed"
	// Unused: nothing refers to it.
	Unused State = "unused"
)

// builder is what is remembered from one snapshot to the next.
type builder struct {
	last *mesh.Snapshot
	// live are the services of each listener that is in last.
	live map[string][]*mesh.Service
	// clusters are those of last; merged are those of the newest resources.
	clusters map[string]*mesh.Cluster
	merged   map[string]merged
	// users are the clusters of each assignment, as of the last whole build.
	users map[string][]string
	// resolving are the clusters of each name, likewise.
	resolving map[mesh.Lookup][]string
	// liveRoutes are the RouteConfigurations of each listener that is in last, by
	// name. routings are those of the build that is being made, joined the services
	// that were made of them.
	liveRoutes         map[string]map[string]*envoy.RouteConfig
	routings           map[string]routing
	joined, nextJoined map[*envoy.HTTPService]joined
	// states and problems of the last build.
	states   map[string]State
	problems []mesh.Verdict
	warming  []string
}

// merged is a cluster with its endpoints, and what it was made of.
type merged struct {
	from       *mesh.Cluster
	assignment *envoy.Assignment
	answers    []*mesh.Answer // of a DNS cluster
	cluster    *mesh.Cluster
}

// readiness of a cluster.
type readiness int

const (
	ready readiness = iota
	missing
	invalid
	warming
)

// candidate is a listener on its way into the snapshot.
type candidate struct {
	name     string
	source   string
	services []*mesh.Service
	state    State
	kept     bool // services are what the last snapshot has of it
	// own are the services of the newest version, routes what they were made of.
	own    []*mesh.Service
	routes map[string]*envoy.RouteConfig
}

// next builds the next snapshot; nil when there is nothing new.
func (s *Store) next() *mesh.Snapshot {
	d := s.dirty
	s.dirty = dirty{}
	if s.build.last != nil && !d.all {
		if snap, ok := s.endpoints(d); ok {
			return snap
		}
	}
	return s.everything(d)
}

// endpoints builds the next snapshot when nothing but endpoints of clusters that
// were ready before has changed; false when that is not so.
func (s *Store) endpoints(d dirty) (*mesh.Snapshot, bool) {
	b := &s.build
	old := b.last.Scopes[0]
	changed := map[string]*mesh.Cluster{}
	change := func(user string, m merged) {
		b.merged[user] = m
		if was := old.Clusters[user]; was != nil && !sameCluster(was, m.cluster) {
			changed[user] = m.cluster
		}
	}
	for _, name := range d.assignments {
		a := s.assignments[name]
		if a == nil || !a.hasGood {
			return nil, false
		}
		for _, user := range b.users[name] {
			m, ok := b.merged[user]
			if ok && m.from.Kind != mesh.Endpoints {
				continue
			}
			if !ok || m.assignment == nil {
				return nil, false
			}
			if m.assignment == a.good {
				continue
			}
			change(user, merged{from: m.from, assignment: a.good, cluster: s.join(m.from, a.good)})
		}
	}
	for _, lookup := range d.lookups {
		for _, user := range b.resolving[lookup] {
			last, ok := b.merged[user]
			if !ok {
				return nil, false
			}
			m, ok := s.resolved(s.clusters[user].good, last)
			if !ok {
				return nil, false
			}
			change(user, m)
		}
	}
	if len(changed) == 0 {
		return nil, true
	}
	scope := mesh.Scope{Key: old.Key, Services: old.Services, HTTP: old.HTTP, Clusters: maps.Clone(old.Clusters)}
	maps.Copy(scope.Clusters, changed)
	b.clusters = scope.Clusters
	s.version++
	b.last = &mesh.Snapshot{Version: s.version, Scopes: []mesh.Scope{scope}}
	return b.last, true
}

// everything builds the next snapshot from all resources. The clusters are those of the
// last one if nothing of theirs has changed.
func (s *Store) everything(d dirty) *mesh.Snapshot {
	b := &s.build
	b.states, b.problems, b.warming = map[string]State{}, nil, nil
	b.routings, b.nextJoined = map[string]routing{}, map[*envoy.HTTPService]joined{}
	if b.merged == nil || d.merge || len(d.assignments)+len(d.lookups) > 0 {
		s.mergeAll()
	}
	var list []*candidate
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		list = append(list, s.candidate(name))
	}
	b.joined = b.nextJoined
	again := b.settle(list)

	scope := mesh.Scope{Clusters: map[string]*mesh.Cluster{}}
	live := map[string][]*mesh.Service{}
	routes := map[string]map[string]*envoy.RouteConfig{}
	for _, c := range list {
		b.states[c.name] = c.state
		if len(c.services) == 0 {
			continue
		}
		live[c.name] = slices.Clone(c.services)
		routes[c.name] = b.liveRoutes[c.name]
		if slices.Equal(c.services, c.own) {
			routes[c.name] = c.routes
		}
		// Until HTTP is in the data path a listener that speaks it is not governed.
		if speaksHTTP(c.services) {
			scope.HTTP = append(scope.HTTP, c.services...)
		} else {
			scope.Services = append(scope.Services, slices.DeleteFunc(slices.Clone(c.services), s.idle)...)
		}
	}
	sortServices(scope.Services)
	sortServices(scope.HTTP)
	for _, svc := range slices.Concat(scope.Services, scope.HTTP) {
		clustersOf(svc, func(name string) {
			if scope.Clusters[name] == nil {
				scope.Clusters[name] = s.clusterFor(name)
			}
		})
	}
	snap := s.commit(scope, live, routes)
	if snap != nil && again {
		s.dirty.all = true
		s.poke()
	}
	return snap
}

// commit makes the scope the new snapshot, unless it is equal to the last one or
// the first one has to wait.
func (s *Store) commit(scope mesh.Scope, live map[string][]*mesh.Service, routes map[string]map[string]*envoy.RouteConfig) *mesh.Snapshot {
	b := &s.build
	if b.last == nil {
		if s.hold.reason = s.holdReason(); s.hold.reason != "" {
			return nil
		}
	}
	var old mesh.Scope
	if b.last != nil {
		old = b.last.Scopes[0]
	}
	reuse(&scope, old)
	for name, services := range live {
		for i, svc := range services {
			for _, list := range [][]*mesh.Service{scope.Services, scope.HTTP} {
				if at, ok := slices.BinarySearchFunc(list, svc.Name, func(s *mesh.Service, n string) int { return strings.Compare(s.Name, n) }); ok {
					live[name][i] = list[at]
				}
			}
		}
	}
	b.live, b.liveRoutes, b.clusters = live, routes, scope.Clusters
	if b.last != nil && sameScope(scope, old) {
		return nil
	}
	s.version++
	b.last = &mesh.Snapshot{Version: s.version, Scopes: []mesh.Scope{scope}}
	return b.last
}

// mergeAll gives each cluster its endpoints, doing only what has changed.
func (s *Store) mergeAll() {
	b := &s.build
	next := make(map[string]merged, len(s.clusters))
	b.users = make(map[string][]string, len(s.assignments))
	b.resolving = map[mesh.Lookup][]string{}
	for name, e := range s.clusters {
		if !e.hasGood {
			continue
		}
		if e.good.Assignment != "" {
			b.users[e.good.Assignment] = append(b.users[e.good.Assignment], name)
		}
		from := e.good.Cluster
		if e.good.Names != nil {
			e.good.Names.Lookups(func(l mesh.Lookup, _ string) { b.resolving[l] = append(b.resolving[l], name) })
			if m, ok := s.resolved(e.good, b.merged[name]); ok {
				next[name] = m
			}
			continue
		}
		if from.Kind != mesh.Endpoints || e.good.Assignment == "" {
			next[name] = merged{from: from, cluster: from}
			continue
		}
		a := s.assignments[e.good.Assignment]
		switch {
		case a != nil && a.hasGood:
			if m, ok := b.merged[name]; ok && m.from == from && m.assignment == a.good {
				next[name] = m
				continue
			}
			next[name] = merged{from: from, assignment: a.good, cluster: s.join(from, a.good)}
		case a == nil && s.absent[e.good.Assignment]:
			next[name] = merged{from: from, cluster: from}
		}
	}
	b.merged = next
}

// readiness tells whether a cluster can be referred to. One that is in the last
// snapshot stays usable while its newest version is not.
func (s *Store) readiness(name string) (readiness, string) {
	if name == envoy.RefusedCluster {
		return ready, ""
	}
	if _, ok := s.build.merged[name]; ok { // then there is a cluster
		return ready, ""
	}
	e := s.clusters[name]
	if e == nil {
		return missing, "there is no cluster of this name"
	}
	if s.build.clusters[name] != nil {
		return ready, ""
	}
	if !e.hasGood {
		return invalid, "the cluster is invalid"
	}
	if a := s.assignments[e.good.Assignment]; a != nil {
		return invalid, fmt.Sprintf("the cluster's assignment %q is invalid", e.good.Assignment)
	}
	return warming, ""
}

// refused is where connections end that are refused, whatever clusters there are.
var refused = &mesh.Cluster{Name: envoy.RefusedCluster, Kind: mesh.Refused}

// clusterFor returns the version of a cluster to serve.
func (s *Store) clusterFor(name string) *mesh.Cluster {
	if name == envoy.RefusedCluster {
		return refused
	}
	if m, ok := s.build.merged[name]; ok {
		return m.cluster
	}
	return s.build.clusters[name]
}

// candidate decides which version of a listener may be served.
func (s *Store) candidate(name string) *candidate {
	b := &s.build
	e := s.listeners[name]
	c := &candidate{name: name, source: e.source, state: Live}
	last, served := b.live[name]
	fallBack := func(state State) *candidate {
		c.services, c.kept, c.state = last, true, state
		if served && state == LeftOut {
			c.state = LastGood
		}
		return c
	}
	if !e.hasGood {
		return fallBack(LeftOut)
	}
	if e.rejected {
		c.state = LastGood
	}
	waits := false
	broken := false
	for _, ref := range e.good.References {
		state, why := s.readiness(ref.Cluster)
		switch state {
		case missing, invalid:
			broken = true
			what := "the listener is left out"
			if served {
				what = "the last good version stays"
			}
			b.problems = append(b.problems, mesh.Verdict{
				Source: e.source, Type: envoy.TypeListener, Resource: name, Field: ref.Field, Class: mesh.Invalid,
				Message: fmt.Sprintf("cluster %q: %s: %s", ref.Cluster, why, what),
			})
		case warming:
			waits = true
		}
	}
	c.services = slices.Clone(e.good.Services)
	if len(e.good.HTTP) > 0 {
		noRoutes, later := s.http(c, e, served)
		broken, waits = broken || noRoutes, waits || later
	}
	switch {
	case broken:
		return fallBack(LeftOut)
	case waits:
		b.warming = append(b.warming, name)
		return fallBack(Warming)
	}
	c.own = c.services
	if len(c.services) == 0 {
		c.state = NotGoverned
	}
	return c
}

// idle tells whether a service is for everything that nothing else governs, and lets it
// pass: that happens without it, at no cost.
func (s *Store) idle(svc *mesh.Service) bool {
	return !slices.ContainsFunc(svc.Frontends, func(f mesh.Frontend) bool { return f.Port != 0 || f.Prefix.Bits() != 0 }) &&
		!slices.ContainsFunc(svc.Clusters, func(w mesh.WeightedCluster) bool {
			c := s.clusterFor(w.Cluster)
			return c == nil || c.Kind != mesh.Passthrough
		})
}

// speaksHTTP tells whether one of a listener's services has HTTP routes.
func speaksHTTP(services []*mesh.Service) bool {
	return slices.ContainsFunc(services, func(s *mesh.Service) bool { return s.HTTP != nil })
}

func sortServices(list []*mesh.Service) {
	slices.SortFunc(list, func(a, b *mesh.Service) int { return strings.Compare(a.Name, b.Name) })
}
