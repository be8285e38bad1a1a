// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// events are what the L7 path counted: whether a workload took the way that it is said to measure.
type events struct {
	flows    uint64 // connections of which requests are routed
	switched uint64 // requests that went to another endpoint than the one before, on a leg that was there
	pinned   uint64 // connections that are not, or no longer, routed by request
	answered uint64 // requests that no endpoint got
}

// Elements of km_events (enum event of bpf/abi_watch.h).
const (
	eventFlow         = 0
	eventSwitchParked = 3
	eventFirstPin     = 5
	eventLastPin      = 13
	eventRejected     = 14
	eventNoEndpoint   = 16
)

func (b *bed) events() (events, error) {
	m, err := ebpf.LoadPinnedMap(bpf.MapPath(b.n.BPFFS, "km_events"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return events{}, err
	}
	defer m.Close()
	var e events
	for i := range uint32(m.MaxEntries()) {
		var n uint64
		if err := m.Lookup(i, &n); err != nil {
			return events{}, fmt.Errorf("event %d: %w", i, err)
		}
		switch {
		case i == eventFlow:
			e.flows = n
		case i == eventSwitchParked:
			e.switched = n
		case eventFirstPin <= i && i <= eventLastPin:
			e.pinned += n
		case eventRejected <= i && i <= eventNoEndpoint:
			e.answered += n
		}
	}
	return e, nil
}

func (e events) minus(before events) events {
	return events{e.flows - before.flows, e.switched - before.switched, e.pinned - before.pinned, e.answered - before.answered}
}

// mostly is the share of the requests that have to switch: connections take paths in turn together, so that one may
// meet the same path twice.
const mostly = 0.9

// check tells what a variant did that it should not, or not, while the client counted count requests.
func (e events) check(variant string, switches bool, count uint64) error {
	routed := variant == l7 || variant == same || variant == beside
	switches = switches && (variant == l7 || variant == beside)
	switch {
	case routed != (e.flows > 0):
		return fmt.Errorf("%d connections were routed by request", e.flows)
	case e.pinned+e.answered > 0:
		return fmt.Errorf("%d connections were pinned, %d requests answered without an endpoint", e.pinned, e.answered)
	case switches && float64(e.switched) < mostly*float64(count):
		return fmt.Errorf("%d of %d requests switched endpoints", e.switched, count)
	case !switches && e.switched > 0:
		return fmt.Errorf("%d requests switched endpoints, none should", e.switched)
	}
	return nil
}
