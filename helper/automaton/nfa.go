// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"regexp/syntax"

	"kmesh/helper/mesh"
)

// nfa recognises the patterns of one dimension at once. Patterns share what they
// have in common from the left, so that sets of nodes stay small.
type nfa struct {
	nodes  []node
	labels []byteSet
	// index finds a label, share a node by the way to it.
	index map[byteSet]int32
	share map[step]int32
	loop  int32 // reached from the start over anything; -1: not made yet
	conds bool  // there are \b and the like
	limit int
	// grammar: the pattern being added is one of the grammar.
	grammar bool
}

// step is a way from a node: over a set, or over a piece of an expression.
type step struct {
	from int32
	over byteSet
	how  string
}

type node struct {
	edges []edge
	eps   []int32
	conds []condEdge
	final []int32 // atoms that hold when the string ends here
	hits  []int32 // atoms that hold as soon as this is reached
}

type edge struct{ label, to int32 }

type condEdge struct {
	op syntax.EmptyOp
	to int32
}

func newNFA(limit int) *nfa {
	return &nfa{
		nodes: make([]node, 1), index: map[byteSet]int32{}, share: map[step]int32{},
		loop: -1, limit: limit,
	}
}

// tooManyNodes is raised by node and caught by add.
type tooManyNodes struct{}

func (n *nfa) node() int32 {
	if len(n.nodes) >= n.limit {
		panic(tooManyNodes{})
	}
	n.nodes = append(n.nodes, node{})
	return int32(len(n.nodes) - 1)
}

func (n *nfa) label(s byteSet) int32 {
	l, ok := n.index[s]
	if !ok {
		l = int32(len(n.labels))
		n.labels = append(n.labels, s)
		n.index[s] = l
	}
	return l
}

func (n *nfa) edge(from int32, s byteSet, to int32) {
	if s != (byteSet{}) {
		n.nodes[from].edges = append(n.nodes[from].edges, edge{n.label(s), to})
	}
}

func (n *nfa) eps(from, to int32) { n.nodes[from].eps = append(n.nodes[from].eps, to) }

// sharedEdge follows the edge from a node over s, which it makes if there is none.
func (n *nfa) sharedEdge(from int32, s byteSet) int32 {
	key := step{from: from, over: s}
	to, ok := n.share[key]
	if !ok {
		to = n.node()
		n.edge(from, s, to)
		n.share[key] = to
	}
	return to
}

// anywhere is the node that any string reaches.
func (n *nfa) anywhere() int32 {
	if n.loop < 0 {
		n.loop = n.node()
		n.eps(0, n.loop)
		n.edge(n.loop, anything, n.loop)
	}
	return n.loop
}

// rest is a node that is reached from another one over anything.
func (n *nfa) rest(from int32) int32 {
	key := step{from: from, how: "rest"}
	to, ok := n.share[key]
	if !ok {
		to = n.node()
		n.eps(from, to)
		n.edge(to, anything, to)
		n.share[key] = to
	}
	return to
}

func (n *nfa) literal(from int32, s string, fold bool) int32 {
	for i := range len(s) {
		from = n.sharedEdge(from, oneByte(s[i], fold))
	}
	return from
}

// add makes the strings that m matches, read from the start, end in atom. It tells
// whether the atom is a hit. asHits turns prefixes into hits.
func (n *nfa) add(m mesh.StringMatch, atom int32, asHits bool) (hit bool, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case tooManyNodes:
			err = errNodes
		default:
			panic(p)
		}
	}()
	re, err := parse(m)
	if err != nil {
		return false, err
	}
	m, plain := literalOf(m, re)
	if plain {
		return n.addPlain(m, atom, asHits), nil
	}
	end := n.regexp(0, re, true)
	n.nodes[end].final = append(n.nodes[end].final, atom)
	return false, nil
}

func (n *nfa) addPlain(m mesh.StringMatch, atom int32, asHits bool) bool {
	from, onHit := int32(0), false
	switch m.Kind {
	case mesh.StringSuffix, mesh.StringContains:
		from = n.anywhere()
	}
	end := n.literal(from, m.Value, m.IgnoreCase)
	switch m.Kind {
	case mesh.StringContains:
		onHit = canHit(m.Value)
	case mesh.StringPrefix:
		onHit = asHits && canHit(m.Value)
	}
	if onHit {
		n.nodes[end].hits = append(n.nodes[end].hits, atom)
		return true
	}
	if m.Kind == mesh.StringContains || m.Kind == mesh.StringPrefix {
		end = n.rest(end)
	}
	n.nodes[end].final = append(n.nodes[end].final, atom)
	return false
}

// canHit: a hit is not taken back, so it must not end in a byte of which it is not
// yet known whether it belongs to the value: a blank may be trailing, and a "," may
// stand for the join of two fields.
func canHit(s string) bool {
	if s == "" {
		return false
	}
	last := s[len(s)-1]
	return last != ' ' && last != '\t' && last != ','
}
