// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// apply makes the maps hold want in place of now, in the order that make-before-break
// demands, and keeps now true at every step. now is the mirror, or the part of it
// that may change.
func (p *Publisher) apply(ctx context.Context, now, want tables) (res Result, err error) {
	// Ids first: after a crash they must not come back for something else.
	if err := p.reserveIDs(); err != nil {
		return res, err
	}
	w := &writer{res: &res}
	putAll(w, p.rt.Names, now.names, want.names, equal, nameValue)
	w.addEndpoints(p, now.endpoints, want.endpoints)
	p.retired = append(p.retired, w.putClusters(p, now.clusters, want.clusters)...)
	w.putReplies(p.rt.Replies, now.replies, want.replies)
	p.replaced = append(p.replaced, w.putVHosts(p, now.vhosts, want.vhosts)...)
	putAll(w, p.rt.Hosts, now.hosts, want.hosts, equal, identity)
	putAll(w, p.rt.LongHosts, now.longHosts, want.longHosts, equal, identity)
	putAll(w, p.rt.HTTP, now.http, want.http, equal, identity)
	putAll(w, p.rt.Services, now.services, want.services, equal, identity)
	putAll(w, p.rt.Guesses, now.guesses, want.guesses, equal, identity)
	putAll(w, p.rt.Frontends, now.frontends, want.frontends, equal, identity)
	putAll(w, p.rt.Prefixes, now.prefixes, want.prefixes, equal, identity)
	p.rt.Publish()
	if w.err == nil {
		w.err = ctx.Err() // the last moment at which stopping costs nothing
	}
	// Names first; what a program has just found by one is there until it has ended.
	deleteOthers(w, p.rt.Frontends, now.frontends, want.frontends)
	deleteOthers(w, p.rt.Prefixes, now.prefixes, want.prefixes)
	deleteOthers(w, p.rt.Hosts, now.hosts, want.hosts)
	deleteOthers(w, p.rt.LongHosts, now.longHosts, want.longHosts)
	if w.err == nil && lacks(now.services, want.services)+lacks(now.http, want.http)+lacks(now.clusters, want.clusters)+lacks(now.vhosts, want.vhosts) > 0 {
		gracePeriod()
	}
	deleteOthers(w, p.rt.Guesses, now.guesses, want.guesses)
	deleteOthers(w, p.rt.Services, now.services, want.services)
	deleteOthers(w, p.rt.HTTP, now.http, want.http)
	for _, c := range deleteOthers(w, p.rt.Clusters, now.clusters, want.clusters) {
		p.retired = append(p.retired, c.value.V4, c.value.V6)
	}
	p.replaced = append(p.replaced, deleteOthers(w, p.rt.VHosts, now.vhosts, want.vhosts)...)
	p.rt.Publish() // what has been found since the last time may be gone by now
	if w.err != nil {
		// The extents stay taken until a later publication.
		return res, w.err
	}
	gone := missing(now.endpoints, want.endpoints)
	if len(gone)+len(p.retired)+len(p.replaced)+lacks(now.replies, want.replies) > 0 {
		gracePeriod()
	}
	for _, x := range p.retired {
		p.free.give(x)
	}
	p.freeVHosts(p.replaced, now.vhosts, p.now.vhosts)
	p.retired, p.replaced = nil, nil
	for _, id := range gone {
		res.Removed = append(res.Removed, endpointAddr(now.endpoints[id]))
	}
	deleteOthers(w, p.rt.Endpoints, now.endpoints, want.endpoints)
	deleteOthers(w, p.rt.Replies, now.replies, want.replies)
	w.forget(p, gone, missing(now.names, want.names))
	deleteOthers(w, p.rt.Names, now.names, want.names)
	return res, w.err
}

// reserveIDs records the next fresh id; phase and generation stay.
func (p *Publisher) reserveIDs() error {
	st, err := p.rt.State()
	if err != nil {
		return err
	}
	return p.rt.SetState(st.Phase, st.Generation, p.nextID)
}

// writer writes until the first error.
type writer struct {
	res *Result
	err error
}

func equal[V comparable](a, b V) bool { return a == b }
func identity[V any](v V) V           { return v }

// batchFrom is the number of changes from which one batch call is cheaper than
// single ones.
const batchFrom = 16

// putAll writes the entries of want that differ from now, and mirrors them. value
// turns a mirrored value into the map's.
func putAll[K comparable, V, M any](w *writer, m *ebpf.Map, now, want map[K]V, same func(a, b V) bool, value func(V) M) {
	var keys []K
	var values []M
	for k, v := range want {
		if old, ok := now[k]; !ok || !same(old, v) {
			keys = append(keys, k)
			values = append(values, value(v))
		}
	}
	if w.err != nil || len(keys) == 0 {
		return
	}
	if w.err = putEntries(m, keys, values); w.err != nil {
		return
	}
	for _, k := range keys {
		now[k] = want[k]
	}
	w.res.Written += len(keys)
}

func putEntries[K, M any](m *ebpf.Map, keys []K, values []M) error {
	if len(keys) >= batchFrom {
		_, err := m.BatchUpdate(keys, values, nil)
		if err == nil || !errors.Is(err, ebpf.ErrNotSupported) {
			return wrapMap(m, err)
		}
	}
	for i, k := range keys {
		if err := m.Put(k, values[i]); err != nil {
			return wrapMap(m, err)
		}
	}
	return nil
}

func wrapMap(m *ebpf.Map, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write %v: %w", m, err)
}

