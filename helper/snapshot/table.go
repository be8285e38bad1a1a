// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"maps"

	"kmesh/helper/mesh"
	"kmesh/helper/shelf"
	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"
)

// entry is one resource: what its newest version says, and the last good one.
type entry[T any] struct {
	source, version string
	hash            [32]byte
	newest          *made[T]
	good            T
	hasGood         bool
	rejected        bool // the newest version is invalid
	refused         bool // by the source, before translation: invalid says why
	gone            bool // no longer at the source (assignments only)
	invalid         []mesh.Verdict
	hosts           []*xds.Host // of good: as long as they are held they are known
	// asks is the assignment that the newest version names, used or not (clusters
	// only).
	asks string
	// needs are the RouteConfigurations that the newest version names (listeners
	// only).
	needs []string
}

// same tells whether a resource is what is there already, by its content.
func (e *entry[T]) same(r xds.Resource) bool {
	return e != nil && e.hash == r.Hash && e.source == r.Source && !e.refused && len(r.Invalid) == 0
}

type table[T any] map[string]*entry[T]

// put takes one resource in; it returns why it is invalid, and whether it is
// another one than before. What is on the shelf (nil: there is none) is not translated.
func (t table[T]) put(r xds.Resource, refuse bool, on *shelf.Shelf[content, made[T]], translate func() (T, []mesh.Verdict)) (bad []mesh.Verdict, changed bool) {
	e := t[r.Name]
	if e == nil {
		e = &entry[T]{}
		t[r.Name] = e
	} else if e.same(r) {
		e.version, e.gone = r.Version, false
		return e.bad(r.Name), false
	}
	e.source, e.version, e.hash, e.gone = r.Source, r.Version, r.Hash, false
	e.refused, e.invalid = len(r.Invalid) > 0, r.Invalid
	if e.refused {
		e.rejected, e.newest = true, nil
		return r.Invalid, true
	}
	key := content{r.Hash, r.Source, refuse}
	var m *made[T]
	if on != nil {
		m = on.Get(key)
	}
	if m == nil {
		if m = newMade(translate()); on != nil {
			m = on.Put(key, m)
		}
	}
	e.newest, e.rejected = m, m.bad
	if !e.rejected {
		e.good, e.hasGood, e.hosts = m.what, true, r.Hosts
	}
	return e.bad(r.Name), true
}

// without takes one out; it tells whether it was there.
func without[T any](t table[T], name string) bool {
	_, had := t[name]
	delete(t, name)
	return had
}

// drop takes out what is not present; it tells whether that was anything.
func drop[T any](t table[T], present map[string]bool) bool {
	before := len(t)
	maps.DeleteFunc(t, func(name string, _ *entry[T]) bool { return !present[name] })
	return len(t) != before
}

// verdicts are those of the newest version of a resource.
func (e *entry[T]) verdicts(name string) []mesh.Verdict {
	switch {
	case e.refused:
		return e.invalid
	case e.newest == nil:
		return nil
	}
	return e.newest.notes.Verdicts(e.source, name)
}

// bad are those of class Invalid.
func (e *entry[T]) bad(name string) []mesh.Verdict {
	if !e.rejected {
		return nil
	}
	return envoy.Invalid(e.verdicts(name))
}
