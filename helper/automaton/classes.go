// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"time"
	"unicode"

	"kmesh/helper/mesh"
)

// Class is a set of strings that some patterns do not tell apart.
type Class struct {
	// Holds are the numbers of the patterns that match every string of the class, in
	// order; no other pattern matches any of them.
	Holds []int
	// Witness is one of the strings: one that was preferred, else a shortest one, of
	// ASCII if there is such a one.
	Witness string
}

// Range is the pattern of the decimal integers in [start, end).
func Range(start, end int64) mesh.StringMatch {
	return mesh.StringMatch{Kind: mesh.StringRegex, Value: rangeRegex(start, end)}
}

// Classes divides strings by which of the patterns match them: every string of within
// is in exactly one class, and no class is empty. within is an expression in which a
// byte above 0x7f is a character that "." and inverted sets have; other bytes that no
// field value holds (CTL but HTAB) occur nowhere. Of a Budget, States, Nodes and Time
// count.
func Classes(within string, patterns []mesh.StringMatch, prefer []string, budget Budget) ([]Class, error) {
	n := newNFA(budget.Nodes)
	err := n.within(within)
	for i, p := range patterns {
		if err == nil {
			err = n.whole(p, int32(i)+1)
		}
	}
	if err != nil {
		return nil, err
	}
	d, err := determinize(n, &limits{end: time.Now().Add(budget.Time), now: time.Now}, budget.States)
	if err != nil {
		return nil, fmt.Errorf("%d patterns together need too much %w", len(patterns), err)
	}
	c := newClassifier(d, patterns)
	c.explore(prefer)
	return c.classes, nil
}

// catch turns the panic of node into an error.
func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case tooManyNodes:
		*err = errNodes
	default:
		panic(p)
	}
}

// whole makes the strings that m matches end in atom, without hits.
func (n *nfa) whole(m mesh.StringMatch, atom int32) (err error) {
	defer catch(&err)
	re, err := parse(m)
	if err != nil {
		return err
	}
	m, plain := literalOf(m, re)
	end := int32(0)
	if plain {
		if m.Kind == mesh.StringSuffix || m.Kind == mesh.StringContains {
			end = n.anywhere()
		}
		end = n.literal(end, m.Value, m.IgnoreCase)
		if m.Kind == mesh.StringPrefix || m.Kind == mesh.StringContains {
			end = n.rest(end)
		}
	} else {
		end = n.regexp(0, re, true)
	}
	n.nodes[end].final = append(n.nodes[end].final, atom)
	return nil
}

// within makes the strings of an expression over bytes end in atom 0.
func (n *nfa) within(expr string) (err error) {
	defer catch(&err)
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return fmt.Errorf("regex %q: %w", expr, err)
	}
	in := n.node()
	n.eps(0, in)
	end := n.bytes(in, re.Simplify())
	n.nodes[end].final = append(n.nodes[end].final, 0)
	return nil
}

// bytes adds the way of re from a node, a byte above 0x7f being one character.
func (n *nfa) bytes(from int32, re *syntax.Regexp) int32 {
	over := func(r runes) {
		s := r.ascii()
		if r.allHigh() {
			s.add(0x80, 0xff)
		}
		to := n.node()
		n.edge(from, s, to)
		from = to
	}
	out := n.node()
	switch re.Op {
	case syntax.OpConcat, syntax.OpCapture:
		for _, sub := range re.Sub {
			from = n.bytes(from, sub)
		}
	case syntax.OpEmptyMatch:
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			over(oneRune(r, re.Flags&syntax.FoldCase != 0))
		}
	case syntax.OpCharClass:
		over(re.Rune)
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		over(runes{0, unicode.MaxRune})
	case syntax.OpStar, syntax.OpPlus:
		in := n.node()
		n.eps(from, in)
		end := n.bytes(in, re.Sub[0])
		n.eps(end, in)
		n.eps(end, out)
		if re.Op == syntax.OpStar {
			n.eps(in, out)
		}
		return out
	case syntax.OpQuest, syntax.OpAlternate:
		for _, sub := range re.Sub {
			n.eps(n.bytes(from, sub), out)
		}
		if re.Op == syntax.OpQuest {
			n.eps(from, out)
		}
		return out
	default:
		panic(fmt.Sprintf("regexp operation %v", re.Op))
	}
	return from
}

// place is where a string ends: in a state of a dfa, and somewhere in a rune. An
// expression matches only valid UTF-8, which the dfa leaves to others to look at.
type place struct {
	state int32
	rune  runeState
}

// runeState says what has been read of a rune.
type runeState uint8

const (
	runeWhole runeState = iota
	runeOne             // one byte is to come, from 80 to bf
	runeTwo             // two
	runeThree           // three
	runeE0              // two, the next from a0
	runeED              // two, the next to 9f
	runeF0              // three, the next from 90
	runeF4              // three, the next to 8f
	runeBad             // there was a byte that is not part of valid UTF-8
)

