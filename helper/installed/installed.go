// SPDX-License-Identifier: Apache-2.0

// Package installed shows what the kernel's tables do with a request, and what the
// programs do with packets.
//
// The invariant: answers come from the maps and from nothing else, found in the order
// in which the programs look, so that they are true also where the helper's idea of
// the configuration is not. What is read changes meanwhile; a virtual host is read
// whole, of one generation. Nothing is written but the flag that traces a flow.
package installed

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
)

// Options of New.
type Options struct {
	Runtime *bpf.Runtime
	// Pods names the pods of this node.
	Pods func(context.Context) (*apiv1.PodsResponse, error)
}

// Tables answers questions. It implements api.Requests.
type Tables struct {
	opts  Options
	rt    *bpf.Runtime
	trace tracer
}

// New takes the traces off that an earlier helper left.
func New(opts Options) (*Tables, error) {
	if err := opts.Runtime.ClearTraced(); err != nil {
		return nil, err
	}
	return &Tables{opts: opts, rt: opts.Runtime, trace: tracer{rt: opts.Runtime}}, nil
}

// podsNamed returns the network namespace cookies of the pods of this name. A pod whose
// sandbox is being replaced has two.
func (t *Tables) podsNamed(ctx context.Context, namespace, name string) ([]uint64, error) {
	pods, err := t.opts.Pods(ctx)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, p := range pods.GetPods() {
		if p.Namespace == namespace && p.Name == name && !slices.Contains(out, p.NetnsCookie) {
			out = append(out, p.NetnsCookie)
		}
	}
	if len(out) == 0 {
		return nil, status.Errorf(codes.NotFound, "no pod %s/%s of this node is enrolled: kmeshctl pods lists those that are", namespace, name)
	}
	return out, nil
}

// names resolves ids, each once.
type names struct {
	rt    *bpf.Runtime
	known map[uint32]bpf.Name
}

func (t *Tables) names() names { return names{t.rt, make(map[uint32]bpf.Name)} }

// of returns the name of an id, empty for 0. An id whose name is gone is shown as it is.
func (n names) of(id uint32) string {
	if id == 0 {
		return ""
	}
	v := n.entry(id)
	if v.Kind == 0 {
		return fmt.Sprintf("(id %d, gone)", id)
	}
	return string(v.Name[:min(int(v.Len), len(v.Name))])
}

func (n names) entry(id uint32) bpf.Name {
	v, ok := n.known[id]
	if !ok {
		if n.rt.Names.Lookup(id, &v) != nil {
			v = bpf.Name{}
		}
		n.known[id] = v
	}
	return v
}

// lookup reads an entry that may be absent.
func lookup[K, V any](m *ebpf.Map, key K) (v V, ok bool, err error) {
	switch err := m.Lookup(&key, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return v, false, nil
	case err != nil:
		return v, false, fmt.Errorf("read %v: %w", m, err)
	}
	return v, true, nil
}

// readTries is how often what is replaced meanwhile is read anew.
const readTries = 4

// entries reads a map that only the helper writes: a walk that a change interrupts is
// begun again.
func entries[K comparable, V any](ctx context.Context, m *ebpf.Map) (map[K]V, error) {
	var err error
	for range readTries {
		if err = ctx.Err(); err != nil {
			return nil, err
		}
		all := make(map[K]V)
		var k K
		var v V
		it := m.Iterate()
		for it.Next(&k, &v) {
			all[k] = v
		}
		if err = it.Err(); err == nil {
			return all, nil
		}
		if !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	return nil, fmt.Errorf("read %v: %w", m, err)
}

// vhost is a virtual host of one generation.
type vhost struct {
	id uint32
	bpf.VHost
	program []byte // as it lies in the slab
	routes  []bpf.Route
	shares  [][]bpf.Share // of each route
}

// vhost reads a virtual host and what it leads to; false: there is none.
func (t *Tables) vhost(id uint32) (*vhost, bool, error) {
	for range readTries {
		d, ok, err := lookup[uint32, bpf.VHost](t.rt.VHosts, id)
		if err != nil || !ok {
			return nil, false, err
		}
		v, err := t.follow(id, d)
		if err != nil {
			return nil, false, err
		}
		if again, ok, err := lookup[uint32, bpf.VHost](t.rt.VHosts, id); err != nil || ok && again == d {
			return v, true, err
		}
	}
	return nil, false, fmt.Errorf("virtual host %d changes too fast to be read", id)
}

func (t *Tables) follow(id uint32, d bpf.VHost) (*vhost, error) {
	v := &vhost{id: id, VHost: d}
	slab, at := t.rt.SlabMemory(), uint64(d.Slab)*bpf.SlabSize+uint64(d.Program)
	end := (uint64(d.Slab) + 1) * bpf.SlabSize
	if end > uint64(len(slab)) || at+8 > end {
		return nil, fmt.Errorf("virtual host %d: its program lies outside the slabs", id)
	}
	// The header begins with a magic number and the size.
	size := uint64(binary.LittleEndian.Uint32(slab[at+4:]))
	if string(slab[at:at+4]) != "KAM1" || at+size > end {
		return nil, fmt.Errorf("virtual host %d: there is no program at slab %d, byte %d", id, d.Slab, d.Program)
	}
	v.program = slices.Clone(slab[at : at+size])
	routes, ok := part(t.rt.Routes(), d.Routes, d.N_routes)
	if !ok {
		return nil, fmt.Errorf("virtual host %d: its routes lie outside their table", id)
	}
	v.routes = routes
	for i := range routes {
		shares, ok := part(t.rt.Shares(), routes[i].Shares, routes[i].N_shares)
		if !ok {
			return nil, fmt.Errorf("virtual host %d: the clusters of route %d lie outside their table", id, i)
		}
		v.shares = append(v.shares, shares)
	}
	return v, nil
}

// part copies an extent; false: it is not within the table.
func part[T any](table []T, from, n uint32) ([]T, bool) {
	if uint64(from)+uint64(n) > uint64(len(table)) {
		return nil, false
	}
	return slices.Clone(table[from : from+n]), true
}
