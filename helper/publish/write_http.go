// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
	"kmesh/helper/automaton"
)

// vhostsFit takes the extents of all changed virtual hosts out of copies of the free
// space, in the order in which putVHosts will.
func (p *Publisher) vhostsFit(now, want tables) error {
	ids := changedVHosts(now.vhosts, want.vhosts)
	if len(ids) == 0 {
		return nil
	}
	routes, shares := slices.Clone(p.freeRoutes), slices.Clone(p.freeShares)
	for _, id := range ids {
		if _, _, err := takeRows(&routes, &shares, want.vhosts[id]); err != nil {
			return fmt.Errorf("virtual host %q: %w", want.names[id].name, err)
		}
	}
	return p.programs.fit(programsOf(ids, want.vhosts))
}

// changedVHosts returns the ids of the virtual hosts that are to be written, sorted.
func changedVHosts(now, want map[uint32]vhost) []uint32 {
	var ids []uint32
	for id, v := range want {
		if old, ok := now[id]; !ok || !old.equal(v) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func programsOf(ids []uint32, vhosts map[uint32]vhost) map[digest]bool {
	wanted := make(map[digest]bool)
	for _, id := range ids {
		wanted[vhosts[id].program] = true
	}
	return wanted
}

// takeRows takes the rows of a virtual host out of the free space, or a copy.
func takeRows(freeRoutes, freeShares *extents, v vhost) (routes, shares bpf.Extent, err error) {
	if routes, err = takeRow(freeRoutes, "km_routes", len(v.routes)); err != nil {
		return routes, shares, err
	}
	if shares, err = takeRow(freeShares, "km_shares", v.nShares()); err != nil {
		freeRoutes.give(routes)
	}
	return routes, shares, err
}

func takeRow(free *extents, table string, n int) (bpf.Extent, error) {
	x, err := free.take(uint32(n))
	if err != nil {
		err = fmt.Errorf("map %s has no %d elements in a row: the last good state stays; use fewer routes, or raise the map's size", table, n)
	}
	return x, err
}

// putVHosts writes the virtual hosts that changed, each with fresh extents and the
// next generation, and returns those that they replace.
func (w *writer) putVHosts(p *Publisher, now, want map[uint32]vhost) (replaced []vhost) {
	ids := changedVHosts(now, want)
	if w.err != nil || len(ids) == 0 {
		return nil
	}
	if w.err = p.programs.place(programsOf(ids, want)); w.err != nil {
		return nil
	}
	changed := make(map[uint32]vhost, len(ids))
	for _, id := range ids {
		v := want[id]
		old, had := now[id]
		if w.err = p.writeRows(&v); w.err != nil {
			for _, v := range changed { // nothing names them yet
				p.giveRows(v)
			}
			return nil
		}
		v.value.Generation = old.value.Generation + 1
		changed[id] = v
		if had {
			replaced = append(replaced, old)
		}
	}
	putAll(w, p.rt.VHosts, now, changed, vhost.written, func(v vhost) bpf.VHost { return v.value })
	if w.err != nil {
		return nil // some of them may be written: old and new stay taken until a restart
	}
	return replaced
}

// written tells whether two virtual hosts are one in the map, too.
func (v vhost) written(o vhost) bool { return v.value == o.value && v.equal(o) }

// writeRows writes the routes and shares of a virtual host into free space, through
// the maps' memory, and completes its value.
func (p *Publisher) writeRows(v *vhost) error {
	rows, shares, err := takeRows(&p.freeRoutes, &p.freeShares, *v)
	if err != nil {
		return err
	}
	at := p.programs.find[v.program]
	v.value = bpf.VHost{Slab: at.slab, Program: at.offset, N_routes: rows.N, Routes: rows.Offset}
	v.shares = shares
	for i, r := range v.routes {
		row := r.value
		if row.N_shares > 0 {
			copy(p.rt.Shares()[shares.Offset+row.Shares:], r.shares)
			row.Shares += shares.Offset
		}
		p.rt.Routes()[int(rows.Offset)+i] = row
	}
	return nil
}

func (p *Publisher) giveRows(v vhost) {
	p.freeRoutes.give(v.routesExtent())
	p.freeShares.give(v.shares)
}

// freeVHosts gives back what virtual hosts had that are no longer in the map, and
// the programs that none of the others uses.
func (p *Publisher) freeVHosts(gone []vhost, others ...map[uint32]vhost) {
	if len(gone) == 0 {
		return
	}
	for _, v := range gone {
		p.giveRows(v)
	}
	used := make(map[place]bool)
	for _, now := range others {
		for _, v := range now {
			used[v.place()] = true
		}
	}
	p.programs.keep(used)
}

// httpFills adds the entries of the hash maps of HTTP, and returns how full the
// tables are that are written in extents; slabs count in bytes.
func (p *Publisher) httpFills(entries map[string]uint64) []Fill {
	entries["km_http"] = uint64(len(p.now.http))
	entries["km_hosts"], entries["km_long_hosts"] = uint64(len(p.now.hosts)), uint64(len(p.now.longHosts))
	entries["km_vhosts"], entries["km_replies"] = uint64(len(p.now.vhosts)), uint64(len(p.now.replies))
	entries["km_guesses"] = uint64(len(p.now.guesses))
	fill := func(name string, capacity int, unit int, free ...extents) Fill {
		f := Fill{Map: name, Entries: uint64(capacity), Capacity: uint64(capacity)}
		for _, list := range free {
			for _, x := range list {
				f.Entries -= uint64(x.N) * uint64(unit)
			}
		}
		return f
	}
	return []Fill{
		fill("km_routes", int(p.rt.Map("km_routes").MaxEntries()), 1, p.freeRoutes),
		fill("km_shares", int(p.rt.Map("km_shares").MaxEntries()), 1, p.freeShares),
		fill("km_slabs", len(p.programs.memory), automaton.Align, p.programs.free...),
	}
}

// putReplies writes new replies; one that is there never changes.
func (w *writer) putReplies(m *ebpf.Map, now, want map[uint32]reply) {
	for _, id := range slices.Sorted(maps.Keys(want)) {
		r := want[id]
		if old, ok := now[id]; w.err != nil || ok && old == r {
			continue
		}
		if w.err = wrapMap(m, m.Put(id, r.value())); w.err == nil {
			now[id] = r
			w.res.Written++
		}
	}
}

// recoverHTTP reads the tables of HTTP back.
func (p *Publisher) recoverHTTP() error {
	p.freeRoutes, p.freeShares = allFree(p.rt.Map("km_routes").MaxEntries()), allFree(p.rt.Map("km_shares").MaxEntries())
	p.programs = newPrograms(p.rt.SlabMemory())
	if err := readAll(p.rt.HTTP, keep(p.now.http)); err != nil {
		return err
	}
	if err := readAll(p.rt.Hosts, keep(p.now.hosts)); err != nil {
		return err
	}
	if err := readAll(p.rt.LongHosts, keep(p.now.longHosts)); err != nil {
		return err
	}
	if err := readAll(p.rt.Guesses, keep(p.now.guesses)); err != nil {
		return err
	}
	if err := readAll(p.rt.Replies, func(id uint32, v bpf.Reply) (err error) {
		p.now.replies[id], err = replyOf(&v)
		return err
	}); err != nil {
		return err
	}
	return readAll(p.rt.VHosts, func(id uint32, value bpf.VHost) error {
		v, err := p.readVHost(value)
		if err != nil {
			return fmt.Errorf("virtual host %d: %w", id, err)
		}
		p.now.vhosts[id] = v
		return nil
	})
}

// readVHost reads a virtual host back and takes what it has out of the free space.
func (p *Publisher) readVHost(value bpf.VHost) (vhost, error) {
	v := vhost{value: value}
	var err error
	if v.program, err = p.programs.recover(v.place()); err != nil {
		return v, err
	}
	if err := p.freeRoutes.mark(v.routesExtent()); err != nil {
		return v, fmt.Errorf("km_routes: %w", err)
	}
	all := p.rt.Shares()
	for _, row := range p.rt.Routes()[value.Routes:][:value.N_routes] {
		r := route{value: row}
		if row.N_shares > 0 {
			if v.shares.N == 0 {
				v.shares.Offset = row.Shares
			}
			r.value.Shares = row.Shares - v.shares.Offset
			if r.value.Shares != v.shares.N || uint64(row.Shares)+uint64(row.N_shares) > uint64(len(all)) {
				return v, fmt.Errorf("km_shares: route %d has them at %d", row.Id, row.Shares)
			}
			v.shares.N += row.N_shares
			r.shares = slices.Clone(all[row.Shares:][:row.N_shares])
		}
		v.routes = append(v.routes, r)
	}
	if err := p.freeShares.mark(v.shares); err != nil {
		return v, fmt.Errorf("km_shares: %w", err)
	}
	return v, nil
}
