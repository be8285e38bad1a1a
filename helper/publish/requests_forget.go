// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// ForgetRequests deletes what was counted of pods that are gone, requests and connections,
// so that the maps have room for those that come. It returns how many entries it deleted.
// The living are asked for after the entries were read: a pod that is new then is not taken
// for gone.
func (p *Publisher) ForgetRequests(ctx context.Context, alive func(context.Context) (map[uint64]bool, error)) (int, error) {
	var keys []bpf.RequestKey
	if err := readCounted(ctx, p.rt, "km_requests", func(k bpf.RequestKey, _ bpf.RequestStats) { keys = append(keys, k) }); err != nil {
		return 0, fmt.Errorf("forget requests: %w", err)
	}
	var open []bpf.ConnectionsKey
	if err := readCounters(ctx, p.rt.Connections, func(k bpf.ConnectionsKey, _ bpf.Connections) { open = append(open, k) }); err != nil {
		return 0, fmt.Errorf("forget connections: %w", err)
	}
	if len(keys)+len(open) == 0 {
		return 0, nil
	}
	pods, err := alive(ctx)
	if err != nil {
		return 0, fmt.Errorf("forget requests: %w", err)
	}
	maps, done, err := p.rt.Counted("km_requests")
	if err != nil {
		return 0, fmt.Errorf("forget requests: %w", err)
	}
	defer done()
	n := 0
	for _, k := range open {
		if pods[k.Pod] {
			continue
		}
		if err := p.rt.Connections.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return n, fmt.Errorf("forget connections: %w", err)
		}
		n++
	}
	for _, k := range keys {
		if pods[k.Pod] {
			continue
		}
		for _, m := range maps {
			if err := m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return n, fmt.Errorf("forget requests: %w", err)
			}
		}
		n++
	}
	return n, nil
}
