// SPDX-License-Identifier: Apache-2.0

package automaton

import "strings"

// Flags that actions and sets of atoms set in a machine.
const (
	FlagMinor1    = 1 << iota // HTTP/1.1
	FlagAbsolute              // the target has scheme and authority
	FlagHead                  // the method is HEAD
	FlagClose                 // Connection: close
	FlagKeepAlive             // Connection: keep-alive
	FlagExpect                // Expect: 100-continue
)

// The grammar's own expressions. They fold ASCII only, hence the classes. U+E000
// stands for the join of two fields.
const (
	hostRegex    = `(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?`
	lengthRegex  = `[0-9]{1,19}`
	chunkedRegex = `[cC][hH][uU][nN][kK][eE][dD]`
	closeRegex   = `(?:.*,)?[ \t]*[cC][lL][oO][sS][eE][ \t]*(?:,.*)?`
	keepRegex    = `(?:.*,)?[ \t]*[kK][eE][eE][pP]-[aA][lL][iI][vV][eE][ \t]*(?:,.*)?`
	expectRegex  = "(?:.*\ue000)?100-[cC][oO][nN][tT][iI][nN][uU][eE](?:\ue000.*)?"
)

// chain makes states that read text byte by byte; on another byte other decides.
// The first of them is returned; the last byte leads to end.
func (b *builder) chain(g *group, text string, end ref, other func(i, c int) ref) state {
	at := end
	first := state(0)
	for i := len(text) - 1; i >= 0; i-- {
		s := b.state(g)
		b.fill(s, func(c int) ref {
			if c == int(text[i]) {
				return at
			}
			return other(i, c)
		})
		at, first = ref(s), s
	}
	return first
}

func always(r ref) func(i, c int) ref { return func(int, int) ref { return r } }

// requestLine makes everything before the first field. It returns the start.
func (b *builder) requestLine(method, path *dimension, connect, options, preface, head int32, g *common, emits *lists) state {
	lf := b.state(g.lines) // after a CR in a request line that is none
	b.fill(lf, func(c int) ref {
		if c == '\n' {
			return b.stop("opaque")
		}
		return b.stop("bare-cr")
	})
	target := b.target(path, lf, g, emits, func(int) ref { return b.stop("star-target") })
	star := b.state(g.lines) // after "OPTIONS *"
	b.fill(star, func(c int) ref {
		if c != ' ' {
			return b.stop("star-target")
		}
		return b.do(g.toVersion(opSpan, SpanPath))
	})
	targetOptions := b.target(path, lf, g, emits, func(c int) ref { return b.beginPath(path, c, star, emits) })
	h2 := b.chain(g.lines, " HTTP/2", b.stop("h2"), always(b.stop("star-target")))
	targetPreface := b.target(path, lf, g, emits, func(int) ref { return ref(h2) })

	row := func(s int32, first bool) func(c int) ref {
		return func(c int) ref {
			switch {
			case first && c == '\n', first && c == '\r', first && isBlank(c), first && (c == '\v' || c == '\f'):
				return b.stop("leading-blank")
			case c == '\t', c == '\v', c == '\f':
				return b.stop("request-line-blank")
			case c == '\r':
				return b.do(action{next: lf})
			case c == ' ':
				next, flags := target, uint16(0)
				set := method.dfa.final[s]
				switch {
				case method.holds(set, connect):
					return b.stop("connect")
				case method.holds(set, options):
					next = targetOptions
				case method.holds(set, preface):
					next = targetPreface
				case method.holds(set, head):
					flags = FlagHead // from here on: the answer to a HEAD that is refused has no body either
				}
				return b.do(action{ops: opSave | opSpan, span: SpanMethod, flags: flags, next: next})
			case !isTchar(c):
				return b.stop("opaque")
			}
			return b.ref(method.entering(method.to(s, c), c, 0, emits))
		}
	}
	for s := range method.dfa.states() {
		b.fill(method.first+state(s), row(int32(s), false))
	}
	tls := b.state(g.lines)
	b.fill(tls, func(c int) ref {
		if c == 3 {
			return b.stop("tls")
		}
		return b.stop("opaque")
	})
	start := b.state(method.group)
	b.fill(start, func(c int) ref {
		if c == 0x16 {
			return b.do(action{next: tls})
		}
		return row(0, true)(c)
	})
	return start
}

// beginPath enters the path with its first byte, and goes on in next instead of the
// path's state if next is set.
func (b *builder) beginPath(path *dimension, c int, next state, emits *lists) ref {
	s := path.to(0, c)
	a := path.entering(s, c, opHop, emits)
	a.ops |= opDim | opStart
	a.dim = path.number
	if next != 0 {
		a.ops &^= opHop
		a.ops |= opEmpty // the path has ended: keep its state
		a.alt, a.next = a.next, next
	}
	return b.do(a)
}

