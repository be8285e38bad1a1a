// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"testing"

	"kmesh/bpf"
)

// TestRecountRunning: requests of which the response is to come are counted with
// their endpoint, and no others are.
func TestRecountRunning(t *testing.T) {
	rt := load(t, nil)
	p := publisher(t, rt)
	publish(t, p, oneService(endpoints(2, 0)))
	var id uint32
	for id = range p.now.endpoints {
		break
	}
	recounter := NewRecounter(p)
	check := func(what string, want uint64) {
		t.Helper()
		for range 2 { // what is off by the same amount twice is corrected
			if _, err := recounter.Recount(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		var n uint64
		if err := rt.Active.Lookup(id, &n); err != nil || n != want {
			t.Errorf("%s: %d connections and requests, %v, want %d", what, n, err, want)
		}
	}
	flows := rt.Flows()
	f := &flows[len(flows)-1]
	f.Legs[1].Endpoint, f.Leg, f.Pending = id, 1, 2
	check("a flow that is free", 0)
	f.State = bpf.FlowOpen
	check("two requests of a policy that does not ask", 0)
	f.Legs[1].Flags, flows[0].Legs[0].Flags = bpf.LegCounted, bpf.LegCounted
	check("two requests", 2)
	flows[0].State, flows[0].Pending, flows[0].Legs[0].Endpoint = bpf.FlowOpen, 1, id
	check("and another", 3)
	f.Flags |= bpf.FlowIdle
	check("an idle flow", 1)
	flows[0].State = bpf.FlowClosed
	check("none", 0)
}
