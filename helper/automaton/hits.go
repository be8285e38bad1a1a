// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"encoding/binary"
	"slices"
)

// A hit is an atom that holds as soon as a state is reached, whatever follows: an
// infix that was found. It is kept in a flag instead of in the state, since k
// infixes would need 2^k states to remember which of them were seen.

// hitFlags numbers the flags.
type hitFlags struct {
	count int
	of    []*dimension // of a flag
	atom  []int32
}

// hitWord is flags to set, in one word of them.
type hitWord struct {
	word uint32
	mask uint64
}

// assign gives each hit its flag. Those of expressions have words of their own, by
// dimension: they are cleared when the string turns out not to be valid UTF-8.
// If there are too many it returns the route of the first one that is too much.
func (h *hitFlags) assign(dims []*dimension) (route int, ok bool) {
	for _, d := range dims {
		for id, hit := range d.hit {
			if hit && !d.atoms[id].needsUTF8() {
				h.add(d, int32(id))
			}
		}
	}
	for _, d := range dims {
		first := -1
		for id, hit := range d.hit {
			if !hit || !d.atoms[id].needsUTF8() {
				continue
			}
			if first < 0 {
				h.align()
				first = h.count / 64
			}
			h.add(d, int32(id))
		}
		if first >= 0 {
			h.align()
			d.hitWords = [2]int{first, h.count / 64}
		}
	}
	h.align()
	for f := MaxHits; f < h.count; f++ {
		if d := h.of[f]; d != nil {
			return d.routeOf(h.atom[f]), false
		}
	}
	return 0, true
}

func (h *hitFlags) add(d *dimension, atom int32) {
	d.flagOf[atom] = h.count
	h.of = append(h.of, d)
	h.atom = append(h.atom, atom)
	h.count++
}

func (h *hitFlags) align() {
	for h.count%64 != 0 {
		h.of = append(h.of, nil)
		h.atom = append(h.atom, 0)
		h.count++
	}
}

// lists are lists of flags that a state sets.
type lists struct {
	flags *hitFlags
	all   [][]hitWord
	ids   map[string]uint16
}

func newLists(h *hitFlags) *lists {
	return &lists{flags: h, all: [][]hitWord{nil}, ids: map[string]uint16{}}
}

// id is the number of the list of a dimension's hits.
func (l *lists) id(d *dimension, atoms []int32) uint16 {
	masks := make([]uint64, MaxHits/64)
	for _, a := range atoms {
		f := d.flagOf[a]
		masks[f/64] |= 1 << (f % 64)
	}
	var list []hitWord
	var key []byte
	for w, m := range masks {
		if m != 0 {
			list = append(list, hitWord{uint32(w), m})
			key = binary.LittleEndian.AppendUint64(append(key, byte(w)), m)
		}
	}
	id, ok := l.ids[string(key)]
	if !ok {
		id = uint16(len(l.all))
		l.all = append(l.all, list)
		l.ids[string(key)] = id
	}
	return id
}

// without removes from a set the atoms that hold for valid UTF-8 only.
func (d *dimension) without(set []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(set), func(a int32) bool { return d.atoms[a].needsUTF8() })
}