// target makes the states that read a target up to its path.
func (b *builder) target(path *dimension, lf state, g *common, emits *lists, star func(c int) ref) state {
	s := b.state(g.lines)
	other := b.word(path, g, emits)
	b.fill(s, func(c int) ref {
		switch {
		case isBlank(c), c == '\v', c == '\f':
			return b.stop("request-line-blank")
		case c == '\r':
			return ref(lf)
		case c == '/':
			return b.beginPath(path, c, 0, emits)
		case c == '*':
			return star(c)
		}
		return other(c)
	})
	return s
}

// word makes the states of a target that begins with neither "/" nor "*", and
// returns where its first byte leads.
func (b *builder) word(path *dimension, g *common, emits *lists) func(c int) ref {
	if g.word != nil {
		return g.word
	}
	opaque := b.stop("opaque")
	blanks := b.state(g.lines) // after a word: is there a version behind the blanks?
	version := b.chain(g.lines, "TTP/", b.stop("target-form"), always(opaque))
	b.fill(blanks, func(c int) ref {
		switch c {
		case ' ':
			return ref(blanks)
		case 'H':
			return ref(version)
		}
		return opaque
	})
	other := b.state(g.lines) // a word that is no scheme
	fall := func(c int) ref {
		switch {
		case c == ' ':
			return ref(blanks)
		case isCTL(c):
			return opaque
		}
		return ref(other)
	}
	b.fill(other, fall)
	expect := func(c int, next ref) state {
		s := b.state(g.lines)
		b.fill(s, func(at int) ref {
			if at == c {
				return next
			}
			return fall(at)
		})
		return s
	}
	// What follows a scheme: "://".
	refused := expect('/', ref(expect('/', b.stop("target-form"))))
	enter := b.do(action{ops: opAfter, flags: FlagAbsolute, next: b.authority(path, g, emits)})
	wanted := expect('/', ref(expect('/', enter)))
	scheme := b.state(g.lines)
	within := func(colon state) func(c int) ref {
		return func(c int) ref {
			l := lower(c)
			switch {
			case c == ':':
				return ref(colon)
			case 'a' <= l && l <= 'z', '0' <= c && c <= '9', c == '+', c == '-', c == '.':
				return ref(scheme)
			}
			return fall(c)
		}
	}
	b.fill(scheme, within(refused))
	// letter makes a state of "http" or "https".
	letter := func(want int, next, colon state) state {
		s := b.state(g.lines)
		b.fill(s, func(c int) ref {
			if lower(c) == want {
				return ref(next)
			}
			return within(colon)(c)
		})
		return s
	}
	https := b.state(g.lines)
	b.fill(https, within(wanted))
	ttp := letter('s', https, wanted)
	for _, c := range "ptt" {
		ttp = letter(int(c), ttp, refused)
	}
	g.word = func(c int) ref {
		l := lower(c)
		switch {
		case l == 'h':
			return ref(ttp)
		case 'a' <= l && l <= 'z':
			return ref(scheme)
		}
		return fall(c)
	}
	return g.word
}

// authority makes the states of the authority of an absolute target.
func (b *builder) authority(path *dimension, g *common, emits *lists) state {
	host := newDimension("authority")
	valid := host.grammarAtom(hostRegex)
	if err := host.try(unlimited(), 1000, 1000, false); err != nil {
		panic(err)
	}
	alive := host.alive(valid)
	states := make([]state, host.dfa.states())
	for i := range states {
		states[i] = b.state(g.lines)
	}
	stop := b.stop("target-authority")
	for i, s := range states {
		b.fill(s, func(c int) ref {
			if c == '/' || c == '?' || c == ' ' {
				if !host.holds(host.dfa.final[i], valid) {
					return stop
				}
				// The path is "/": here, or, without being there, before this byte.
				a := path.entering(path.to(0, '/'), '/', opHop, emits)
				a.ops |= opSpan | opDim | opStart
				a.span, a.dim = SpanAuthority, path.number
				if c != '/' {
					a.ops |= opRedo
				}
				return b.do(a)
			}
			to := host.to(int32(i), c)
			if to < 0 || !alive[to] {
				return stop
			}
			return ref(states[to])
		})
	}
	return states[0]
}

