// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"encoding/binary"
	"fmt"
	"regexp/syntax"
	"unicode"
	"unicode/utf8"

	"kmesh/helper/mesh"
)

// parse returns the expression of a regex match, nil for the other kinds.
func parse(m mesh.StringMatch) (*syntax.Regexp, error) {
	if m.Kind != mesh.StringRegex {
		return nil, nil
	}
	re, err := syntax.Parse(m.Value, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", m.Value, err)
	}
	return re.Simplify(), nil
}

// literalOf turns an expression that is only a literal, with or without ".*" on
// either side, into the kind of match that it is.
func literalOf(m mesh.StringMatch, re *syntax.Regexp) (mesh.StringMatch, bool) {
	if re == nil {
		return m, true
	}
	parts := flatten(re, nil)
	front, back := false, false
	if len(parts) > 0 && isAnyStar(parts[0]) {
		front, parts = true, parts[1:]
	}
	if len(parts) > 0 && isAnyStar(parts[len(parts)-1]) {
		back, parts = true, parts[:len(parts)-1]
	}
	text := ""
	for _, p := range parts {
		if p.Op != syntax.OpLiteral || p.Flags&syntax.FoldCase != 0 {
			return m, false
		}
		text += string(p.Rune)
	}
	for _, r := range text {
		if r == utf8.RuneError {
			return m, false
		}
	}
	kind := mesh.StringExact
	switch {
	case front && back:
		kind = mesh.StringContains
	case back:
		kind = mesh.StringPrefix
	case front:
		kind = mesh.StringSuffix
	}
	return mesh.StringMatch{Kind: kind, Value: text}, true
}

func flatten(re *syntax.Regexp, into []*syntax.Regexp) []*syntax.Regexp {
	switch re.Op {
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			into = flatten(sub, into)
		}
		return into
	case syntax.OpEmptyMatch:
		return into
	}
	return append(into, re)
}

func isAnyStar(re *syntax.Regexp) bool {
	return re.Op == syntax.OpStar &&
		(re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL)
}

// regexp adds the way of re from a node, and returns where it ends.
func (n *nfa) regexp(from int32, re *syntax.Regexp, shared bool) int32 {
	fold := re.Flags&syntax.FoldCase != 0
	switch re.Op {
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			from = n.regexp(from, sub, shared)
		}
		return from
	case syntax.OpEmptyMatch:
		return from
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if n.grammar && r == joinRune {
				from = n.over(from, byteSet{4: 1}, shared)
				continue
			}
			from = n.char(from, oneRune(r, fold), shared)
		}
		return from
	case syntax.OpCharClass:
		return n.char(from, re.Rune, shared)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return n.char(from, runes{0, unicode.MaxRune}, shared)
	}
	if !shared {
		return n.piece(from, re)
	}
	key := step{from: from, how: string(textOf(re, nil))}
	to, ok := n.share[key]
	if !ok {
		to = n.piece(from, re)
		n.share[key] = to
	}
	return to
}

// textOf is a text that two expressions share only if they are the same.
// Regexp.String would do, but takes very long for large classes.
func textOf(re *syntax.Regexp, to []byte) []byte {
	to = append(to, byte(re.Op), byte(re.Flags&syntax.FoldCase))
	to = binary.AppendUvarint(to, uint64(len(re.Rune)))
	to = append(to, string(re.Rune)...)
	to = append(to, '(')
	for _, sub := range re.Sub {
		to = textOf(sub, to)
	}
	return append(to, ')')
}

// joinRune is how the grammar's own expressions write join.
const joinRune = '\ue000'

