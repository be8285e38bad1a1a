// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
)

// names are what DNS clusters ask for, and what was found. A cluster is ready when each
// of its names has been answered once, with addresses or without: one that nobody can
// resolve must not keep the others waiting for ever.
type names struct {
	watched map[mesh.Lookup]bool
	answers map[mesh.Lookup]*mesh.Answer
}

// watchNames tells the resolver which names the clusters have, if they are others.
func (s *Store) watchNames() {
	wanted := map[mesh.Lookup]bool{}
	for _, e := range s.clusters {
		if e.hasGood && e.good.Names != nil {
			e.good.Names.Lookups(func(l mesh.Lookup, _ string) { wanted[l] = true })
		}
	}
	if s.opts.Resolve == nil || maps.Equal(wanted, s.names.watched) {
		return
	}
	s.names.watched = wanted
	maps.DeleteFunc(s.names.answers, func(l mesh.Lookup, _ *mesh.Answer) bool { return !wanted[l] })
	s.opts.Resolve(slices.Collect(maps.Keys(wanted)))
}

// Resolved takes in what was found about names; what is not asked for any more is
// ignored.
func (s *Store) Resolved(answers map[mesh.Lookup]mesh.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for lookup, answer := range answers {
		if !s.names.watched[lookup] {
			continue
		}
		was := s.names.answers[lookup]
		if was != nil && slices.Equal(was.Addrs, answer.Addrs) {
			was.Problem = answer.Problem
			continue
		}
		s.names.answers[lookup] = &answer
		if was == nil {
			s.dirty.remake()
		} else {
			s.dirty.lookups = append(s.dirty.lookups, lookup)
		}
	}
	s.poke()
}

// answersFor returns what was found about the names of a cluster; false while one of
// them has not been answered.
func (s *Store) answersFor(n *envoy.Names) (answers []*mesh.Answer, ok bool) {
	ok = true
	n.Lookups(func(l mesh.Lookup, _ string) {
		a := s.names.answers[l]
		if a == nil && s.opts.Resolve != nil {
			ok = false
		}
		answers = append(answers, a)
	})
	return answers, ok
}

// resolved gives a DNS cluster its endpoints, or returns the last one that had the same;
// false while a name has not been answered.
func (s *Store) resolved(from *envoy.Cluster, last merged) (merged, bool) {
	answers, ok := s.answersFor(from.Names)
	if !ok {
		return merged{}, false
	}
	if last.from == from.Cluster && slices.Equal(last.answers, answers) {
		return last, true
	}
	c := *from.Cluster
	c.Localities = from.Names.Localities(func(l mesh.Lookup) []netip.Addr {
		if a := s.names.answers[l]; a != nil {
			return a.Addrs
		}
		return nil
	})
	return merged{from: from.Cluster, answers: answers, cluster: &c}, true
}

// nameProblems are the names that are not resolved.
func (s *Store) nameProblems() []mesh.Verdict {
	var out []mesh.Verdict
	for name, e := range s.clusters {
		if !e.hasGood || e.good.Names == nil {
			continue
		}
		e.good.Names.Lookups(func(l mesh.Lookup, field string) {
			if a := s.names.answers[l]; a != nil && a.Problem != "" {
				out = append(out, mesh.Verdict{
					Source: e.source, Type: envoy.TypeCluster, Resource: name, Field: field, Class: mesh.Invalid,
					Message: fmt.Sprintf("%q is not resolved: %s", l.Name, a.Problem),
				})
			}
		})
	}
	return out
}
