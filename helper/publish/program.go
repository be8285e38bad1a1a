// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

// digest is the hash of a program's bytes, or of the conditions of which one is made.
type digest [sha256.Size]byte

// place is where a program lies.
type place struct{ slab, offset uint32 }

// placed is a program that lies in a slab.
type placed struct {
	digest digest
	size   int
}

// programs are the compiled virtual hosts: each once, however many virtual hosts
// have the same conditions. What the conditions are of is no part of a program, so
// most virtual hosts of a mesh share one of few.
type programs struct {
	memory []byte
	free   []extents // of each slab, in units of automaton.Align
	at     map[place]placed
	find   map[digest]place
	// compiled are the programs by conditions, of the last publications; bytes are
	// those of programs that are in no slab.
	compiled map[digest]digest
	bytes    map[digest][]byte
}

func newPrograms(memory []byte) *programs {
	ps := &programs{
		memory: memory,
		at:     make(map[place]placed), find: make(map[digest]place),
		compiled: make(map[digest]digest), bytes: make(map[digest][]byte),
	}
	for range len(memory) / bpf.SlabSize {
		ps.free = append(ps.free, allFree(bpf.SlabSize/automaton.Align))
	}
	return ps
}

// compile returns the program of a virtual host; that it exists is remembered by
// its conditions, so that one changed route costs one compilation.
func (ps *programs) compile(vh *mesh.VirtualHost) (digest, error) {
	conditions := conditionsOf(vh)
	if d, ok := ps.compiled[conditions]; ok && ps.has(d) {
		return d, nil
	}
	p, err := automaton.Compile(vh, automaton.Budget{})
	if err != nil {
		return digest{}, fmt.Errorf("virtual host %q: %w", vh.Name, err)
	}
	d := ps.enter(p.Bytes)
	ps.compiled[conditions] = d
	return d, nil
}

// enter makes a program known that may have to be placed.
func (ps *programs) enter(bytes []byte) digest {
	d := digest(sha256.Sum256(bytes))
	if !ps.has(d) {
		ps.bytes[d] = bytes
	}
	return d
}

func (ps *programs) has(d digest) bool {
	if _, ok := ps.find[d]; ok {
		return true
	}
	_, ok := ps.bytes[d]
	return ok
}

func units(size int) int { return (size + automaton.Align - 1) / automaton.Align }

// takeUnits takes room for a program out of free: the space of slabs or a copy.
func takeUnits(free []extents, size int) (place, error) {
	for slab := range free {
		if x, err := free[slab].take(uint32(units(size))); err == nil {
			return place{uint32(slab), x.Offset * automaton.Align}, nil
		}
	}
	return place{}, fmt.Errorf("map km_slabs has no %d bytes in a row: the last good state stays; use fewer or simpler conditions, or raise the map's size", size)
}

// fit tells whether programs that are in no slab yet have room together.
func (ps *programs) fit(wanted map[digest]bool) error {
	free := make([]extents, len(ps.free))
	for i := range ps.free {
		free[i] = slices.Clone(ps.free[i])
	}
	for _, d := range ps.absent(wanted) {
		if _, err := takeUnits(free, len(ps.bytes[d])); err != nil {
			return err
		}
	}
	return nil
}

// absent returns the programs that are in no slab, in one order, so that fit takes
// what place takes.
func (ps *programs) absent(wanted map[digest]bool) []digest {
	var list []digest
	for d := range wanted {
		if _, ok := ps.find[d]; !ok {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b digest) int { return slices.Compare(a[:], b[:]) })
	return list
}

// place writes the programs that are in no slab into free space.
func (ps *programs) place(wanted map[digest]bool) error {
	for _, d := range ps.absent(wanted) {
		bytes := ps.bytes[d]
		to, err := takeUnits(ps.free, len(bytes))
		if err != nil {
			return err
		}
		copy(ps.memory[int(to.slab)*bpf.SlabSize+int(to.offset):], bytes)
		ps.at[to], ps.find[d] = placed{d, len(bytes)}, to
		delete(ps.bytes, d) // the slab has them
	}
	return nil
}