// char adds one rune of a list. Whether a string is valid UTF-8 is looked at
// elsewhere (opHigh), so that here only valid strings count: where all runes beyond
// ASCII are in the list, any first byte followed by as many others as it asks for
// will do.
func (n *nfa) char(from int32, r runes, shared bool) int32 {
	if len(r) == 0 {
		return n.node() // nothing leads there
	}
	var to int32
	ascii := r.ascii()
	if shared {
		// Every list has its own end, because more than one way may lead there.
		key := step{from: from, how: "=" + string(r)}
		if to, ok := n.share[key]; ok {
			return to
		}
		if r[len(r)-1] < utf8.RuneSelf {
			return n.sharedEdge(from, ascii)
		}
		to = n.node()
		n.share[key] = to
	} else {
		to = n.node()
	}
	n.edge(from, ascii, to)
	if r.allHigh() {
		next := bytesFrom(0x80, 0xbf)
		one, two, three := n.node(), n.node(), n.node() // bytes still to come
		n.edge(one, next, to)
		n.edge(two, next, one)
		n.edge(three, next, two)
		n.edge(from, bytesFrom(0xc2, 0xdf), one)
		n.edge(from, bytesFrom(0xe0, 0xef), two)
		n.edge(from, bytesFrom(0xf0, 0xf4), three)
		return to
	}
	r.sequences(func(seq []span) {
		at := from
		for i, b := range seq {
			end := to
			if i < len(seq)-1 {
				end = n.node()
			}
			n.edge(at, bytesFrom(int(b.lo), int(b.hi)), end)
			at = end
		}
	})
	return to
}

func (n *nfa) over(from int32, s byteSet, shared bool) int32 {
	if shared {
		return n.sharedEdge(from, s)
	}
	to := n.node()
	n.edge(from, s, to)
	return to
}

// single returns the list of an expression that is one rune, if all runes beyond
// ASCII are in it.
func single(re *syntax.Regexp) (runes, bool) {
	switch re.Op {
	case syntax.OpCapture:
		return single(re.Sub[0])
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return runes{0, unicode.MaxRune}, true
	case syntax.OpCharClass:
		return re.Rune, runes(re.Rune).allHigh()
	}
	return nil, false
}

// piece adds what has branches or loops. It leaves no way back to from, which
// other patterns share.
func (n *nfa) piece(from int32, re *syntax.Regexp) int32 {
	out := n.node()
	switch re.Op {
	case syntax.OpNoMatch:
	case syntax.OpStar, syntax.OpPlus:
		if r, ok := single(re.Sub[0]); ok {
			n.run(from, r, out)
			if re.Op == syntax.OpStar {
				n.eps(from, out)
			}
			break
		}
		in := n.node()
		n.eps(from, in)
		end := n.regexp(in, re.Sub[0], false)
		n.eps(end, in)
		n.eps(end, out)
		if re.Op == syntax.OpStar {
			n.eps(in, out)
		}
	case syntax.OpQuest:
		n.eps(n.regexp(from, re.Sub[0], false), out)
		n.eps(from, out)
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			n.eps(n.regexp(from, sub, false), out)
		}
	default:
		n.conds = true
		n.nodes[from].conds = append(n.nodes[from].conds, condEdge{emptyOp(re.Op), out})
	}
	return out
}

// run adds one or more runes of a list that has all beyond ASCII: one byte that may
// begin a rune, then any of the list's bytes. A valid string leaves no other way
// than to go on to the end of a rune, since no rune begins with what is left of it.
func (n *nfa) run(from int32, r runes, out int32) {
	first := r.ascii()
	later := first
	first.add(0xc2, 0xf4)
	later.add(0x80, 0xf4)
	if n.grammar { // it is about bytes
		first.add(0x80, 0xff)
		later.add(0x80, 0xff)
	}
	n.edge(from, first, out)
	n.edge(out, later, out)
}

func emptyOp(op syntax.Op) syntax.EmptyOp {
	switch op {
	case syntax.OpBeginLine:
		return syntax.EmptyBeginLine
	case syntax.OpEndLine:
		return syntax.EmptyEndLine
	case syntax.OpBeginText:
		return syntax.EmptyBeginText
	case syntax.OpEndText:
		return syntax.EmptyEndText
	case syntax.OpWordBoundary:
		return syntax.EmptyWordBoundary
	case syntax.OpNoWordBoundary:
		return syntax.EmptyNoWordBoundary
	}
	panic(fmt.Sprintf("regexp operation %v", op))
}
