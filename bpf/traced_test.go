// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"testing"
)

func TestTraced(t *testing.T) {
	r := mustLoad(t, mountBPFFS(t))
	defer r.Close()
	flows := r.Flows()
	for i, pod := range []uint64{7, 8, 7, 7} {
		flows[i] = Flow{Generation: uint32(10 + i), State: FlowOpen, Scale: 3, ClientScale: 200, Key: FlowKey{Pod: pod}}
	}
	flows[2].State = FlowFree
	var l abiLimits
	if err := r.Map("km_limits").Lookup(uint32(0), &l); err != nil {
		t.Fatal(err)
	}
	l.NextFlow = 3
	if err := r.Map("km_limits").Put(uint32(0), &l); err != nil {
		t.Fatal(err)
	}
	first := FlowRef{Slot: 0, Generation: 10}
	if got, err := r.FlowsOf([]uint64{7}); err != nil || !slices.Equal(got, []FlowRef{first}) {
		t.Errorf("flows of a pod: %v, %v: want neither the free one nor what was never used", got, err)
	}

	flows[0].Flags = FlowRebound
	if !r.SetTraced(first, true) {
		t.Error("the flow is there and cannot be traced")
	}
	if f := &flows[0]; f.Flags != FlowRebound|FlowTrace || f.Scale != 3 || f.ClientScale != 200 {
		t.Errorf("flags %#x, scales %d and %d: want the trace bit and nothing else changed", f.Flags, f.Scale, f.ClientScale)
	}
	for _, gone := range []FlowRef{{Slot: 0, Generation: 9}, {Slot: 2, Generation: 12}, {Slot: 1 << 30, Generation: 10}} {
		if r.SetTraced(gone, true) || r.FlowLives(gone) {
			t.Errorf("%v: it is not there", gone)
		}
	}
	if traced, there := r.Traced(first); !traced || !there {
		t.Errorf("traced %v, there %v", traced, there)
	}
	r.SetTraced(FlowRef{Slot: 1, Generation: 11}, true)
	if err := r.ClearTraced(); err != nil {
		t.Fatal(err)
	}
	if flows[0].Flags != FlowRebound || flows[1].Flags != 0 {
		t.Errorf("flags %#x and %#x after all were cleared", flows[0].Flags, flows[1].Flags)
	}
	flows[0].State = FlowClosed
	if _, there := r.Traced(first); !there || r.FlowLives(first) {
		t.Error("a flow that has ended and is remembered: want it there, and not alive")
	}
}

func TestFlowRef(t *testing.T) {
	for _, want := range []FlowRef{{}, {Slot: 65535, Generation: 1<<32 - 1}} {
		if got, err := ParseFlowRef(want.String()); err != nil || got != want {
			t.Errorf("%v came back as %v, %v", want, got, err)
		}
	}
	for _, s := range []string{"", "1", "1.", ".1", "1.2.3", "-1.2", "4294967296.1", "a.b"} {
		if got, err := ParseFlowRef(s); err == nil {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}