// next is the state after a byte.
func (s runeState) next(c byte) runeState {
	lo, hi, to := byte(0x80), byte(0xbf), runeOne
	switch s {
	case runeBad:
		return runeBad
	case runeWhole:
		switch {
		case c < 0x80:
			return runeWhole
		case c == 0xe0:
			return runeE0
		case c == 0xed:
			return runeED
		case c == 0xf0:
			return runeF0
		case c == 0xf4:
			return runeF4
		case 0xc2 <= c && c <= 0xdf:
			return runeOne
		case 0xe0 <= c && c <= 0xef:
			return runeTwo
		case 0xf0 <= c && c <= 0xf4:
			return runeThree
		}
		return runeBad
	case runeOne:
		to = runeWhole
	case runeThree:
		to = runeTwo
	case runeE0:
		lo = 0xa0
	case runeED:
		hi = 0x9f
	case runeF0:
		lo, to = 0x90, runeTwo
	case runeF4:
		hi, to = 0x8f, runeTwo
	}
	if c < lo || c > hi {
		return runeBad
	}
	return to
}

// came is how a place was reached first.
type came struct {
	from place
	over byte
}

// classifier finds the classes of a dfa, whose atom 0 is what may occur at all and
// whose other atoms are patterns, numbered from 1.
type classifier struct {
	d       *dfa
	regexps []bool // of a pattern: it is an expression
	came    map[place]came
	order   []place
	ids     *setIDs
	byID    map[int32]int
	classes []Class
}

func newClassifier(d *dfa, patterns []mesh.StringMatch) *classifier {
	c := &classifier{
		d: d, regexps: make([]bool, len(patterns)), came: map[place]came{{}: {}}, order: []place{{}},
		ids: newSetIDs(), byID: map[int32]int{},
	}
	for i, p := range patterns {
		c.regexps[i] = p.Kind == mesh.StringRegex
	}
	return c
}

// alphabet returns one byte for each way in which places go on, letters first: a
// witness is for people.
func (c *classifier) alphabet() (ascii, high []byte) {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-_/.:="
	order := []byte(letters)
	for b := range 0x100 {
		order = append(order, byte(b))
	}
	type column struct {
		class int16
		next  [runeBad + 1]runeState
	}
	seen := map[column]bool{}
	for _, b := range order {
		col := column{class: c.d.class[b]}
		for s := range col.next {
			col.next[s] = runeState(s).next(b)
		}
		switch {
		case col.class < 0 || seen[col]:
		case b < 0x80:
			ascii = append(ascii, b)
		default:
			high = append(high, b)
		}
		seen[col] = true
	}
	return ascii, high
}

// explore visits every place, those that ASCII leads to first.
func (c *classifier) explore(prefer []string) {
	ascii, high := c.alphabet()
	visit := func(i int, over []byte) {
		at := c.order[i]
		for _, b := range over {
			to := place{c.d.to(at.state, int(b)), at.rune.next(b)}
			if _, ok := c.came[to]; !ok {
				c.came[to] = came{at, b}
				c.order = append(c.order, to)
			}
		}
	}
	for i := 0; i < len(c.order); i++ {
		c.end(c.order[i])
		visit(i, ascii)
	}
	plain := len(c.order)
	for i := 0; i < len(c.order); i++ {
		if i >= plain {
			c.end(c.order[i])
			visit(i, ascii)
		}
		visit(i, high)
	}
	taken := map[int]bool{}
	for _, text := range prefer {
		at := place{}
		for i := 0; i < len(text) && at.state >= 0; i++ {
			at = place{c.d.to(at.state, int(text[i])), at.rune.next(text[i])}
		}
		if at.state < 0 {
			continue
		}
		if i, ok := c.end(at); ok && !taken[i] {
			taken[i] = true
			c.classes[i].Witness = text
		}
	}
}

// end returns the class of the strings that end in a place; false if none may.
func (c *classifier) end(at place) (int, bool) {
	set := c.d.sets[c.d.final[at.state]]
	if !slices.Contains(set, 0) {
		return 0, false
	}
	if at.rune != runeWhole {
		set = slices.DeleteFunc(slices.Clone(set), func(a int32) bool { return a > 0 && c.regexps[a-1] })
	}
	id := c.ids.id(slices.Clone(set))
	i, ok := c.byID[id]
	if !ok {
		i = len(c.classes)
		c.byID[id] = i
		class := Class{}
		for _, atom := range c.ids.sets[id] {
			if atom > 0 {
				class.Holds = append(class.Holds, int(atom)-1)
			}
		}
		var text []byte
		for ; at != (place{}); at = c.came[at].from {
			text = append(text, c.came[at].over)
		}
		slices.Reverse(text)
		class.Witness = string(text)
		c.classes = append(c.classes, class)
	}
	return i, true
}