// deleteOthers deletes the entries of now that want does not have, and returns the
// values of those that are gone.
func deleteOthers[K comparable, V any](w *writer, m *ebpf.Map, now, want map[K]V) (gone []V) {
	for _, k := range missing(now, want) {
		if w.err != nil {
			return gone
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			w.err = fmt.Errorf("delete from %v: %w", m, err)
			return gone
		}
		gone = append(gone, now[k])
		delete(now, k)
		w.res.Deleted++
	}
	return gone
}

// missing returns the keys of now that want does not have.
func missing[K comparable, V any](now, want map[K]V) []K {
	var keys []K
	for k := range now {
		if _, keep := want[k]; !keep {
			keys = append(keys, k)
		}
	}
	return keys
}

// lacks returns how many keys of now want does not have.
func lacks[K comparable, V any](now, want map[K]V) int { return countNew(want, now) }

// addEndpoints writes new endpoints, each with its count of open connections. An
// endpoint never changes: another address is another endpoint.
func (w *writer) addEndpoints(p *Publisher, now, want map[uint32]bpf.Endpoint) {
	active := make(map[uint32]uint64)
	for id := range now {
		active[id] = 0
	}
	wantActive := make(map[uint32]uint64)
	for id := range want {
		wantActive[id] = 0
	}
	putAll(w, p.rt.Active, active, wantActive, equal, identity)
	putAll(w, p.rt.Endpoints, now, want, equal, identity)
}

// putClusters writes the clusters that changed, each with fresh extents, and
// returns the extents that they had.
func (w *writer) putClusters(p *Publisher, now, want map[uint32]cluster) (retired []bpf.Extent) {
	changed := make(map[uint32]cluster)
	for _, id := range sortedIDs(want) {
		c := want[id]
		if old, ok := now[id]; ok && old.equal(c) {
			continue
		}
		if w.err != nil {
			return nil
		}
		if c.value.V4, w.err = p.writeSlots(c.v4); w.err != nil {
			break
		}
		if c.value.V6, w.err = p.writeSlots(c.v6); w.err != nil {
			p.free.give(c.value.V4)
			break
		}
		changed[id] = c
	}
	if w.err != nil {
		// Nothing names these extents yet.
		for _, c := range changed {
			p.free.give(c.value.V4)
			p.free.give(c.value.V6)
		}
		return nil
	}
	for id, c := range changed {
		if c.value.MaxConnections != bpf.NoLimit {
			p.rt.LimitConnections()
		}
		if old, ok := now[id]; ok {
			retired = append(retired, old.value.V4, old.value.V6)
		}
	}
	putAll(w, p.rt.Clusters, now, changed, cluster.equal, func(c cluster) bpf.Cluster { return c.value })
	if w.err != nil {
		return nil // some of them may be written: old and new stay taken until a restart
	}
	return retired
}

func sortedIDs(m map[uint32]cluster) []uint32 { return slices.Sorted(maps.Keys(m)) }

// writeSlots writes a table into free slots, through the map's memory: no system
// call for any of them.
func (p *Publisher) writeSlots(slots []bpf.Slot) (bpf.Extent, error) {
	x, err := p.takeSlots(&p.free, len(slots))
	if err != nil || x.N == 0 {
		return x, err
	}
	buf := p.rt.SlotMemory()[int(x.Offset)*slotSize:][:0]
	for _, s := range slots {
		for _, field := range []uint32{s.Endpoint, s.Weight, s.Alias, s.Cut} {
			buf = binary.NativeEndian.AppendUint32(buf, field)
		}
	}
	return x, nil
}

// takeSlots takes n slots out of free, which is the free space or a copy of it.
func (p *Publisher) takeSlots(free *extents, n int) (bpf.Extent, error) {
	x, err := free.take(uint32(n))
	if err != nil {
		err = fmt.Errorf("map km_slots has no %d slots in a row: the last good state stays; use fewer or smaller maglev tables, or raise the map's size", n)
	}
	return x, err
}

// slotSize is sizeof(struct slot); a test holds it against the generated type.
const slotSize = 16

// forget deletes the counters of what is gone.
func (w *writer) forget(p *Publisher, endpoints, names []uint32) {
	for _, id := range endpoints {
		if err := p.rt.Active.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			w.err = errors.Join(w.err, fmt.Errorf("delete from %v: %w", p.rt.Active, err))
		}
	}
	if len(names) == 0 {
		return
	}
	lost := make(map[uint32]bool, len(names))
	for _, id := range names {
		lost[id] = true
	}
	w.err = errors.Join(w.err,
		deleteWhere(p.rt.Stats, func(k bpf.StatsKey) bool { return lost[k.Service] || lost[k.Cluster] }),
		deleteWhere(p.rt.Connections, func(k bpf.ConnectionsKey) bool { return lost[k.Cluster] }),
		deleteWhere(p.rt.Refusals, func(k bpf.RefusalKey) bool { return lost[k.Service] }),
		deleteWhere(p.rt.Requests, func(k bpf.RequestKey) bool { return lost[k.Service] || lost[k.Cluster] || lost[k.Route] }))
}

func deleteWhere[K any](m *ebpf.Map, gone func(K) bool) error {
	var keys []K
	var k K
	var v []byte
	it := m.Iterate()
	for it.Next(&k, &v) {
		if gone(k) {
			keys = append(keys, k)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read %v: %w", m, err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from %v: %w", m, err)
		}
	}
	return nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL: it returns after an RCU grace period
// of the whole system, so every program that was running has ended.
const membarrierGlobal = 1

// noMembarrierWait stands in for a grace period where the kernel refuses it
// (nohz_full). Programs run for microseconds.
const noMembarrierWait = time.Second

func gracePeriod() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(noMembarrierWait)
	}
}

func nameValue(n name) bpf.Name {
	v := bpf.Name{Scope: n.scope, Kind: n.kind, Len: uint8(len(n.name))}
	copy(v.Name[:], n.name)
	return v
}
