// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// Use is one service's use of one cluster.
type Use struct {
	Scope            string
	Service, Cluster string
	bpf.Stats
	Active uint64 // TCP connections that are open now
}

// Refusal is how often a service refused connections for one reason.
type Refusal struct {
	Scope, Service string
	Reason         bpf.Reason
	Count          uint64
}

// EndpointUse is the number of open TCP connections to an endpoint of a cluster.
type EndpointUse struct {
	Scope, Cluster string
	Addr           netip.AddrPort
	Active         uint64
}

// Counters are all counters, by name.
type Counters struct {
	Uses      []Use
	Refusals  []Refusal
	Endpoints []EndpointUse
}

// index resolves ids to names: a copy, taken under the lock.
func (p *Publisher) index() (names map[uint32]name, endpoints map[uint32]bpf.Endpoint, scopes map[uint32]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	names = make(map[uint32]name, len(p.now.names))
	scopes = make(map[uint32]string)
	for id, n := range p.now.names {
		names[id] = n
		if n.kind == bpf.NameScope {
			scopes[id] = n.name
		}
	}
	endpoints = make(map[uint32]bpf.Endpoint, len(p.now.endpoints))
	for id, e := range p.now.endpoints {
		endpoints[id] = e
	}
	return names, endpoints, scopes
}

// ScopeIDs are the scopes in the maps, by their names.
func (p *Publisher) ScopeIDs() map[string]uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]uint32)
	for id, n := range p.now.names {
		if n.kind == bpf.NameScope {
			out[n.name] = id
		}
	}
	return out
}

// Counters reads all counters. It walks the node's stamped sockets first, so that
// the bytes of live connections are in.
func (p *Publisher) Counters(ctx context.Context) (Counters, error) {
	sockets, err := p.rt.Sockets()
	if err != nil {
		return Counters{}, fmt.Errorf("counters: %w", err)
	}
	open := make(map[bpf.StatsKey]uint64)
	for _, s := range sockets {
		if s.Flags&bpf.StampCounted != 0 {
			open[bpf.StatsKey{Service: s.Service, Cluster: s.Cluster}]++
		}
	}
	active := make(map[uint32]uint64)
	p.addRunning(active, false)
	names, endpoints, scopes := p.index()
	var c Counters
	err = errors.Join(
		readCounted(ctx, p.rt, "km_stats", func(k bpf.StatsKey, v bpf.Stats) {
			svc, cl := names[k.Service], names[k.Cluster]
			if svc.kind == bpf.NameService && cl.kind == bpf.NameCluster {
				c.Uses = append(c.Uses, Use{scopes[svc.scope], svc.name, cl.name, v, open[k]})
			}
		}),
		readCounted(ctx, p.rt, "km_refusals", func(k bpf.RefusalKey, n uint64) {
			if svc := names[k.Service]; svc.kind == bpf.NameService {
				c.Refusals = append(c.Refusals, Refusal{scopes[svc.scope], svc.name, bpf.Reason(k.Reason), n})
			}
		}),
		readCounters(ctx, p.rt.Active, func(id uint32, n uint64) {
			e, ok := endpoints[id]
			n += active[id]
			if cl := names[e.Cluster]; ok && n > 0 {
				c.Endpoints = append(c.Endpoints, EndpointUse{scopes[cl.scope], cl.name, endpointAddr(e), n})
			}
		}))
	if err != nil {
		return Counters{}, fmt.Errorf("counters: %w", err)
	}
	return c, nil
}

// readTries is how often a walk over a hash map that programs grow meanwhile is
// begun again before it is given up.
const readTries = 4

// readCounters calls each for every entry, each entry once.
func readCounters[K comparable, V any](ctx context.Context, m *ebpf.Map, each func(K, V)) error {
	var err error
	for range readTries {
		if err = ctx.Err(); err != nil {
			return err
		}
		all := make(map[K]V)
		var k K
		var v V
		it := m.Iterate()
		for it.Next(&k, &v) {
			all[k] = v
		}
		if err = it.Err(); err == nil {
			for k, v := range all {
				each(k, v)
			}
			return nil
		}
		if !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	return fmt.Errorf("read %v: %w", m, err)
}

// readCounted calls each for every entry that has counts, with those of other layouts.
func readCounted[K comparable, V any](ctx context.Context, rt *bpf.Runtime, name string, each func(K, V)) error {
	maps, done, err := rt.Counted(name)
	if err != nil {
		return err
	}
	defer done()
	sums := make(map[K]V)
	for _, m := range maps {
		if err := readCounters(ctx, m, func(k K, v V) {
			sum := sums[k]
			bpf.Sum(&sum, &v)
			sums[k] = sum
		}); err != nil {
			return err
		}
	}
	for k, v := range sums {
		each(k, v)
	}
	return nil
}

// Fill is how full a map is.
type Fill struct {
	Map               string
	Entries, Capacity uint64
}

// Fills returns the fill of the maps that can run full. What only the publisher
// writes is known; the others are counted.
func (p *Publisher) Fills(ctx context.Context) ([]Fill, error) {
	p.mu.Lock()
	entries := map[string]uint64{
		"km_frontends": uint64(len(p.now.frontends)), "km_prefixes": uint64(len(p.now.prefixes)),
		"km_services": uint64(len(p.now.services)), "km_clusters": uint64(len(p.now.clusters)),
		"km_endpoints": uint64(len(p.now.endpoints)), "km_active": uint64(len(p.now.endpoints)),
		"km_names": uint64(len(p.now.names)), "km_slots": uint64(p.rt.Slots.MaxEntries()),
	}
	for _, x := range p.free {
		entries["km_slots"] -= uint64(x.N)
	}
	all := p.httpFills(entries)
	p.mu.Unlock()
	for _, name := range p.rt.MapNames() {
		m := p.rt.Map(name)
		n, known := entries[name]
		if !known {
			var err error
			if n, err = countEntries(ctx, m); err != nil {
				return nil, err
			}
		}
		all = append(all, Fill{name, n, uint64(m.MaxEntries())})
	}
	return all, nil
}

func countEntries(ctx context.Context, m *ebpf.Map) (n uint64, err error) {
	key := make([]byte, m.KeySize())
	var next any // nil: the first key
	for {
		if n%1024 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		err := m.NextKey(next, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read %v: %w", m, err)
		}
		if n++; n > uint64(m.MaxEntries()) {
			// Entries come and go under the walk; it is a gauge.
			return uint64(m.MaxEntries()), nil
		}
		next = key
	}
}
