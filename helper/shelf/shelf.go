// SPDX-License-Identifier: Apache-2.0

// Package shelf makes equal content one object.
//
// The invariant: what is on a shelf is there as long as somebody else holds it, and no
// longer. A shelf keeps nothing alive, so nobody has to say when something is not needed.
package shelf

import (
	"sync"
	"weak"
)

// sweepFrom is the number of entries from which it is worth looking for dead ones.
const sweepFrom = 256

// Shelf has objects by their content. The zero value is empty and ready to use, by
// several goroutines.
type Shelf[K comparable, V any] struct {
	mu    sync.Mutex
	items map[K]weak.Pointer[V]
	// sweepAt is how many there may be until those that nobody holds are taken out: twice
	// as many as were left the last time, so that an entry costs the same however many
	// there are.
	sweepAt int
}

// Get returns what there is; nil if nobody holds such a thing.
func (s *Shelf[K, V]) Get(key K) *V {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.items[key].Value()
}

// Put puts something there and returns it, or what somebody else has put there before.
func (s *Shelf[K, V]) Put(key K, made *V) *V {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.items[key].Value(); was != nil {
		return was
	}
	if s.items == nil {
		s.items, s.sweepAt = make(map[K]weak.Pointer[V]), sweepFrom
	}
	if len(s.items) >= s.sweepAt {
		for k, p := range s.items {
			if p.Value() == nil {
				delete(s.items, k)
			}
		}
		s.sweepAt = max(2*len(s.items), sweepFrom)
	}
	s.items[key] = weak.Make(made)
	return made
}