// keep gives the space of all other programs back, and forgets what was compiled
// and not used. No program may still run one of them.
func (ps *programs) keep(used map[place]bool) {
	for to, p := range ps.at {
		if used[to] {
			continue
		}
		ps.free[to.slab].give(bpf.Extent{Offset: to.offset / automaton.Align, N: uint32(units(p.size))})
		delete(ps.at, to)
		if ps.find[p.digest] == to {
			delete(ps.find, p.digest)
		}
	}
	clear(ps.bytes)
	for conditions, d := range ps.compiled {
		if !ps.has(d) {
			delete(ps.compiled, conditions)
		}
	}
}

// recover takes a program that lies in a slab out of the free space, once.
func (ps *programs) recover(to place) (digest, error) {
	if p, ok := ps.at[to]; ok {
		return p.digest, nil
	}
	if int(to.slab) >= len(ps.free) || to.offset >= bpf.SlabSize || to.offset%automaton.Align != 0 {
		return digest{}, fmt.Errorf("no program can lie at %d of slab %d", to.offset, to.slab)
	}
	bytes := ps.memory[int(to.slab)*bpf.SlabSize+int(to.offset) : (int(to.slab)+1)*bpf.SlabSize]
	n := automaton.SizeOf(bytes)
	if n == 0 {
		return digest{}, fmt.Errorf("no program lies at %d of slab %d", to.offset, to.slab)
	}
	if err := ps.free[to.slab].mark(bpf.Extent{Offset: to.offset / automaton.Align, N: uint32(units(n))}); err != nil {
		return digest{}, fmt.Errorf("slab %d: %w", to.slab, err)
	}
	d := digest(sha256.Sum256(bytes[:n]))
	ps.at[to] = placed{d, n}
	if _, ok := ps.find[d]; !ok {
		ps.find[d] = to
	}
	return d, nil
}

// conditionsOf hashes everything that a program is made of, each part with its
// length before it: the routes' conditions, without fractions, which are drawn
// outside the program.
func conditionsOf(vh *mesh.VirtualHost) digest {
	h := conditionHash{sha256.New(), nil}
	h.number(len(vh.Routes))
	for _, r := range vh.Routes {
		m := &r.Match
		h.number(int(m.Path.Kind))
		h.text(m.Path.Value)
		h.flag(m.Path.IgnoreCase)
		h.number(len(m.Headers))
		for _, c := range m.Headers {
			h.text(c.Name)
			h.number(int(c.Kind))
			h.match(c.Match)
			h.number(int(c.Start))
			h.number(int(c.End))
			h.flag(c.Invert)
			h.flag(c.MissingAsEmpty)
		}
		h.number(len(m.Query))
		for _, c := range m.Query {
			h.text(c.Name)
			h.flag(c.Present)
			h.match(c.Match)
		}
	}
	h.to.Write(h.buf)
	return digest(h.to.Sum(nil))
}

type conditionHash struct {
	to  hash.Hash
	buf []byte
}

func (h *conditionHash) number(n int) {
	h.buf = binary.AppendVarint(h.buf, int64(n))
	if len(h.buf) > 4096 {
		h.to.Write(h.buf)
		h.buf = h.buf[:0]
	}
}

func (h *conditionHash) text(s string) {
	h.number(len(s))
	h.buf = append(h.buf, s...)
}

func (h *conditionHash) flag(b bool) {
	if b {
		h.buf = append(h.buf, 1)
	} else {
		h.buf = append(h.buf, 0)
	}
}

func (h *conditionHash) match(m mesh.StringMatch) {
	h.number(int(m.Kind))
	h.text(m.Value)
	h.flag(m.IgnoreCase)
}
