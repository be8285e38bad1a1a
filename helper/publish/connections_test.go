// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// TestRecountConnections: the connections of a pod to a cluster that bounds them are those whose sockets and legs are
// marked.
func TestRecountConnections(t *testing.T) {
	rt := load(t, nil)
	p := publisher(t, rt)
	publish(t, p, oneService(endpoints(2, 0)))
	key := bpf.ConnectionsKey{Pod: 7, Cluster: 5}
	claimed := bpf.Connections{Open: 9}
	claimed.Claims[1].N = 3
	if err := rt.Connections.Put(&key, &claimed); err != nil {
		t.Fatal(err)
	}
	recounter := NewRecounter(p)
	check := func(what string, times int, want uint32) {
		t.Helper()
		for range times {
			if _, err := recounter.Recount(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		var v bpf.Connections
		if err := rt.Connections.Lookup(&key, &v); err != nil || v.Open != want || v.Claims[1].N != 3 {
			t.Errorf("%s: %+v, %v, want %d open and 3 claimed", what, v, err, want)
		}
	}
	check("off once", 1, 9)
	check("off by the same again", 1, 0)
	flows := rt.Flows()
	f := &flows[len(flows)-1]
	f.State, f.Flags, f.Key.Pod = bpf.FlowOpen, bpf.FlowLimited, 7
	for i := range 3 {
		f.Legs[i].Flags, f.Legs[i].Cluster = bpf.LegLimited, 5
	}
	f.Legs[1].Flags = 0
	f.Legs[2].Cluster = 6
	check("a leg, one that is not marked, one to another cluster", 2, 1)
	f.Key.Pod = 8
	check("another pod's", 2, 0)
}

// TestLimitChanges: a limit that changes is a change, and the programs are told that there is one. A cluster that goes
// takes the count along.
func TestLimitChanges(t *testing.T) {
	rt := load(t, nil)
	p := publisher(t, rt)
	step := func(limit *uint32) uint32 {
		t.Helper()
		s := oneService(endpoints(2, 0))
		for _, c := range s.Scopes[0].Clusters {
			c.MaxConnections = limit
		}
		publish(t, p, s)
		for id, c := range p.now.clusters {
			var v bpf.Cluster
			if err := rt.Clusters.Lookup(id, &v); err != nil {
				t.Fatal(err)
			}
			if v.MaxConnections != c.value.MaxConnections {
				t.Errorf("the map has %d, the mirror %d", v.MaxConnections, c.value.MaxConnections)
			}
			return v.MaxConnections
		}
		return 0
	}
	few, none := uint32(3), uint32(0)
	for _, tc := range []struct {
		limit *uint32
		want  uint32
	}{{nil, bpf.NoLimit}, {&few, 3}, {&none, 0}, {nil, bpf.NoLimit}, {&few, 3}} {
		if got := step(tc.limit); got != tc.want {
			t.Errorf("limit %v: %d in the map, want %d", tc.limit, got, tc.want)
		}
	}
	for id := range p.now.clusters {
		if err := rt.Connections.Put(&bpf.ConnectionsKey{Pod: 1, Cluster: id}, &bpf.Connections{Open: 1}); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, p, &mesh.Snapshot{Scopes: []mesh.Scope{{}}})
	var k bpf.ConnectionsKey
	var v bpf.Connections
	if it := rt.Connections.Iterate(); it.Next(&k, &v) {
		t.Errorf("the count of a cluster that is gone stays: %+v %+v", k, v)
	}
}
