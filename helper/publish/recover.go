// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// recover fills the mirror from the maps.
func (p *Publisher) recover() error {
	st, err := p.rt.State()
	if err != nil {
		return err
	}
	p.generation = st.Generation
	p.live = st.Phase == bpf.PhaseLive
	if p.nextID, err = p.rt.NextID(); err != nil {
		return err
	}
	p.now = newTables()
	if err := readAll(p.rt.Names, func(id uint32, v bpf.Name) error {
		if int(v.Len) > len(v.Name) {
			return fmt.Errorf("id %d: name of %d bytes", id, v.Len)
		}
		p.now.names[id] = name{v.Scope, v.Kind, string(v.Name[:v.Len])}
		return nil
	}); err != nil {
		return err
	}
	if err := readAll(p.rt.Frontends, keep(p.now.frontends)); err != nil {
		return err
	}
	if err := readAll(p.rt.Prefixes, keep(p.now.prefixes)); err != nil {
		return err
	}
	if err := readAll(p.rt.Services, keep(p.now.services)); err != nil {
		return err
	}
	if err := readAll(p.rt.Endpoints, keep(p.now.endpoints)); err != nil {
		return err
	}
	if err := p.recoverHTTP(); err != nil {
		return err
	}
	if err := p.recoverClusters(); err != nil {
		return err
	}
	// The helper before may have ended between its last write and telling of it: what only flows still know is free here.
	p.rt.Publish()
	gracePeriod()
	return nil
}

func (p *Publisher) recoverClusters() error {
	p.free = allFree(p.rt.Slots.MaxEntries())
	endpoints := make(map[uint32][]uint32)
	for id, e := range p.now.endpoints {
		endpoints[e.Cluster] = append(endpoints[e.Cluster], id)
	}
	return readAll(p.rt.Clusters, func(id uint32, v bpf.Cluster) error {
		v.Turn = 0
		c := cluster{value: v, endpoints: slices.Sorted(slices.Values(endpoints[id]))}
		var err error
		if c.v4, err = p.readSlots(v.V4); err != nil {
			return fmt.Errorf("cluster %d: %w", id, err)
		}
		if c.v6, err = p.readSlots(v.V6); err != nil {
			return fmt.Errorf("cluster %d: %w", id, err)
		}
		p.now.clusters[id] = c
		return nil
	})
}

// readSlots reads a table back and takes its slots out of the free space.
func (p *Publisher) readSlots(x bpf.Extent) ([]bpf.Slot, error) {
	if x.N == 0 {
		return nil, nil
	}
	if err := p.free.mark(x); err != nil {
		return nil, err
	}
	buf := p.rt.SlotMemory()[int(x.Offset)*slotSize:]
	slots := make([]bpf.Slot, x.N)
	for i := range slots {
		b := buf[i*slotSize:]
		slots[i] = bpf.Slot{
			Endpoint: binary.NativeEndian.Uint32(b), Weight: binary.NativeEndian.Uint32(b[4:]),
			Alias: binary.NativeEndian.Uint32(b[8:]), Cut: binary.NativeEndian.Uint32(b[12:]),
		}
	}
	return slots, nil
}

func keep[K comparable, V any](m map[K]V) func(K, V) error {
	return func(k K, v V) error {
		m[k] = v
		return nil
	}
}

func readAll[K, V any](m *ebpf.Map, each func(K, V) error) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		if err := each(k, v); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read %v: %w", m, err)
	}
	return nil
}
