// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// recountConnections corrects the connections of pods to clusters that bound them, as
// Recount does: by the marks that sockets and legs bear.
func (r *Recounter) recountConnections(ctx context.Context, sockets []bpf.Socket) (int, error) {
	open := make(map[bpf.ConnectionsKey]uint32)
	for _, s := range sockets {
		if s.Flags&bpf.StampLimited != 0 {
			open[bpf.ConnectionsKey{Pod: s.Pod, Cluster: s.Cluster}]++
		}
	}
	flows := r.p.rt.Flows()
	for i := range flows {
		f := &flows[i]
		if f.State == bpf.FlowFree || f.Flags&bpf.FlowLimited == 0 {
			continue
		}
		for _, leg := range f.Legs {
			if leg.Flags&bpf.LegLimited != 0 {
				open[bpf.ConnectionsKey{Pod: f.Key.Pod, Cluster: leg.Cluster}]++
			}
		}
	}
	counted := make(map[bpf.ConnectionsKey]bpf.Connections)
	if err := readCounters(ctx, r.p.rt.Connections, func(k bpf.ConnectionsKey, v bpf.Connections) { counted[k] = v }); err != nil {
		return 0, fmt.Errorf("recount: %w", err)
	}
	off := make(map[bpf.ConnectionsKey]int64)
	corrected := 0
	for k, v := range counted {
		diff := int64(open[k]) - int64(v.Open)
		if diff == 0 {
			continue
		}
		if r.offConnections[k] != diff {
			off[k] = diff
			continue
		}
		v.Open = open[k]
		// In place, and with the programs' lock: who holds the element goes on with it.
		if err := r.p.rt.Connections.Update(&k, &v, ebpf.UpdateExist|ebpf.UpdateLock); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return corrected, fmt.Errorf("recount: %w", err)
		}
		corrected++
	}
	r.offConnections = off
	return corrected, nil
}
