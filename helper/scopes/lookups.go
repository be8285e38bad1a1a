// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"maps"
	"slices"
	"sync"

	"kmesh/helper/mesh"
)

// lookups are the names that all views want resolved: each is asked for once.
type lookups struct {
	watch func([]mesh.Lookup)

	mu      sync.Mutex
	wanted  map[mesh.ScopeKey][]mesh.Lookup
	answers map[mesh.Lookup]mesh.Answer
}

func newLookups(watch func([]mesh.Lookup)) *lookups {
	return &lookups{watch: watch, wanted: make(map[mesh.ScopeKey][]mesh.Lookup), answers: make(map[mesh.Lookup]mesh.Answer)}
}

// want replaces the names of a view, and returns what is known about them.
func (l *lookups) want(key mesh.ScopeKey, names []mesh.Lookup) map[mesh.Lookup]mesh.Answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(names) == 0 {
		delete(l.wanted, key)
	} else {
		l.wanted[key] = names
	}
	all := make(map[mesh.Lookup]bool)
	for _, list := range l.wanted {
		for _, n := range list {
			all[n] = true
		}
	}
	maps.DeleteFunc(l.answers, func(n mesh.Lookup, _ mesh.Answer) bool { return !all[n] })
	l.watch(slices.Collect(maps.Keys(all)))
	known := make(map[mesh.Lookup]mesh.Answer)
	for _, n := range names {
		if a, ok := l.answers[n]; ok {
			known[n] = a
		}
	}
	return known
}

// resolved remembers what was found, for views that will ask for the same.
func (l *lookups) resolved(answers map[mesh.Lookup]mesh.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.answers, answers)
}
