// SPDX-License-Identifier: Apache-2.0

package automaton

import "sync"

// statusLine makes everything of a response before its first field.
func (b *builder) statusLine(g *common) state {
	stop := always(b.stop("status-line"))
	reason := b.state(g.lines)
	b.fill(reason, func(c int) ref {
		switch {
		case c == '\r':
			return ref(g.first)
		case c == '\n':
			return b.stop("bare-lf")
		case c == '\t' || c >= 0x80:
			return b.do(action{ops: opSkip, next: reason})
		case isCTL(c):
			return b.stop("status-line")
		}
		return ref(reason)
	})
	after := b.state(g.lines)
	b.fill(after, func(c int) ref {
		switch c {
		case '\r':
			return ref(g.first)
		case '\n':
			return b.stop("bare-lf")
		case ' ':
			return b.do(action{ops: opSkip, next: reason})
		}
		return b.stop("status-line")
	})
	next := after
	for i := range 3 {
		s := b.state(g.lines)
		to := b.do(action{ops: opStatus, next: next})
		b.fill(s, func(c int) ref {
			if '0' <= c && c <= '9' && (i < 2 || '1' <= c && c <= '5') {
				return to
			}
			return b.stop("status-line")
		})
		next = s
	}
	blank := b.chain(g.lines, " ", ref(next), stop)
	minor := b.state(g.lines)
	b.fill(minor, func(c int) ref {
		switch c {
		case '0':
			return ref(blank)
		case '1':
			return b.do(action{flags: FlagMinor1, next: blank})
		}
		return b.stop("status-line")
	})
	return b.chain(g.lines, "HTTP/1.", ref(minor), stop)
}

// Response is the grammar of a response's head. It has no routes; what it finds is
// the body's length.
var Response = sync.OnceValue(func() *Program {
	c := newCompiler(nil, Budget{}, true)
	p, err := c.compile()
	if err != nil {
		panic("automaton: response grammar: " + err.Error())
	}
	return p
})
