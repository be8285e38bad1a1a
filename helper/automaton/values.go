// SPDX-License-Identifier: Apache-2.0

package automaton

// The states of the grammar that dimensions lead to.
type common struct {
	lines   *group // names of fields, and everything that no dimension reads
	line    state  // the beginning of a line
	full    state  // the same, when no further field is allowed
	ends    state  // after the CR of a line: LF has to follow
	skip    state  // in the value of a field that nobody asks about
	other   state  // in the name of one
	blank   state  // before a value
	version state  // after the target's SP
	query   state  // at the beginning of a parameter
	pass    state  // in a parameter that nobody asks about
	first   state  // after the CR of the first line
	over    state  // after the CR of the line that ends the head
	blankSP state  // as blank, but a tab is wrong
	word    func(c int) ref
}

// Kinds of bytes, where a dimension's own classes do not tell them apart.
const (
	byteOther = iota
	byteCR
	byteLF
	byteTab
	byteSP
	byteCTL
	byteHash
	byteQuestion
	byteAnd
	byteHigh
)

func valueByte(c int) int {
	switch {
	case c == '\r':
		return byteCR
	case c == '\n':
		return byteLF
	case c == '\t':
		return byteTab
	case c == ' ':
		return byteSP
	case isCTL(c):
		return byteCTL
	case 0x80 <= c && c < join:
		return byteHigh
	}
	return byteOther
}

// reserve makes the states of a dimension, without rows. kind tells the bytes apart
// that the dimension's automaton does not read.
func (b *builder) reserve(d *dimension, kind func(c int) int) {
	d.group = b.group(func(c int) [2]int { return [2]int{kind(c), int(d.dfa.class[c])} })
	for s := range d.dfa.states() {
		id := b.state(d.group)
		if s == 0 {
			d.first = id
		}
		d.finals[id] = d.dfa.final[s]
	}
	d.start = d.first
}

// even tells whether a state reads ASCII that is no CTL without changing, so that
// it can be skipped.
func (d *dimension) even(s int32) bool {
	for c := 0x20; c < 0x7f; c++ {
		if d.to(s, c) != s {
			return false
		}
	}
	return true
}

// plain tells so of letters, digits, "-" and ".".
func (d *dimension) plain(s int32) bool {
	for c := range 0x80 {
		if isPlain(c) && d.to(s, c) != s {
			return false
		}
	}
	return true
}

// entering is what happens when a state of the dimension is entered over a byte, as
// an action.
func (d *dimension) entering(s int32, c int, skip uint32, emits *lists) action {
	a := action{next: d.first + state(s)}
	if d.utf8 && 0x80 <= c && c < 0x100 {
		a.ops |= opHigh
	}
	if hits := d.dfa.sets[d.dfa.hits[s]]; len(hits) > 0 {
		a.ops |= opEmit
		a.emit = emits.id(d, hits)
	}
	if d.even(s) {
		a.ops |= skip
	}
	return a
}

// ref makes an action an entry; one that does nothing is only its state.
func (b *builder) ref(a action) ref {
	if a.ops == 0 {
		return ref(a.next)
	}
	return b.do(a)
}

// embedValue makes the rows of a header that may be repeated. A blank may be inside
// of the value or after it: so the state before it is kept, as if the value ended
// there, and until something else comes the automaton goes on in a twin of its
// state that does not overwrite what was kept.
func (b *builder) embedValue(d *dimension, g *common, emits *lists) {
	twins := map[int32]state{}
	var open []int32
	twin := func(s int32) state {
		t, ok := twins[s]
		if !ok {
			t = b.state(d.group)
			d.finals[t] = d.dfa.final[s]
			twins[s] = t
			open = append(open, s)
		}
		return t
	}
	row := func(s int32, isTwin bool) func(c int) ref {
		return func(c int) ref {
			switch valueByte(c) {
			case byteLF:
				return b.stop("bare-lf")
			case byteCTL:
				return b.stop("field-value-byte")
			case byteCR:
				if isTwin {
					return ref(b.leave(g))
				}
				return b.do(action{ops: opSave, next: g.ends})
			case byteTab, byteSP:
				to := d.to(s, c)
				switch {
				case isTwin:
					return ref(twin(to))
				case to != s:
					return b.do(action{ops: opSave, next: twin(to)})
				case c == '\t' && d.even(s):
					return b.do(action{ops: opSkip, next: d.first + state(s)})
				}
				return ref(d.first + state(s))
			}
			to := d.to(s, c)
			a := d.entering(to, c, opSkip, emits)
			if to == s && !isTwin && c < 0x80 {
				a.ops = 0 // it is skipping already
			}
			return b.ref(a)
		}
	}
	for s := range d.dfa.states() {
		b.fill(d.first+state(s), row(int32(s), false))
	}
	for i := 0; i < len(open); i++ {
		b.fill(twins[open[i]], row(open[i], true))
	}
}

// leave goes to the end of a line without keeping anything.
func (b *builder) leave(g *common) ref { return b.do(action{next: g.ends}) }

// strict is a field whose value the grammar restricts.
type strict struct {
	rule  string
	valid int32  // atom of a whole value
	ops   uint32 // on each byte of it
	span  uint8
	// noBlankAfter: not even blanks may follow.
	noBlankAfter bool
}

// embedStrict makes the rows of such a field. It is read once only.
func (b *builder) embedStrict(d *dimension, g *common, emits *lists, f strict) {
	stop := b.stop(f.rule)
	alive := d.alive(f.valid)
	after := b.state(g.lines)
	b.fill(after, func(c int) ref {
		switch valueByte(c) {
		case byteLF:
			return b.stop("bare-lf")
		case byteCTL:
			return b.stop("field-value-byte")
		case byteCR:
			return ref(g.ends)
		case byteTab, byteSP:
			return ref(after)
		}
		return stop
	})
	for s := range d.dfa.states() {
		whole := d.holds(d.dfa.final[s], f.valid)
		b.fill(d.first+state(s), func(c int) ref {
			switch kind := valueByte(c); kind {
			case byteLF:
				return b.stop("bare-lf")
			case byteCTL:
				return b.stop("field-value-byte")
			case byteCR, byteTab, byteSP:
				if !whole || kind != byteCR && f.noBlankAfter {
					return stop
				}
				a := action{ops: opSave | opSpan, span: f.span, next: g.ends}
				if kind != byteCR {
					a.next = after
				}
				return b.do(a)
			}
			to := d.to(int32(s), c)
			if !alive[to] {
				return stop
			}
			a := d.entering(to, c, 0, emits)
			if d.plain(to) && (to != int32(s) || !isPlain(c)) {
				a.ops |= opRun
			}
			a.ops |= f.ops
			if f.ops&opDigit != 0 {
				a.rule = rule(f.rule)
			}
			return b.ref(a)
		})
	}
}
