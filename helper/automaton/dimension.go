// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"fmt"

	"kmesh/helper/mesh"
)

// dimension is a string of a head that routes, or the grammar, ask about.
type dimension struct {
	name  string // of a header, lower-case, or of a parameter; for messages
	atoms []atom
	ids   map[atom]int32
	conds []cond

	number  uint8
	dfa     *dfa
	hit     []bool         // atoms that are hits
	grammar map[int32]bool // atoms of the grammar
	group   *group
	start   state
	first   state // of its states in the builder: state of the dfa + first
	finals  map[state]int32
	// utf8: there are expressions, which match only what is valid UTF-8.
	utf8     bool
	flags    map[int32]uint16 // of the machine, set by atoms of the grammar
	once     string           // rule that a second field of the name breaks
	hitWords [2]int           // words of the flags of its expressions that are hits
	flagOf   map[int32]int    // number of a hit's flag
	routes   [][]int          // by atom
}

// atom is a pattern; equal ones are one.
type atom struct {
	mesh.StringMatch
	// segment: Value, or Value followed by "/" and anything.
	segment bool
	// grammar atoms are not those of routes: they tell a join from a ",".
	grammar bool
}

// needsUTF8 tells whether the atom holds for valid UTF-8 only.
func (a atom) needsUTF8() bool { return a.Kind == mesh.StringRegex && !a.grammar }

// present is the atom number of "there at all".
const present = -1

// cond is what a route asks of a dimension.
type cond struct {
	route   int
	atom    int32
	invert  bool
	missing bool // holds when the string is not there
	asEmpty bool // when it is not there it is empty
}

func newDimension(name string) *dimension {
	return &dimension{
		name: name, ids: map[atom]int32{}, grammar: map[int32]bool{}, finals: map[state]int32{},
		flags: map[int32]uint16{}, flagOf: map[int32]int{},
	}
}

func (d *dimension) atom(a atom) int32 {
	id, ok := d.ids[a]
	if !ok {
		id = int32(len(d.atoms))
		d.atoms = append(d.atoms, a)
		d.ids[a] = id
		d.hit = append(d.hit, false)
		d.utf8 = d.utf8 || a.needsUTF8()
	}
	return id
}

func (d *dimension) grammarAtom(regex string) int32 {
	id := d.atom(atom{StringMatch: mesh.StringMatch{Kind: mesh.StringRegex, Value: regex}, grammar: true})
	d.grammar[id] = true
	return id
}

// addAtom puts an atom into an nfa.
func (d *dimension) addAtom(n *nfa, id int32, asHits bool) (err error) {
	a := d.atoms[id]
	if a.segment {
		return n.addSegment(a.StringMatch, id)
	}
	n.grammar = a.grammar
	hit, err := n.add(a.StringMatch, id, asHits && !a.grammar)
	d.hit[id] = hit
	return err
}

// addSegment adds the path-separated prefix.
func (n *nfa) addSegment(m mesh.StringMatch, id int32) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case tooManyNodes:
			err = errNodes
		default:
			panic(p)
		}
	}()
	end := n.literal(0, m.Value, m.IgnoreCase)
	rest := n.rest(n.sharedEdge(end, oneByte('/', false)))
	n.nodes[end].final = append(n.nodes[end].final, id)
	n.nodes[rest].final = append(n.nodes[rest].final, id)
	return nil
}

// build makes the dimension's automaton. Prefixes become hits only where there would
// be far more states than their patterns have bytes without that: together with
// patterns that are open at the front each would multiply them.
func (d *dimension) build(lim *limits, nodes, states int) error {
	prefixes := 0
	for _, a := range d.atoms {
		if a.Kind == mesh.StringPrefix && !a.segment {
			prefixes++
		}
	}
	if prefixes == 0 || prefixes > MaxHits/2 {
		return d.try(lim, nodes, states, false)
	}
	err := d.try(lim, nodes, min(states, d.fair()), false)
	if err == errStates {
		err = d.try(lim, nodes, states, true)
	}
	return err
}

// fair is a number of states that patterns need which do not multiply.
func (d *dimension) fair() int {
	n := 512
	for _, a := range d.atoms {
		n += 4 * (1 + len(a.Value))
	}
	return n
}

func (d *dimension) try(lim *limits, nodes, states int, asHits bool) error {
	n := newNFA(nodes)
	const perAtom = 300 // steps that it takes to read one
	for id := range d.atoms {
		if err := d.addAtom(n, int32(id), asHits); err != nil {
			return err
		}
		if err := lim.tick(perAtom); err != nil {
			return err
		}
	}
	if err := lim.tick(len(n.nodes)); err != nil {
		return err
	}
	// While it is being built the automaton may be larger than when it is minimal.
	dfa, err := determinize(n, lim, 2*states)
	if err != nil {
		return err
	}
	if err := minimize(dfa, lim); err != nil {
		return err
	}
	d.dfa = dfa
	if d.dfa.states() > states {
		return errStates
	}
	return nil
}

// holds tells whether an atom is in a set of the dfa.
func (d *dimension) holds(set, atom int32) bool {
	for _, a := range d.dfa.sets[set] {
		if a == atom {
			return true
		}
	}
	return false
}

// alive tells of each state whether the atom can still hold.
func (d *dimension) alive(atom int32) []bool {
	n := d.dfa.states()
	out := make([]bool, n)
	for s := range n {
		out[s] = d.holds(d.dfa.final[s], atom)
	}
	for changed := true; changed; {
		changed = false
		for s := range n {
			if out[s] {
				continue
			}
			for _, to := range d.dfa.step[s*d.dfa.columns : (s+1)*d.dfa.columns] {
				if out[to] {
					out[s], changed = true, true
					break
				}
			}
		}
	}
	return out
}

// to is the state after a symbol, -1 if it cannot occur.
func (d *dimension) to(s int32, c int) int32 { return d.dfa.to(s, c) }

func (d *dimension) String() string { return fmt.Sprintf("dimension %q", d.name) }
