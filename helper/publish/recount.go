// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"

	"kmesh/bpf"
)

// Recounter corrects the numbers of open connections by the kernel's own list of
// sockets, and of requests that run by the flows. The programs count a connection or
// a request when it begins and when it ends; the end is missed when a pod's programs
// go before its last sockets do.
type Recounter struct {
	p *Publisher
	// off are the endpoints whose count differed last time, and by how much. A
	// count in motion differs by another amount each time; one that is wrong
	// differs by the same.
	off            map[uint32]int64
	offConnections map[bpf.ConnectionsKey]int64
}

// NewRecounter returns a recounter for the publisher's maps.
func NewRecounter(p *Publisher) *Recounter {
	return &Recounter{p: p, off: make(map[uint32]int64)}
}

// Recount compares, and corrects what was off by the same amount twice. It returns
// the number of corrected counts.
func (r *Recounter) Recount(ctx context.Context) (int, error) {
	sockets, err := r.p.rt.Sockets()
	if err != nil {
		return 0, fmt.Errorf("recount: %w", err)
	}
	open := make(map[uint32]uint64)
	for _, s := range sockets {
		if s.Flags&bpf.StampCounted != 0 {
			open[s.Endpoint]++
		}
	}
	r.p.addRunning(open, true)
	counted := make(map[uint32]uint64)
	if err := readCounters(ctx, r.p.rt.Active, func(id uint32, n uint64) { counted[id] = n }); err != nil {
		return 0, fmt.Errorf("recount: %w", err)
	}
	off := make(map[uint32]int64)
	corrected := 0
	for id, n := range counted {
		diff := int64(open[id]) - int64(n)
		if diff == 0 {
			continue
		}
		if r.off[id] != diff {
			off[id] = diff
			continue
		}
		if err := r.p.setActive(id, open[id]); err != nil {
			return corrected, fmt.Errorf("recount: %w", err)
		}
		corrected++
	}
	r.off = off
	connections, err := r.recountConnections(ctx, sockets)
	return corrected + connections, err
}

// addRunning adds the requests of which the response is to come, on the legs that the
// programs count or on the others. Flows change while they are read; what was read
// wrong once is not read wrong by the same amount twice.
func (p *Publisher) addRunning(open map[uint32]uint64, counted bool) {
	flows := p.rt.Flows()
	for i := range flows {
		f := &flows[i]
		if f.State == bpf.FlowFree || f.State == bpf.FlowClosed || f.Pending == 0 || f.Flags&bpf.FlowIdle != 0 {
			continue
		}
		if leg := f.Legs[int(f.Leg)%len(f.Legs)]; leg.Flags&bpf.LegCounted != 0 == counted {
			open[leg.Endpoint] += uint64(f.Pending)
		}
	}
}

// setActive replaces a count, unless the endpoint has gone meanwhile.
func (p *Publisher) setActive(id uint32, n uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.now.endpoints[id]; !ok {
		return nil
	}
	return p.rt.Active.Put(id, n)
}
