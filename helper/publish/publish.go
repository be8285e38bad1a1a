// SPDX-License-Identifier: Apache-2.0

// Package publish writes snapshots of the mesh into the orchestration maps. It is
// their only writer.
//
// The invariants:
//
//   - Make before break: what a name leads to is written before the name, and
//     deleted after it, with a grace period between, so that a program that runs
//     meanwhile finds the old answer or the new one, never neither.
//   - By difference: only what changed is written. A restarted publisher reads back
//     what its predecessor left and goes on from there.
//   - Ids are given out once, survive a restart through km_names, and never come
//     back for something else.
//   - All or nothing where it counts: a snapshot that does not fit is refused before
//     anything is written.
package publish

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// Publisher holds the content of the maps as it is.
type Publisher struct {
	rt  *bpf.Runtime
	log *slog.Logger

	mu         sync.Mutex
	generation uint64
	nextID     uint64
	live       bool
	now        tables
	free       extents
	last       *mesh.Snapshot  // what now was made of; nil if that is not known
	ids        map[name]uint32 // of now.names

	// What nothing names any more, to be freed after a grace period.
	retired  []bpf.Extent
	replaced []vhost

	// The tables of HTTP that are written in extents, and what the last publication
	// was compiled to; empty after a restart.
	freeRoutes, freeShares extents
	programs               *programs
	compiled
}

// tables mirrors the maps.
type tables struct {
	names     map[uint32]name
	frontends map[bpf.FrontendKey]uint32
	prefixes  map[bpf.PrefixKey]uint32
	services  map[uint32]bpf.Service
	clusters  map[uint32]cluster
	endpoints map[uint32]bpf.Endpoint

	http      map[uint32]bpf.HTTP
	hosts     map[bpf.HostKey]uint32
	longHosts map[bpf.LongHostKey]uint32
	vhosts    map[uint32]vhost
	replies   map[uint32]reply
	guesses   map[bpf.FrontendKey]uint32
}

// cluster is a cluster with the content of its extents.
type cluster struct {
	endpoints []uint32    // ids of all, sorted; maglev may give a light one no slot
	value     bpf.Cluster // Turn is 0
	v4, v6    []bpf.Slot
}

// name is what an id stands for.
type name struct {
	scope uint32
	kind  uint8
	name  string
}

// New opens a publisher over loaded maps and reads what they hold.
func New(rt *bpf.Runtime, log *slog.Logger) (*Publisher, error) {
	p := &Publisher{rt: rt, log: log}
	if err := p.recover(); err != nil {
		return nil, fmt.Errorf("read back the maps: %w", err)
	}
	return p, nil
}

// Result says what a publication did.
type Result struct {
	Generation uint64
	// Written and Deleted count map entries; both 0: nothing changed.
	Written, Deleted int
	// Removed are the endpoints that may no longer be chosen.
	Removed []netip.AddrPort
}

// Publish makes the maps hold the snapshot. On an error the maps still answer as
// before, or with a part of the snapshot whose names are complete; publishing again
// goes on from there.
func (p *Publisher) Publish(ctx context.Context, s *mesh.Snapshot) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	res, err := p.write(ctx, s)
	if err != nil {
		p.last, p.compiled = nil, compiled{}
		return res, fmt.Errorf("publish: %w", err)
	}
	p.last = s
	if res.Written+res.Deleted == 0 && p.live {
		res.Generation = p.generation
		return res, nil
	}
	if err := p.rt.SetState(bpf.PhaseLive, p.generation+1, p.nextID); err != nil {
		return res, fmt.Errorf("publish: %w", err)
	}
	p.generation++
	p.live = true
	res.Generation = p.generation
	p.log.Info("published", "generation", p.generation, "written", res.Written, "deleted", res.Deleted)
	return res, nil
}

// write writes a whole snapshot, or only the clusters in which it differs from the
// last one.
func (p *Publisher) write(ctx context.Context, s *mesh.Snapshot) (Result, error) {
	if c, ok := p.changes(s); ok {
		return p.patch(ctx, c)
	}
	want, out, err := p.compile(s)
	if err != nil {
		return Result{}, err
	}
	if err := p.fits(p.now, want); err != nil {
		return Result{}, err
	}
	res, err := p.apply(ctx, p.now, want)
	p.ids = make(map[name]uint32, len(p.now.names))
	for id, n := range p.now.names {
		p.ids[n] = id
	}
	p.compiled = *out
	return res, err
}

// Live tells whether a snapshot is in the maps, and which generation.
func (p *Publisher) Live() (generation uint64, live bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation, p.live
}

func endpointAddr(e bpf.Endpoint) netip.AddrPort {
	return netip.AddrPortFrom(bpf.AddrOf(e.Addr, e.Family), bpf.PortWord(e.Port))
}

// fits refuses tables that the maps cannot hold, together with what they hold
// already: old and new stand side by side for a moment. now is the part of the
// mirror that want is to replace.
func (p *Publisher) fits(now, want tables) error {
	if err := p.counts(now, want); err != nil {
		return err
	}
	if err := p.vhostsFit(now, want); err != nil {
		return err
	}
	return p.slotsFit(now, want)
}

// counts refuses more entries than maps have room for.
func (p *Publisher) counts(now, want tables) error {
	for _, m := range []struct {
		name     string
		old, new int
	}{
		{"km_frontends", len(p.now.frontends), countNew(now.frontends, want.frontends)},
		{"km_prefixes", len(p.now.prefixes), countNew(now.prefixes, want.prefixes)},
		{"km_services", len(p.now.services), countNew(now.services, want.services)},
		{"km_clusters", len(p.now.clusters), countNew(now.clusters, want.clusters)},
		{"km_endpoints", len(p.now.endpoints), countNew(now.endpoints, want.endpoints)},
		{"km_names", len(p.now.names), countNew(now.names, want.names)},
		{"km_http", len(p.now.http), countNew(now.http, want.http)},
		{"km_hosts", len(p.now.hosts), countNew(now.hosts, want.hosts)},
		{"km_long_hosts", len(p.now.longHosts), countNew(now.longHosts, want.longHosts)},
		{"km_vhosts", len(p.now.vhosts), countNew(now.vhosts, want.vhosts)},
		{"km_replies", len(p.now.replies), countNew(now.replies, want.replies)},
		{"km_guesses", len(p.now.guesses), countNew(now.guesses, want.guesses)},
	} {
		if capacity := int(p.rt.Map(m.name).MaxEntries()); m.old+m.new > capacity {
			return fmt.Errorf("map %s holds %d of %d entries and cannot take %d more: the last good state stays; narrow the configuration or raise the map's size", m.name, m.old, capacity, m.new)
		}
	}
	return nil
}

// slotsFit takes the slots of all changed tables out of a copy of the free space,
// in the order in which putClusters will.
func (p *Publisher) slotsFit(now, want tables) error {
	free := slices.Clone(p.free)
	for _, id := range sortedIDs(want.clusters) {
		c := want.clusters[id]
		if old, ok := now.clusters[id]; ok && old.equal(c) {
			continue
		}
		for _, table := range [][]bpf.Slot{c.v4, c.v6} {
			if _, err := p.takeSlots(&free, len(table)); err != nil {
				return fmt.Errorf("cluster %q: %w", want.names[id].name, err)
			}
		}
	}
	return nil
}

func countNew[K comparable, V any](old, new map[K]V) int {
	n := 0
	for k := range maps.Keys(new) {
		if _, ok := old[k]; !ok {
			n++
		}
	}
	return n
}
