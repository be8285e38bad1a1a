// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"slices"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"
)

// routing is one RouteConfiguration in one build.
type routing struct {
	rc    *envoy.RouteConfig // what to serve; nil: there is none
	state readiness
	why   string // for missing and invalid
}

// joined is a service and what it was made of.
type joined struct {
	rc  *envoy.RouteConfig
	svc *mesh.Service
}

// routing decides which version of a RouteConfiguration may be served: the newest
// when every cluster that it names has its endpoints, else the last one. Virtual
// hosts that name clusters that cannot be used keep theirs: a mistake in one of
// them does not hold up the others.
func (s *Store) routing(name string) routing {
	b := &s.build
	if r, ok := b.routings[name]; ok {
		return r
	}
	r := s.decide(name)
	b.routings[name] = r
	return r
}

func (s *Store) decide(name string) routing {
	b := &s.build
	last := b.lastRoutes(name)
	fallBack := func(state readiness, why string) routing {
		if last != nil {
			return routing{rc: last, state: ready}
		}
		return routing{state: state, why: why}
	}
	e := s.routes[name]
	switch {
	case e == nil && (s.absentRoutes[name] || s.whole[xds.RouteType]):
		if last != nil {
			b.problems = append(b.problems, mesh.Verdict{Type: envoy.TypeRoute, Resource: name, Class: mesh.Invalid,
				Message: "is gone, and a listener names it: its last good version stays"})
		}
		return fallBack(missing, "there is no RouteConfiguration of this name")
	case e == nil:
		return fallBack(warming, "")
	case !e.hasGood:
		return fallBack(invalid, "the RouteConfiguration is invalid")
	}
	waits := false
	unusable := map[string]string{}
	e.good.EachReference(func(cluster string, _ envoy.Place) {
		switch state, why := s.readiness(cluster); state {
		case missing, invalid:
			unusable[cluster] = why
		case warming:
			waits = true
		}
	})
	rc := e.good
	if len(unusable) > 0 {
		var refused map[string]bool
		rc, refused = e.good.Without(last, func(cluster string) bool { return unusable[cluster] != "" })
		e.good.EachReference(func(cluster string, at envoy.Place) {
			why := unusable[cluster]
			if why == "" {
				return
			}
			ref := at.Reference()
			what := "the virtual host's last good version stays"
			if refused[ref.VirtualHost] {
				what = "what would go there is answered 503"
			}
			b.problems = append(b.problems, mesh.Verdict{
				Source: e.source, Type: envoy.TypeRoute, Resource: name, Field: ref.Field, Class: mesh.Invalid,
				Message: fmt.Sprintf("virtual host %q, route %q: cluster %q: %s: %s", ref.VirtualHost, ref.Route, ref.Cluster, why, what),
			})
		})
	}
	if waits {
		return fallBack(warming, "")
	}
	return routing{rc: rc, state: ready}
}

// join makes a service of a part of a listener and its routes. The same parts make
// the same service.
func (b *builder) join(part *envoy.HTTPService, rc *envoy.RouteConfig) *mesh.Service {
	j, ok := b.joined[part]
	if !ok || j.rc != rc {
		j = joined{rc: rc, svc: part.Join(rc)}
	}
	b.nextJoined[part] = j
	return j.svc
}

// lastRoutes returns the version of a RouteConfiguration that is in the last
// snapshot. Listeners that have stepped back may have an older one: the clusters
// of all of them are there.
func (b *builder) lastRoutes(name string) *envoy.RouteConfig {
	for _, listener := range slices.Sorted(maps.Keys(b.liveRoutes)) {
		if rc := b.liveRoutes[listener][name]; rc != nil {
			return rc
		}
	}
	return nil
}

// http adds the services of a listener of which a chain speaks HTTP.
func (s *Store) http(c *candidate, e *entry[*envoy.Listener], served bool) (broken, waits bool) {
	b := &s.build
	c.routes = map[string]*envoy.RouteConfig{}
	for _, part := range e.good.HTTP {
		if part.RouteConfig == "" {
			c.services = append(c.services, b.join(part, nil))
			continue
		}
		r := s.routing(part.RouteConfig)
		switch r.state {
		case ready:
			c.routes[part.RouteConfig] = r.rc
			c.services = append(c.services, b.join(part, r.rc))
		case warming:
			waits = true
		default:
			broken = true
			what := "the listener is left out"
			if served {
				what = "the last good version stays"
			}
			b.problems = append(b.problems, mesh.Verdict{
				Source: e.source, Type: envoy.TypeListener, Resource: c.name, Field: part.Field, Class: mesh.Invalid,
				Message: fmt.Sprintf("route configuration %q: %s: %s", part.RouteConfig, r.why, what),
			})
		}
	}
	return broken, waits
}

// clustersOf calls f for every cluster that a service names.
func clustersOf(svc *mesh.Service, f func(name string)) {
	for _, wc := range svc.Clusters {
		f(wc.Cluster)
	}
	if svc.HTTP == nil {
		return
	}
	for _, vh := range svc.HTTP.VirtualHosts {
		for _, r := range vh.Routes {
			for _, wc := range r.Clusters {
				f(wc.Cluster)
			}
		}
	}
}

// wantedRoutes returns the names of the RouteConfigurations of all listeners,
// sorted: what their newest versions name, and what is served of older ones.
func (s *Store) wantedRoutes() []string {
	var names []string
	for _, e := range s.listeners {
		names = append(names, e.needs...)
		if e.hasGood {
			for _, part := range e.good.HTTP {
				if part.RouteConfig != "" {
					names = append(names, part.RouteConfig)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// wantsRoutes tells whether a listener takes its routes from this resource.
func (s *Store) wantsRoutes(name string) bool {
	_, found := slices.BinarySearch(s.wantedRoutes(), name)
	return found
}

// forgetRoutes drops what no listener wants any more.
func (s *Store) forgetRoutes() {
	wanted := map[string]bool{}
	for _, name := range s.wantedRoutes() {
		wanted[name] = true
	}
	if !s.whole[xds.RouteType] {
		maps.DeleteFunc(s.routes, func(name string, _ *entry[*envoy.RouteConfig]) bool { return !wanted[name] })
	}
	maps.DeleteFunc(s.absentRoutes, func(name string, _ bool) bool { return !wanted[name] })
}

// routeState tells what a RouteConfiguration is doing.
func (s *Store) routeState(name string) State {
	e := s.routes[name]
	last := s.build.lastRoutes(name)
	switch {
	case last == nil && !e.hasGood:
		return LeftOut
	case last == nil && !s.wantsRoutes(name):
		return Unused
	case last == nil:
		return Warming
	case e.rejected || last != e.good:
		return LastGood
	}
	return Live
}
