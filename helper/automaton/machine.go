// SPDX-License-Identifier: Apache-2.0

package automaton

import "math/bits"

// Limits of a request's head, as in package head.
const (
	MaxHead   = 8192
	MaxFields = 100
)

// State is what a machine remembers between two pieces of a head: of fixed size, and
// with the head's bytes the only thing that it needs. The kernel has the same.
type State struct {
	Position uint32 // bytes read
	line     uint16 // of the table: the state
	base     uint16 // where a value begins
	start    uint32 // of the span being read
	class    uint8  // of bytes: the map in use
	dim      uint8
	skip     uint8 // 1: opSkip, 2: opHop, 3: opRun
	need     uint8 // bytes that a rune still needs
	lo, hi   uint8 // bounds of the next of them
	rule     uint8
	kind     Kind
	last     uint32 // position of the last byte above 0x7f
	fields   uint16
	flags    uint16
	status   uint16
	_        uint16
	length   uint64
	bad      uint64 // dimensions that are not valid UTF-8
	spans    [Spans][2]uint16
	saved    [MaxDimensions]uint16
	hits     [MaxHits / 64]uint64
}

// Machine runs a Program over a head.
type Machine struct {
	State
	p *Program
	// head is the request's head so far, which the kernel holds anyway.
	head []byte
	// Candidates are the routes that match, but for their fractions, as bits, when
	// the head is whole: the first one that its fraction takes is the request's.
	Candidates [MaxRoutes / 64]uint64
	summary    uint64 // words of Candidates that are not 0
}

// NewMachine begins a head.
func NewMachine(p *Program) *Machine {
	m := &Machine{p: p}
	start := p.u32(hStart)
	m.line, m.class = uint16(start), uint8(start>>16)
	m.dim = uint8(p.u8(hMore + 1))
	return m
}

// Kind is what has been decided.
func (m *Machine) Kind() Kind { return m.kind }

// Rule is the rule that decided, nil if none did.
func (m *Machine) Rule() *Rule {
	if m.rule == 0 {
		return nil
	}
	return &Rules[m.rule]
}

// Span returns a part of the head: its bounds.
func (m *Machine) Span(n int) (from, to int) { return int(m.spans[n][0]), int(m.spans[n][1]) }

// Flags are the Flag* that hold.
func (m *Machine) Flags() uint16 { return m.flags }

// Status is that of a response.
func (m *Machine) Status() int { return int(m.status) }

// ContentLength is -1 if there is none.
func (m *Machine) ContentLength() int64 {
	if !m.seen(m.p.u8(hGrammar + 1)) {
		return -1
	}
	return int64(m.length)
}

// Chunked tells whether the body is.
func (m *Machine) Chunked() bool { return m.seen(m.p.u8(hGrammar + 2)) }

// Upgrade tells whether there is such a field.
func (m *Machine) Upgrade() bool { return m.seen(m.p.u8(hGrammar + 3)) }

// KeepAlive tells whether the connection may carry another head.
func (m *Machine) KeepAlive() bool {
	return m.flags&FlagClose == 0 && m.flags&(FlagMinor1|FlagKeepAlive) != 0
}

func (m *Machine) seen(dim int) bool { return dim != noDim && m.saved[dim] != 0 }

// Next returns the first candidate from a route on, or -1.
func (m *Machine) Next(from int) int {
	for w := from / 64; w < len(m.Candidates); w++ {
		v := m.Candidates[w]
		if w == from/64 {
			v &= ^uint64(0) << (from % 64)
		}
		if v != 0 {
			return w*64 + firstBit(v)
		}
	}
	return -1
}

// Feed reads the next piece of a head and returns what is decided. Bytes after the
// deciding one are not read.
func (m *Machine) Feed(piece []byte) Kind {
	request := m.p.u8(hMore+3) == 0
	for i := 0; i < len(piece) && m.kind == Incomplete; {
		if request {
			if m.Position == MaxHead {
				m.Position++
				m.stop(rule("head-too-long"))
				break
			}
			m.head = append(m.head[:m.Position], piece[i])
		}
		if m.skip != 0 {
			if m.skips(piece[i]) {
				m.Position++
				i++
				continue
			}
			m.skip = 0
		}
		if m.read(piece[i]) {
			m.Position++
			i++
		}
	}
	return m.kind
}

// skips tells whether the state reads a byte without changing.
func (m *Machine) skips(c byte) bool {
	switch m.skip {
	case 1:
		return c >= 0x20 && c < 0x7f
	case 2:
		return c > 0x20 && c < 0x7f && c != '#' && c != '&' && c != '?'
	}
	return isPlain(int(c))
}

// entry is that of a state, by the class of bytes of its group. Offsets are modulo 2^32.
func (m *Machine) entry(group int, line uint16, column int) uint16 {
	g := m.p.u32(hGroups) + group*groupSize
	rows, stride := uint32(m.p.u32(g+256)), uint32(m.p.u32(g+260))
	return uint16(m.p.u16(int(uint32(g) + rows + 2*uint32(column) + uint32(line)*stride)))
}

// read takes a byte. It returns false if the byte is to be read again.
func (m *Machine) read(c byte) bool {
	column := m.p.u8(m.p.u32(hGroups) + int(m.class)*groupSize + int(c))
	e := m.entry(int(m.class), m.line, column)
	if e&actBit == 0 {
		m.line = e
		return true
	}
	return m.act(int(e&^actBit), c)
}

