// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"slices"

	"kmesh/helper/xds"
)

// Unenforced returns the authorization policies of inbound listeners, which are not governed:
// nothing of the snapshot depends on them. Sorted; false while there has been no word of
// listeners.
func (s *Store) Unenforced() ([]string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.listeners {
		if e.hasGood {
			out = append(out, e.good.Unenforced...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), s.seen[xds.ListenerType]
}
