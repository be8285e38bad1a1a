// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"encoding/binary"
	"slices"
)

// encode lays the program out.
func (c *compiler) encode() (*Program, error) {
	b := c.b
	for _, g := range b.groups {
		b.mergeColumns(g)
	}
	order := c.order()
	lines := make([]uint16, len(b.rows))
	count := len(order)
	if count > c.budget.States {
		return nil, errStates
	}
	for line, s := range order {
		lines[s] = uint16(line)
	}
	if len(b.actions) >= actBit {
		return nil, errBytes
	}
	e := encoder{out: make([]byte, headerSize)}
	e.put(hMagic, magic)

	tableBytes, err := c.encodeTable(&e, order, lines)
	if err != nil {
		return nil, err
	}

	e.section(hActions, actionSize)
	for _, a := range b.actions {
		e.u32(a.ops)
		e.u16(lines[a.next])
		e.u16(lines[a.alt])
		e.u16(a.emit)
		e.u16(a.flags)
		// An action that ends a span breaks no rule.
		e.out = append(e.out, a.dim, a.rule|a.span, uint8(b.of[a.next].id), uint8(b.of[a.alt].id))
		e.out = append(e.out, a.text[:]...)
		e.u64(uint64(a.bytes))
	}

	sets := &setTable{words: (c.routes() + 63) / 64, ids: map[string]uint16{}, records: make([]setRecord, 1)}
	finals := make([]uint16, count)
	missing := make([]uint16, len(c.dims))
	for i, d := range c.dims {
		isPath := d == c.path
		if missing[i], err = sets.add(d, isPath, true, nil); err != nil {
			return nil, err
		}
		for _, s := range d.group.rows {
			set, ok := d.finals[s]
			if !ok {
				continue
			}
			if finals[lines[s]], err = sets.add(d, isPath, false, d.dfa.sets[set]); err != nil {
				return nil, err
			}
		}
	}
	e.section(hFinals, 8)
	for _, f := range finals {
		e.u16(f)
	}
	e.section(hDims, 16)
	for i, d := range c.dims {
		e.u16(lines[d.start])
		e.u16(missing[i])
		e.out = append(e.out, uint8(d.group.id), d.group.class[join], uint8(d.hitWords[0]), uint8(d.hitWords[1]))
		e.out = append(e.out, make([]byte, 8)...)
	}
	pathHits := c.pathHits(sets)
	e.section(hRecords, 16)
	e.out = append(e.out, sets.encodeRecords()...)
	e.section(hDense, 16)
	for _, w := range sets.dense {
		e.u64(w)
	}
	e.section(hPairs, 16)
	for _, p := range sets.pairs {
		e.u64(p.bits)
		e.u32(p.word)
		e.u32(0)
	}
	c.encodeHits(&e, pathHits)
	conds, err := c.encodeConds(&e)
	if err != nil {
		return nil, err
	}

	asked, told := c.counts()
	e.put(hNumbers, uint32(sets.words)|uint32(asked)<<16|uint32(told)<<24)
	e.put(hStart, uint32(lines[c.start])|uint32(b.of[c.start].id)<<16|number(c.path)<<24)
	e.put(hGrammar, number(c.host)|number(c.length)<<8|number(c.coding)<<16|number(c.upgrade)<<24)
	more := uint32(c.hits.count/64) | number(c.method)<<8
	if conds {
		more |= 1 << 16
	}
	if c.response {
		more |= 1 << 24
	}
	e.put(hMore, more)
	e.put(hSkip, uint32(lines[c.g.skip])|uint32(lines[c.g.other])<<16)
	e.put(hLine, uint32(lines[c.g.line])|c.pathEnd()<<16)
	e.align(Align)
	e.put(hSize, uint32(len(e.out)))
	if len(e.out) > c.budget.Bytes {
		return nil, errBytes
	}
	return &Program{Bytes: e.out, Stats: Stats{
		States: count, Dimensions: len(c.dims), Sets: len(sets.records), Actions: len(b.actions),
		Hits: c.hits.count, TableBytes: tableBytes, Bytes: len(e.out),
	}}, nil
}

// encodeTable writes the rows of the states, group after group: those of a group are as
// long as it tells bytes apart. A state is a number in the whole table, so where a
// group's rows begin is said as if state 0 had such a row as well, modulo 2^32.
func (c *compiler) encodeTable(e *encoder, order []state, lines []uint16) (bytes int, err error) {
	for _, g := range c.b.groups {
		bytes += 2 * len(g.rows) * len(g.columns)
	}
	if bytes > c.budget.Bytes {
		return 0, errBytes
	}
	e.section(hGroups, 8)
	first, at := 0, len(e.out)+len(c.b.groups)*groupSize
	e.out = slices.Grow(e.out, at+bytes-len(e.out))
	for _, g := range c.b.groups {
		stride := 2 * len(g.columns)
		e.out = append(e.out, g.class[:256]...)
		e.u32(uint32(at - first*stride - (len(e.out) - 256)))
		e.u32(uint32(stride))
		first += len(g.rows)
		at += len(g.rows) * stride
	}
	for _, s := range order {
		for _, pre := range c.b.of[s].columns {
			if r := c.b.rows[s][pre]; r < 0 {
				e.u16(actBit | uint16(^r))
			} else {
				e.u16(lines[r])
			}
		}
	}
	return bytes, nil
}

