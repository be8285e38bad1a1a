// SPDX-License-Identifier: Apache-2.0

package api

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// flow is a connection from client to vip, with a leg to each endpoint.
func flow(pod uint64, client, vip string, legs ...string) publish.Flow {
	var f publish.Flow
	from, to := netip.MustParseAddrPort(client), netip.MustParseAddrPort(vip)
	f.State, f.Key.Pod = bpf.FlowOpen, pod
	words, family := bpf.AddrWords(from.Addr())
	f.Key.Client, f.Key.Family, f.Key.ClientPort = words, uint32(family), bpf.PortWord(from.Port())
	f.Key.Vip, _ = bpf.AddrWords(to.Addr())
	f.Key.VipPort = bpf.PortWord(to.Port())
	for i, leg := range legs {
		at := netip.MustParseAddrPort(leg)
		l := &f.Legs[i]
		l.State, l.Port, l.LegPort = bpf.LegOpen, bpf.PortWord(at.Port()), bpf.PortWord(uint16(0x4000+i))
		l.Addr, _ = bpf.AddrWords(at.Addr())
	}
	return f
}

func TestFlowsOf(t *testing.T) {
	busy := flow(7, "10.244.0.9:40000", "10.96.0.1:80", "10.244.0.2:8080", "10.244.0.3:8080", "10.244.0.4:8080")
	busy.Slot, busy.Generation = 5, 77
	busy.Scope, busy.ServiceName, busy.ClusterName, busy.RouteName = "s", "svc", "b", "svc|v/r"
	busy.LegClusters = [4]string{"a", "b", "c"}
	busy.Leg, busy.Requests, busy.Rebinds, busy.Seen = 1, 12, 3, 4000
	busy.Legs[1].Dc, busy.Legs[1].Ds, busy.Legs[1].Requests = 5, 1<<32-1, 9
	busy.Legs[2].State = bpf.LegNone // left out, whatever it holds
	pinned := flow(8, "[fd00::9]:40001", "[fd00::1]:80", "[fd00::2]:8080")
	pinned.State, pinned.Pin, pinned.Seen = bpf.FlowSyn, 1, 5000
	idle := flow(7, "10.244.0.9:39999", "10.96.0.1:80", "10.244.0.2:8080")
	idle.Flags, idle.Seen, idle.Legs[0].State = bpf.FlowIdle, 5001, bpf.LegDead // seen after the clock was read

	pods := &apiv1.PodsResponse{Pods: []*apiv1.Pod{
		{NetnsCookie: 7}, {Namespace: "shop", Name: "web", NetnsCookie: 7, Network: "second"}, {NetnsCookie: 7},
	}}
	unknown := &apiv1.Flow{
		Id: "0.0", NetnsCookie: 8, Client: "[fd00::9]:40001", Vip: "[fd00::1]:80", State: "syn", Pin: "tls",
		Legs: []*apiv1.FlowLeg{{Endpoint: "[fd00::2]:8080", Port: 0x4000, State: "open", Current: true}},
	}
	web := []*apiv1.Flow{
		{
			Id: "0.0", Namespace: "shop", Name: "web", NetnsCookie: 7, Client: "10.244.0.9:39999", Vip: "10.96.0.1:80", State: "open",
			Legs: []*apiv1.FlowLeg{{Endpoint: "10.244.0.2:8080", Port: 0x4000, State: "dead"}},
		},
		{
			Id: "5.77", Namespace: "shop", Name: "web", NetnsCookie: 7, Client: "10.244.0.9:40000", Vip: "10.96.0.1:80", State: "open",
			Scope: "s", Service: "svc", Cluster: "b", Route: "svc|v/r", Requests: 12, Rebinds: 3, IdleMs: 1000,
			Legs: []*apiv1.FlowLeg{
				{Endpoint: "10.244.0.2:8080", Port: 0x4000, State: "open", Cluster: "a"},
				{Endpoint: "10.244.0.3:8080", Port: 0x4001, State: "open", Current: true, Cluster: "b", Requests: 9, Dc: 5, Ds: 1<<32 - 1},
			},
		},
	}
	tests := []struct {
		pod  string
		want []*apiv1.Flow
	}{
		{"", []*apiv1.Flow{unknown, web[0], web[1]}},
		{"shop/web", web},
		{"shop/we", nil},
	}
	for _, tt := range tests {
		got := FlowsOf([]publish.Flow{busy, pinned, idle}, pods, tt.pod, 5000)
		if want := (&apiv1.FlowsResponse{Flows: tt.want}); !proto.Equal(got, want) {
			t.Errorf("pod %q: got  %v\nwant %v", tt.pod, got, want)
		}
	}
}
