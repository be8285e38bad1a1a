// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
)

// Status is what the store has and what is wrong with it, for people.
type Status struct {
	// Version is the last snapshot's, Published that of the last one that was
	// published; they differ while PublishError says why.
	Version, Published uint64
	PublishError       string
	// Holding says why there is no first snapshot yet; empty once there is one.
	Holding string
	// Resources, sorted by type and name.
	Resources []ResourceStatus
	// Problems is everything of class Invalid, sorted: what to repair.
	Problems []mesh.Verdict
}

// ResourceStatus is one resource.
type ResourceStatus struct {
	Type, Name      string
	Source, Version string
	State           State
	// Verdicts of the newest version, a verdict per populated field.
	Verdicts []mesh.Verdict
}

// Status returns the state as of the last build.
func (s *Store) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Version: s.version, Published: s.published, PublishError: s.publishError,
		Problems: s.problems(),
	}
	if s.build.last == nil {
		st.Holding = cmp.Or(s.hold.reason, "nothing has been delivered yet")
	}
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		e := s.clusters[name]
		st.Resources = append(st.Resources, describe(envoy.TypeCluster, name, e, s.clusterState(name)))
	}
	serving := map[string]bool{} // assignments that a cluster in the snapshot uses
	for name := range s.build.clusters {
		if e := s.clusters[name]; e != nil && e.hasGood {
			serving[e.good.Assignment] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.assignments)) {
		e := s.assignments[name]
		st.Resources = append(st.Resources, describe(envoy.TypeAssignment, name, e, usage(e, serving[name])))
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		state, ok := s.build.states[name]
		if !ok {
			state = Warming
		}
		st.Resources = append(st.Resources, describe(envoy.TypeListener, name, s.listeners[name], state))
	}
	for _, name := range slices.Sorted(maps.Keys(s.routes)) {
		st.Resources = append(st.Resources, describe(envoy.TypeRoute, name, s.routes[name], s.routeState(name)))
	}
	return st
}

func describe[T any](typ, name string, e *entry[T], state State) ResourceStatus {
	return ResourceStatus{Type: typ, Name: name, Source: e.source, Version: e.version, State: state, Verdicts: e.verdicts(name)}
}

// clusterState tells what a cluster is doing.
func (s *Store) clusterState(name string) State {
	e := s.clusters[name]
	if s.build.clusters[name] != nil {
		if _, ok := s.build.merged[name]; !ok || e.rejected {
			return LastGood
		}
		return Live
	}
	if !e.hasGood {
		return LeftOut
	}
	if _, ok := s.build.merged[name]; !ok && s.assignments[e.good.Assignment] == nil {
		return Warming
	}
	return Unused
}

// usage tells what a resource is doing that others refer to.
func usage[T any](e *entry[T], used bool) State {
	switch {
	case !e.hasGood:
		return LeftOut
	case !used:
		return Unused
	case e.rejected || e.gone:
		return LastGood
	}
	return Live
}

// problems collects everything that is wrong, sorted.
func (s *Store) problems() []mesh.Verdict {
	return sortVerdicts(append(s.resourceProblems(), s.nameProblems()...))
}

// resourceProblems collects what is wrong with the resources themselves.
func (s *Store) resourceProblems() []mesh.Verdict {
	out := slices.Clone(s.build.problems)
	out = append(out, invalids(s.listeners)...)
	out = append(out, invalids(s.clusters)...)
	out = append(out, invalids(s.assignments)...)
	out = append(out, invalids(s.routes)...)
	for name, e := range s.clusters {
		if !e.hasGood || e.good.Assignment == "" {
			continue
		}
		a := s.assignments[e.good.Assignment]
		problem := ""
		switch {
		case a == nil && s.absent[e.good.Assignment]:
			problem = fmt.Sprintf("there is no ClusterLoadAssignment %q: the cluster has no endpoints", e.good.Assignment)
		case a != nil && a.gone:
			problem = fmt.Sprintf("the ClusterLoadAssignment %q is gone: its last good version stays", e.good.Assignment)
		}
		if problem != "" {
			out = append(out, mesh.Verdict{Source: e.source, Type: envoy.TypeCluster, Resource: name,
				Field: "eds_cluster_config", Class: mesh.Invalid, Message: problem})
		}
	}
	return sortVerdicts(out)
}

func sortVerdicts(out []mesh.Verdict) []mesh.Verdict {
	slices.SortStableFunc(out, func(a, b mesh.Verdict) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Type, b.Type),
			cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
	return out
}

func invalids[T any](t table[T]) []mesh.Verdict {
	var out []mesh.Verdict
	for name, e := range t {
		out = append(out, e.bad(name)...)
	}
	return out
}
