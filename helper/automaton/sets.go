// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"encoding/binary"
	"math/bits"
)

// setTable turns sets of atoms into sets of routes.
type setTable struct {
	words   int
	records []setRecord
	dense   []uint64 // words of each set of a dimension that is not the path
	pairs   []pair   // words that are not 0, of the path's sets
	ids     map[string]uint16
}

// setRecord is one set. The number 0 is none.
type setRecord struct {
	at    uint32 // in dense or in pairs; of a single pair it is the word
	count uint8  // of pairs
	bad   uint16 // the set that holds if the string is not valid UTF-8
	flags uint8  // of the machine
	bits  uint64 // of a single pair
}

type pair struct {
	word uint32
	bits uint64
}

// add returns the number of the routes that a set of a dimension's atoms leaves.
// missing: the string was not there.
func (t *setTable) add(d *dimension, isPath, missing bool, atoms []int32) (uint16, error) {
	key := []byte{d.number, 0}
	if missing {
		key[1] = 1
	}
	key = pack(key, atoms)
	if id, ok := t.ids[string(key)]; ok {
		return id, nil
	}
	if len(t.records) >= 1<<16 {
		return 0, errBytes
	}
	id := uint16(len(t.records))
	t.ids[string(key)] = id
	r := setRecord{bad: id}
	for _, a := range atoms {
		r.flags |= uint8(d.flags[a])
	}
	if isPath {
		pairs := d.pairsOf(atoms)
		r.count = uint8(len(pairs))
		if r.count == 1 {
			r.at, r.bits = pairs[0].word, pairs[0].bits
		} else {
			r.at = uint32(len(t.pairs))
			t.pairs = append(t.pairs, pairs...)
		}
	} else {
		r.at = uint32(len(t.dense))
		t.dense = append(t.dense, d.routesOf(atoms, missing, t.words)...)
	}
	t.records = append(t.records, r)
	if rest := d.without(atoms); !missing && len(rest) != len(atoms) {
		bad, err := t.add(d, isPath, false, rest)
		if err != nil {
			return 0, err
		}
		t.records[id].bad = bad
	}
	return id, nil
}

// routesByAtom are the routes of the path's atoms.
func (d *dimension) routesByAtom() [][]int {
	if d.routes == nil {
		d.routes = make([][]int, len(d.atoms))
		for _, c := range d.conds {
			d.routes[c.atom] = append(d.routes[c.atom], c.route)
		}
	}
	return d.routes
}

// pairsOf are the routes whose path is one of the atoms: every route has one.
func (d *dimension) pairsOf(atoms []int32) []pair {
	words := map[int]uint64{}
	for _, a := range atoms {
		for _, r := range d.routesByAtom()[a] {
			words[r/64] |= 1 << (r % 64)
		}
	}
	var out []pair
	for w := range MaxRoutes / 64 {
		if words[w] != 0 {
			out = append(out, pair{uint32(w), words[w]})
		}
	}
	return out
}

// routesOf are the routes whose conditions on the dimension hold. Of hits, which
// are looked at in the end, they hold here.
func (d *dimension) routesOf(atoms []int32, missing bool, words int) []uint64 {
	out := make([]uint64, words)
	for i := range out {
		out[i] = ^uint64(0)
	}
	in := make(map[int32]bool, len(atoms))
	for _, a := range atoms {
		in[a] = true
	}
	empty := d.dfa.final[0]
	for _, c := range d.conds {
		var ok bool
		switch {
		case missing && c.asEmpty:
			ok = d.holds(empty, c.atom) != c.invert
		case missing:
			ok = c.missing
		case c.atom == present:
			ok = !c.invert
		case d.hit[c.atom]:
			ok = true
		default:
			ok = in[c.atom] != c.invert
		}
		if !ok {
			out[c.route/64] &^= 1 << (c.route % 64)
		}
	}
	return out
}

// firstBit is the first route of a word.
func firstBit(w uint64) int { return bits.TrailingZeros64(w) }

func (t *setTable) encodeRecords() []byte {
	var out []byte
	for _, r := range t.records {
		out = binary.LittleEndian.AppendUint32(out, r.at)
		out = binary.LittleEndian.AppendUint16(out, r.bad)
		out = append(out, r.count, r.flags)
		out = binary.LittleEndian.AppendUint64(out, r.bits)
	}
	return out
}