func (m *Machine) act(number int, c byte) (taken bool) {
	p := m.p
	at := p.u32(hActions) + number*actionSize
	ops := p.u32(at)
	arg := uint8(p.u8(at + 13))
	m.flags |= uint16(p.u16(at + 10))
	position := m.Position
	left := m.line
	m.line, m.class = uint16(p.u16(at+4)), uint8(p.u8(at+14))

	if ops&opSave != 0 {
		m.save(left)
	}
	if ops&opSpan != 0 {
		m.spans[arg] = [2]uint16{uint16(m.start), uint16(position)}
	}
	if ops&opDim != 0 {
		m.dim, m.need = uint8(p.u8(at+12)), 0
	}
	if ops&opStart != 0 {
		m.start = position
	}
	if ops&opAfter != 0 {
		m.start = position + 1
	}
	if ops&opHigh != 0 {
		m.high(c)
	}
	if ops&opEmit != 0 {
		m.emit(p.u16(at + 8))
	}
	if ops&opDigit != 0 && !m.digit(c) {
		return m.stop(arg)
	}
	if ops&opStatus != 0 {
		m.status = m.status*10 + uint16(c-'0')
	}
	if ops&(opEmpty|opOnce|opFirst|opEnter) != 0 {
		dim := p.u8(at + 12)
		was := m.saved[dim]
		switch {
		case ops&opEmpty != 0:
			if was == 0 {
				m.saved[dim] = uint16(p.u16(at + 6))
			}
		case ops&opFirst != 0:
			if was != 0 {
				m.line, m.class = uint16(p.u16(at+6)), uint8(p.u8(at+15))
			}
		case ops&opOnce != 0 && was != 0:
			return m.stop(arg)
		default:
			m.enter(dim, was)
		}
	}
	if ops&opBase != 0 {
		m.line, m.class = m.base, uint8(p.u8(p.u32(hDims)+int(m.dim)*dimSize+4))
	}
	if ops&opField != 0 {
		m.fields++
		if m.fields == MaxFields {
			m.line = uint16(p.u16(at + 6))
		}
	}
	if ops&opSkip != 0 {
		m.skip = 1
	}
	if ops&opHop != 0 {
		m.skip = 2
	}
	if ops&opRun != 0 {
		m.skip = 3
	}
	// opAhead and opVersion are only short cuts, which are not needed here.
	if ops&opStop != 0 {
		return m.stop(arg)
	}
	if ops&opEnd != 0 {
		m.end()
	}
	return ops&opRedo == 0
}

// stop decides by a rule.
func (m *Machine) stop(rule uint8) bool {
	m.rule = rule
	m.kind = Rules[rule].Kind
	if m.kind == Reject && m.p.u8(hMore+3) != 0 {
		m.kind = Pin // a response cannot be refused any more
	}
	m.line, m.skip = 0, 0
	return true
}

// save keeps the state in which the dimension stops.
func (m *Machine) save(line uint16) {
	m.saved[m.dim] = line
	if m.need != 0 {
		m.bad |= 1 << m.dim
		m.need = 0
	}
}

// enter begins a field's value, or goes on with it.
func (m *Machine) enter(dim int, was uint16) {
	at := m.p.u32(hDims) + dim*dimSize
	m.dim, m.need = uint8(dim), 0
	m.base = uint16(m.p.u16(at))
	if was == 0 {
		return
	}
	m.base = m.entry(m.p.u8(at+4), was, m.p.u8(at+5))
	if m.base&actBit != 0 {
		m.base = uint16(m.p.u16(m.p.u32(hActions) + int(m.base&^actBit)*actionSize + 4))
	}
}

// high looks whether a byte above 0x7f is part of valid UTF-8.
func (m *Machine) high(c byte) {
	if m.need != 0 && m.last+1 == m.Position && m.lo <= c && c <= m.hi {
		m.need--
		m.lo, m.hi, m.last = 0x80, 0xbf, m.Position
		return
	}
	if m.need != 0 || c < 0xc2 || c > 0xf4 {
		m.bad |= 1 << m.dim
		return
	}
	m.lo, m.hi, m.last = 0x80, 0xbf, m.Position
	switch {
	case c < 0xe0:
		m.need = 1
	case c < 0xf0:
		m.need = 2
	default:
		m.need = 3
	}
	switch c {
	case 0xe0:
		m.lo = 0xa0
	case 0xed:
		m.hi = 0x9f
	case 0xf0:
		m.lo = 0x90
	case 0xf4:
		m.hi = 0x8f
	}
}

func (m *Machine) emit(list int) {
	at := m.p.u32(hEmits) + 8*list
	first, n := m.p.u32(at), m.p.u32(at+4)
	for i := first; i < first+n; i++ {
		w := m.p.u32(hEmitWords) + 16*i
		m.hits[m.p.u32(w+8)] |= m.p.u64(w)
	}
}

// digit takes a digit of Content-Length: false if the number is too large.
func (m *Machine) digit(c byte) bool {
	hi, lo := bits.Mul64(m.length, 10)
	m.length = lo + uint64(c-'0')
	return hi == 0 && m.length < 1<<63
}
