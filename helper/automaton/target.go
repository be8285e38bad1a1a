// SPDX-License-Identifier: Apache-2.0

package automaton

// Spans of a head that a machine reports, by number.
const (
	SpanMethod = iota
	SpanPath
	SpanQuery
	SpanAuthority // of the absolute form
	SpanHost
	SpanNone // of a value that nobody needs
	Spans
)

// targetByte tells the bytes apart that end a part of a target.
func targetByte(c int) int {
	switch {
	case c == ' ':
		return byteSP
	case c == '#':
		return byteHash
	case c == '?':
		return byteQuestion
	case c == '&':
		return byteAnd
	case isCTL(c):
		return byteCTL
	case 0x80 <= c && c < join:
		return byteHigh
	}
	return byteOther
}

// toVersion ends the target.
func (g *common) toVersion(ops uint32, span uint8) action {
	return action{ops: ops | opVersion, span: span, next: g.version, alt: g.line}
}

// embedPath makes the rows of the path.
func (b *builder) embedPath(d *dimension, g *common, emits *lists) {
	runs := d.runs()
	for s := range d.dfa.states() {
		b.fill(d.first+state(s), func(c int) ref {
			switch targetByte(c) {
			case byteSP:
				return b.do(g.toVersion(opSave|opSpan, SpanPath))
			case byteQuestion:
				return b.do(action{ops: opSave | opSpan | opAfter, span: SpanPath, next: g.query})
			case byteHash:
				return b.stop("fragment")
			case byteCTL:
				return b.stop("target-byte")
			}
			to := d.to(int32(s), c)
			a := d.entering(to, c, opHop, emits)
			if to == int32(s) && c != '&' && c < 0x80 {
				a.ops = 0
			}
			if run, ok := runs[to]; ok && a.ops == 0 {
				a.ops, a.alt = opAhead, d.first+state(run.to)
				a.text, a.bytes = run.text, run.n
			}
			return b.ref(a)
		})
	}
}

// embedParameter makes the rows of a query parameter's value.
func (b *builder) embedParameter(d *dimension, g *common, emits *lists) {
	for s := range d.dfa.states() {
		b.fill(d.first+state(s), func(c int) ref {
			switch targetByte(c) {
			case byteSP:
				return b.do(g.toVersion(opSave|opSpan, SpanQuery))
			case byteAnd:
				return b.do(action{ops: opSave, next: g.query})
			case byteHash:
				return b.stop("fragment")
			case byteCTL:
				return b.stop("target-byte")
			}
			to := d.to(int32(s), c)
			a := d.entering(to, c, opHop, emits)
			if to == int32(s) && c != '?' && c < 0x80 {
				a.ops = 0
			}
			return b.ref(a)
		})
	}
}

// embedQuery makes the states that read a query's names: g.query is the root of
// their tree, g.pass is for the rest.
func (b *builder) embedQuery(params []*dimension, g *common, emits *lists) {
	root := newTrie()
	for _, d := range params {
		root.insert(d.name, d)
	}
	ends := func(d *dimension, a action) ref {
		if d != nil {
			a.ops |= opEmpty
			a.ops &^= opVersion // alt has one use
			a.dim, a.alt = d.number, d.start
		}
		return b.ref(a)
	}
	var walk func(t *trie, s state)
	walk = func(t *trie, s state) {
		kids := map[byte]state{}
		for _, c := range t.order {
			kids[c] = b.state(g.lines)
		}
		b.fill(s, func(c int) ref {
			switch targetByte(c) {
			case byteSP:
				return ends(t.end, g.toVersion(opSpan, SpanQuery))
			case byteAnd:
				return ends(t.end, action{next: g.query})
			case byteHash:
				return b.stop("fragment")
			case byteCTL:
				return b.stop("target-byte")
			}
			if c == '=' && t.end != nil {
				d := t.end
				a := d.entering(0, c, opHop, emits)
				a.ops |= opDim | opFirst
				a.dim, a.alt = d.number, g.pass
				return b.do(a)
			}
			if kid, ok := kids[byte(c)]; ok && c != '=' && c != join {
				return ref(kid)
			}
			if s == g.pass && c != '?' && c < 0x80 {
				return ref(g.pass)
			}
			return b.do(action{ops: opHop, next: g.pass})
		})
		for _, c := range t.order {
			walk(t.kids[c], kids[c])
		}
	}
	walk(newTrie(), g.pass)
	walk(root, g.query)
}

// trie is a tree of names. order keeps it deterministic.
type trie struct {
	kids  map[byte]*trie
	order []byte
	end   *dimension
}

func newTrie() *trie { return &trie{kids: map[byte]*trie{}} }

func (t *trie) insert(name string, d *dimension) {
	for i := range len(name) {
		kid := t.kids[name[i]]
		if kid == nil {
			kid = newTrie()
			t.kids[name[i]] = kid
			t.order = append(t.order, name[i])
		}
		t = kid
	}
	t.end = d
}