// versionStates makes the end of the request line.
func (b *builder) versionStates(g *common) {
	end := b.state(g.lines)
	b.fill(end, func(c int) ref {
		switch c {
		case '\r':
			return ref(g.first)
		case '\n':
			return b.stop("bare-lf")
		}
		return b.stop("version")
	})
	digit := func(c int) ref {
		if '0' <= c && c <= '9' {
			return b.stop("version-unsupported")
		}
		return b.stop("version")
	}
	minor := b.state(g.lines)
	b.fill(minor, func(c int) ref {
		switch c {
		case '0':
			return ref(end)
		case '1':
			return b.do(action{flags: FlagMinor1, next: end})
		}
		return digit(c)
	})
	dot := b.chain(g.lines, ".", ref(minor), always(b.stop("version")))
	major := b.state(g.lines)
	b.fill(major, func(c int) ref {
		if c == '1' {
			return ref(dot)
		}
		return digit(c)
	})
	first := b.chain(g.lines, "HTTP/", ref(major), always(b.stop("version")))
	b.rows[g.version] = b.rows[first]
}

// nameStates makes the names of fields: a tree of those that somebody asks about.
func (b *builder) nameStates(fields []*dimension, g *common) {
	root := newTrie()
	for _, d := range fields {
		root.insert(d.name, d)
	}
	other := g.other
	colon := func(d *dimension) ref {
		if d == nil {
			return b.do(action{ops: opSkip, next: g.skip})
		}
		if d.dfa.states() == 1 && d.once == "" && !d.utf8 {
			// Only whether it is there counts.
			return b.do(action{ops: opEmpty | opSkip, dim: d.number, alt: d.start, next: g.skip})
		}
		a := action{ops: opEnter, dim: d.number, next: g.blank}
		if d.once != "" {
			a.ops |= opOnce
			a.rule = rule(d.once)
		}
		if d.name == "transfer-encoding" {
			a.next = g.blankSP
		}
		return b.do(a)
	}
	var walk func(t *trie, s state)
	walk = func(t *trie, s state) {
		kids := map[byte]state{}
		for _, c := range t.order {
			kids[c] = b.state(g.lines)
		}
		b.fill(s, func(c int) ref {
			switch {
			case c == ':' && s != g.line:
				return colon(t.end)
			case s == g.line && c == '\r':
				return ref(g.over)
			case s == g.line && c == '\n':
				return b.stop("bare-lf")
			case s == g.line && isBlank(c):
				return b.stop("obs-fold")
			case isBlank(c):
				return b.stop("blank-before-colon")
			case !isTchar(c):
				return b.stop("field-name")
			}
			if kid, ok := kids[byte(lower(c))]; ok {
				return ref(kid)
			}
			if s == other && isPlain(c) {
				return ref(other)
			}
			return b.do(action{ops: opRun, next: other})
		})
		for _, c := range t.order {
			walk(t.kids[c], kids[c])
		}
	}
	walk(newTrie(), other)
	walk(root, g.line)
	b.fill(g.full, func(c int) ref {
		if isTchar(c) {
			return b.stop("too-many-fields")
		}
		return b.at(g.line, c)
	})
}

// lineStates makes the ends of lines and what no dimension reads.
func (b *builder) lineStates(g *common, bounded bool) {
	lf := func(s state, r ref) {
		b.fill(s, func(c int) ref {
			if c == '\n' {
				return r
			}
			return b.stop("bare-cr")
		})
	}
	lf(g.first, ref(g.line))
	lf(g.over, b.do(action{ops: opEnd}))
	if bounded {
		lf(g.ends, b.do(action{ops: opField, next: g.line, alt: g.full}))
	} else {
		lf(g.ends, ref(g.line))
	}
	b.fill(g.skip, func(c int) ref {
		switch {
		case c == '\r':
			return ref(g.ends)
		case c == '\n':
			return b.stop("bare-lf")
		case c == '\t' || c >= 0x80:
			return b.do(action{ops: opSkip, next: g.skip})
		case isCTL(c):
			return b.stop("field-value-byte")
		}
		return ref(g.skip)
	})
	blank := func(s state, tab ref) {
		b.fill(s, func(c int) ref {
			switch {
			case c == '\n':
				return b.stop("bare-lf")
			case c == ' ':
				return ref(s)
			case c == '\t':
				return tab
			case isCTL(c) && c != '\r':
				return b.stop("field-value-byte")
			}
			return b.do(action{ops: opBase | opRedo | opStart})
		})
	}
	blank(g.blank, ref(g.blank))
	blank(g.blankSP, b.stop("transfer-encoding"))
}

func isLowerToken(name string) bool {
	return name != "" && name == strings.ToLower(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return r >= 0x80 || !isTchar(int(r))
	})
}
