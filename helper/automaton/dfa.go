// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
)

// dfa recognises the same as an nfa, one state at a time, over classes of bytes
// that no pattern tells apart. State 0 is the start.
type dfa struct {
	columns int
	class   [symbolCount]int16 // -1 if it cannot occur
	step    []int32            // [state*columns+class]
	final   []int32            // of a state: the number of the atoms that hold at its end
	hits    []int32            // and of those that it sets
	sets    [][]int32          // sets of atoms by number; 0 is the empty one
}

func (d *dfa) states() int { return len(d.final) }

// to is the state after a symbol, -1 if that cannot occur.
func (d *dfa) to(s int32, c int) int32 {
	class := d.class[c]
	if class < 0 {
		return -1
	}
	return d.step[int(s)*d.columns+int(class)]
}

// setIDs numbers sets of atoms.
type setIDs struct {
	sets [][]int32
	ids  map[string]int32
}

func newSetIDs() *setIDs {
	return &setIDs{sets: [][]int32{nil}, ids: map[string]int32{"": 0}}
}

func (s *setIDs) id(atoms []int32) int32 {
	slices.Sort(atoms)
	atoms = slices.Compact(atoms)
	key := pack(nil, atoms)
	id, ok := s.ids[string(key)]
	if !ok {
		id = int32(len(s.sets))
		s.sets = append(s.sets, slices.Clone(atoms))
		s.ids[string(key)] = id
	}
	return id
}

func pack(key []byte, v []int32) []byte {
	for _, x := range v {
		key = binary.LittleEndian.AppendUint32(key, uint32(x))
	}
	return key
}

// symbols divides the bytes into classes by the labels of an nfa.
type symbols struct {
	class [symbolCount]int16
	of    [][]int16 // classes of a label
	rep   []int     // a symbol of a class
}

func divide(labels []byteSet) symbols {
	var s symbols
	part := make([]int16, symbolCount)
	for _, l := range append([]byteSet{may}, labels...) {
		ids := map[[2]int16]int16{}
		for c := range part {
			k := [2]int16{part[c], 0}
			if l.has(c) {
				k[1] = 1
			}
			id, ok := ids[k]
			if !ok {
				id = int16(len(ids))
				ids[k] = id
			}
			part[c] = id
		}
	}
	ids := map[int16]int16{}
	for c := range part {
		s.class[c] = -1
		if !may.has(c) {
			continue
		}
		id, ok := ids[part[c]]
		if !ok {
			id = int16(len(s.rep))
			ids[part[c]] = id
			s.rep = append(s.rep, c)
		}
		s.class[c] = id
	}
	s.of = make([][]int16, len(labels))
	for i, l := range labels {
		for class, c := range s.rep {
			if l.has(c) {
				s.of[i] = append(s.of[i], int16(class))
			}
		}
	}
	return s
}

// What came before, for \b and the like.
const (
	beforeOther = iota
	beforeWord
	beforeNothing
)

// subsets is the construction of a dfa from an nfa.
type subsets struct {
	n     *nfa
	sym   symbols
	sets  [][]int32 // of nfa nodes, sorted
	after []uint8   // before*, by state
	ids   map[string]int32
	atoms *setIDs
	mark  []uint32
	turn  uint32
	stack []int32
	key   []byte
}

