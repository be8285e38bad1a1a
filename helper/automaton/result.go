// SPDX-License-Identifier: Apache-2.0

package automaton

import "bytes"

// end decides about a whole head.
func (m *Machine) end() {
	if m.p.u8(hMore+3) != 0 {
		m.endResponse()
		return
	}
	host := m.p.u8(hGrammar)
	absolute := m.flags&FlagAbsolute != 0
	switch {
	case !m.seen(host) && (absolute || m.flags&FlagMinor1 != 0):
		m.stop(rule("host-missing"))
		return
	case absolute && !bytes.Equal(m.bytes(SpanAuthority), m.bytes(SpanHost)):
		m.stop(rule("host-differs"))
		return
	}
	if m.framing() {
		m.match()
		m.line, m.kind = 0, Route
	}
}

func (m *Machine) bytes(span int) []byte {
	from, to := m.Span(span)
	return m.head[from:to]
}

func (m *Machine) endResponse() {
	if !m.framing() {
		return
	}
	if m.status == 101 {
		m.stop(rule("switching"))
		return
	}
	m.match()
	m.line, m.kind = 0, Route
}

// framing refuses fields that contradict each other.
func (m *Machine) framing() bool {
	switch {
	case m.Chunked() && m.ContentLength() >= 0:
		m.stop(rule("te-with-content-length"))
	case m.Chunked() && m.flags&FlagMinor1 == 0:
		m.stop(rule("te-in-1.0"))
	default:
		return true
	}
	return false
}

// set is the offset of the set in which a dimension stopped.
func (m *Machine) set(dim int) int {
	p := m.p
	at := p.u32(hDims) + dim*dimSize
	number := p.u16(at + 2)
	if s := m.saved[dim]; s != 0 {
		number = p.u16(p.u32(hFinals) + 2*int(s))
	}
	record := p.u32(hRecords) + number*recordSize
	if m.bad&(1<<dim) != 0 {
		record = p.u32(hRecords) + p.u16(record+4)*recordSize
		for w := p.u8(at + 6); w < p.u8(at+7); w++ {
			m.hits[w] = 0
		}
	}
	return record
}

// match finds the candidates.
func (m *Machine) match() {
	p := m.p
	words, asked, told := p.u16(hNumbers), p.u8(hNumbers+2), p.u8(hNumbers+3)
	path := p.u8(hStart + 3)
	records := make([]int, told)
	for d := range records {
		records[d] = m.set(d)
		m.flags |= uint16(p.u8(records[d] + 7))
	}
	if words == 0 {
		return
	}
	switch set := records[path]; p.u8(set + 6) {
	case 1:
		m.add(p.u32(set), p.u64(set+8))
	default:
		m.pairs(p.u32(set), p.u8(set+6))
	}
	for w := range p.u8(hMore) {
		for v := m.hits[w]; v != 0; v &= v - 1 {
			at := p.u32(hPathHits) + 8*(64*w+firstBit(v))
			m.pairs(p.u32(at), p.u32(at+4))
		}
	}
	for s := m.summary; s != 0; s &= s - 1 {
		w := firstBit(s)
		for d, record := range records[:asked] {
			if d != path {
				m.Candidates[w] &= p.u64(p.u32(hDense) + 8*(p.u32(record)+w))
			}
		}
		if p.u8(hMore+2) != 0 {
			m.conditions(w)
		}
	}
}

// pairs adds routes.
func (m *Machine) pairs(first, n int) {
	for i := first; i < first+n; i++ {
		at := m.p.u32(hPairs) + pairSize*i
		m.add(m.p.u32(at+8), m.p.u64(at))
	}
}

func (m *Machine) add(w int, routes uint64) {
	m.Candidates[w] |= routes
	m.summary |= 1 << w
}

// conditions removes candidates of a word whose conditions on flags do not hold.
func (m *Machine) conditions(w int) {
	p := m.p
	for v := m.Candidates[w]; v != 0; v &= v - 1 {
		r := w*64 + firstBit(v)
		at := p.u32(hRouteConds) + 8*r
		first, n := p.u32(at), p.u32(at+4)
		for i := first; i < first+n; i++ {
			c := uint32(p.u32(p.u32(hConds) + 4*i))
			f := c &^ (1 << 31)
			if set := m.hits[f/64]>>(f%64)&1 != 0; set != (c>>31 != 0) {
				m.Candidates[w] &^= 1 << (r % 64)
			}
		}
	}
}