// pathEnd is the action of the blank behind a path, the same one in all its states.
func (c *compiler) pathEnd() uint32 {
	if c.path == nil {
		return 0
	}
	return uint32(^c.b.at(c.path.start, ' '))
}

func number(d *dimension) uint32 {
	if d == nil {
		return noDim
	}
	return uint32(d.number)
}

// order is that of the states in the table: what follows a state lies behind it, so
// that a name is read along the table.
func (c *compiler) order() []state {
	b := c.b
	out := make([]state, 0, len(b.rows))
	done := make([]bool, len(b.rows))
	var stack []state
	for _, g := range b.groups {
		for _, root := range g.rows {
			stack = append(stack, root)
			for len(stack) > 0 {
				s := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				if done[s] {
					continue
				}
				done[s] = true
				out = append(out, s)
				for _, pre := range slices.Backward(g.columns) {
					to := state(0)
					if r := b.rows[s][pre]; r >= 0 {
						to = state(r)
					} else {
						to = b.actions[^r].next
					}
					if !done[to] && b.of[to] == g {
						stack = append(stack, to)
					}
				}
			}
		}
	}
	return out
}

// pathHits are, for each flag, the pairs of the routes whose path it decides.
func (c *compiler) pathHits(sets *setTable) [][2]uint32 {
	out := make([][2]uint32, c.hits.count)
	for f, d := range c.hits.of {
		if d == nil || d != c.path {
			continue
		}
		at := len(sets.pairs)
		sets.pairs = append(sets.pairs, d.pairsOf([]int32{c.hits.atom[f]})...)
		out[f] = [2]uint32{uint32(at), uint32(len(sets.pairs) - at)}
	}
	return out
}

func (c *compiler) encodeHits(e *encoder, pathHits [][2]uint32) {
	e.section(hEmits, 16)
	at := 0
	for _, l := range c.emits.all {
		e.u32(uint32(at))
		e.u32(uint32(len(l)))
		at += len(l)
	}
	e.section(hEmitWords, 16)
	for _, l := range c.emits.all {
		for _, w := range l {
			e.u64(w.mask)
			e.u32(w.word)
			e.u32(0)
		}
	}
	e.section(hPathHits, 16)
	for _, p := range pathHits {
		e.u32(p[0])
		e.u32(p[1])
	}
}

// encodeConds writes what routes ask of flags of headers and parameters.
func (c *compiler) encodeConds(e *encoder) (bool, error) {
	of := make([][]uint32, c.routes())
	any := false
	for _, d := range c.dims {
		if d == c.path {
			continue
		}
		for _, cd := range d.conds {
			if cd.atom == present || !d.hit[cd.atom] {
				continue
			}
			v := uint32(d.flagOf[cd.atom])
			if !cd.invert {
				v |= 1 << 31
			}
			of[cd.route] = append(of[cd.route], v)
			any = true
			if len(of[cd.route]) > MaxConds {
				return false, c.over(cd.route, "infix conditions on headers", MaxConds)
			}
		}
	}
	e.section(hRouteConds, 16)
	at := 0
	if any {
		for _, l := range of {
			e.u32(uint32(at))
			e.u32(uint32(len(l)))
			at += len(l)
		}
	}
	e.section(hConds, 8)
	if any {
		for _, l := range of {
			for _, v := range l {
				e.u32(v)
			}
		}
	}
	return any, nil
}

type encoder struct{ out []byte }

func (e *encoder) align(n int) {
	for len(e.out)%n != 0 {
		e.out = append(e.out, 0)
	}
}

// section begins one, and notes in the header where.
func (e *encoder) section(at, align int) {
	e.align(align)
	e.put(at, uint32(len(e.out)))
}

func (e *encoder) put(at int, v uint32) { binary.LittleEndian.PutUint32(e.out[at:], v) }
func (e *encoder) u16(v uint16)         { e.out = binary.LittleEndian.AppendUint16(e.out, v) }
func (e *encoder) u32(v uint32)         { e.out = binary.LittleEndian.AppendUint32(e.out, v) }
func (e *encoder) u64(v uint64)         { e.out = binary.LittleEndian.AppendUint64(e.out, v) }