// determinize builds the dfa within limits.
func determinize(n *nfa, lim *limits, maxStates int) (*dfa, error) {
	if n.conds {
		var word byteSet
		for c := range 0x80 {
			if isWord(c) {
				word.add(c, c)
			}
		}
		n.label(word) // so that a class is of such bytes, or of others
	}
	s := &subsets{
		n: n, sym: divide(n.labels), ids: map[string]int32{}, atoms: newSetIDs(),
		mark: make([]uint32, len(n.nodes)),
	}
	d := &dfa{columns: len(s.sym.rep), class: s.sym.class}
	first := uint8(beforeOther)
	if n.conds {
		first = beforeNothing
	}
	s.state(s.closure([]int32{0}, nil), first)
	buckets := make([][]int32, d.columns)
	for at := 0; at < len(s.sets); at++ {
		if at >= maxStates {
			return nil, errStates
		}
		s.steps(int32(at), buckets)
		work := 0
		for _, next := range buckets {
			work += 1 + len(next)
		}
		if err := lim.tick(work); err != nil {
			return nil, err
		}
		for c := range buckets {
			after := uint8(beforeOther)
			if n.conds && isWord(s.sym.rep[c]) {
				after = beforeWord
			}
			d.step = append(d.step, s.state(s.closure(buckets[c], nil), after))
		}
		d.final = append(d.final, s.atoms.id(s.finals(int32(at))))
		var hits []int32
		for _, x := range s.sets[at] {
			hits = append(hits, n.nodes[x].hits...)
		}
		d.hits = append(d.hits, s.atoms.id(hits))
	}
	d.sets = s.atoms.sets
	return d, nil
}

// state returns the state of a set, which may be new.
func (s *subsets) state(set []int32, after uint8) int32 {
	s.key = append(pack(s.key[:0], set), after)
	id, ok := s.ids[string(s.key)]
	if !ok {
		id = int32(len(s.sets))
		s.sets = append(s.sets, slices.Clone(set))
		s.after = append(s.after, after)
		s.ids[string(s.key)] = id
	}
	return id
}

// closure adds what is reached without a byte, under a condition if holds allows
// it. The result is sorted, and valid until the next call.
func (s *subsets) closure(from []int32, holds func(syntax.EmptyOp) bool) []int32 {
	s.turn++
	out := s.stack[:0]
	visit := func(x int32) {
		if s.mark[x] != s.turn {
			s.mark[x] = s.turn
			out = append(out, x)
		}
	}
	for _, x := range from {
		visit(x)
	}
	for i := 0; i < len(out); i++ {
		nd := &s.n.nodes[out[i]]
		for _, to := range nd.eps {
			visit(to)
		}
		if holds != nil {
			for _, c := range nd.conds {
				if holds(c.op) {
					visit(c.to)
				}
			}
		}
	}
	slices.Sort(out)
	s.stack = out
	return out
}

// steps fills the buckets with the nodes that follow a state, by class.
func (s *subsets) steps(at int32, buckets [][]int32) {
	for c := range buckets {
		buckets[c] = buckets[c][:0]
	}
	if !s.n.conds {
		for _, x := range s.sets[at] {
			for _, e := range s.n.nodes[x].edges {
				for _, c := range s.sym.of[e.label] {
					buckets[c] = append(buckets[c], e.to)
				}
			}
		}
		return
	}
	for c := range buckets {
		word := isWord(s.sym.rep[c])
		set := s.closure(s.sets[at], func(op syntax.EmptyOp) bool {
			return holds(op, s.after[at], word, false)
		})
		for _, x := range set {
			for _, e := range s.n.nodes[x].edges {
				if slices.Contains(s.sym.of[e.label], int16(c)) {
					buckets[c] = append(buckets[c], e.to)
				}
			}
		}
	}
}

// finals are the atoms that hold if the string ends in a state.
func (s *subsets) finals(at int32) []int32 {
	set := s.sets[at]
	if s.n.conds {
		set = s.closure(set, func(op syntax.EmptyOp) bool { return holds(op, s.after[at], false, true) })
	}
	var out []int32
	for _, x := range set {
		out = append(out, s.n.nodes[x].final...)
	}
	return out
}

// holds tells whether a condition holds between what came before and a next byte,
// or the end. There are no line ends, so lines and text are the same.
func holds(op syntax.EmptyOp, before uint8, word, end bool) bool {
	switch op {
	case syntax.EmptyBeginLine, syntax.EmptyBeginText:
		return before == beforeNothing
	case syntax.EmptyEndLine, syntax.EmptyEndText:
		return end
	}
	boundary := (before == beforeWord) != word
	return boundary == (op == syntax.EmptyWordBoundary)
}
