// SPDX-License-Identifier: Apache-2.0

package api

import (
	"math"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
)

func TestServicesOf(t *testing.T) {
	few := uint32(0)
	cluster := &mesh.Cluster{Name: "v1", Policy: mesh.Maglev, MaxConnections: &few, Localities: []mesh.Locality{
		{Priority: 1, Endpoints: []mesh.Endpoint{{Addr: netip.MustParseAddrPort("[fd00::9]:80"), Weight: 1, Health: mesh.Draining}}},
		{Region: "r", Zone: "z", Endpoints: []mesh.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Weight: 3}}},
	}}
	snap := &mesh.Snapshot{Scopes: []mesh.Scope{
		{
			Key:      mesh.ScopeKey{Namespace: "shop", ServiceAccount: "web", Labels: "app=web"},
			Services: []*mesh.Service{{Name: "echo", Clusters: []mesh.WeightedCluster{{Cluster: "p", Weight: 1}}}},
			Clusters: map[string]*mesh.Cluster{"p": {Name: "p", Kind: mesh.Passthrough}},
		},
		{
			Services: []*mesh.Service{{
				Name:      "echo",
				Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix("10.96.0.10/32"), Port: 80, Protocol: mesh.TCP}},
				Clusters:  []mesh.WeightedCluster{{Cluster: "v1", Weight: 3000000000}, {Cluster: "gone", Weight: 1000000000}},
			}},
			Clusters: map[string]*mesh.Cluster{"v1": cluster},
		},
	}}
	counters := publish.Counters{
		Uses: []publish.Use{
			{Service: "echo", Cluster: "v1", Stats: bpf.Stats{
				Opened: math.MaxUint64, Closed: 2, Failed: 3, Sent: 4, Received: 5, Flows: 6, Passed: 7,
			}},
			{Scope: "shop/web/app=web", Service: "echo", Cluster: "p", Stats: bpf.Stats{Passed: 8}},
			{Service: "unknown", Cluster: "v1", Stats: bpf.Stats{Opened: 9}},
		},
		Refusals: []publish.Refusal{
			{Service: "echo", Reason: 1, Count: 2},
			{Service: "unknown", Reason: 1, Count: 2},
		},
		Endpoints: []publish.EndpointUse{
			{Cluster: "v1", Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Active: 7},
			{Cluster: "v2", Addr: netip.MustParseAddrPort("[fd00::9]:80"), Active: 1},
		},
	}
	want := &apiv1.ServicesResponse{Services: []*apiv1.Service{
		{
			Name:      "echo",
			Frontends: []*apiv1.Frontend{{Prefix: "10.96.0.10/32", Port: 80, Protocol: "TCP"}},
			Refused:   map[string]uint64{"no_endpoint": 2},
			Clusters: []*apiv1.ServiceCluster{
				{
					Name: "v1", Weight: 3000000000, Share: 0.75, Kind: "endpoints", Policy: "MAGLEV", MaxConnections: &few,
					Counters: &apiv1.Counters{
						Opened: math.MaxUint64, Closed: 2, Failed: 3, SentBytes: 4, ReceivedBytes: 5, UdpFlows: 6, Passed: 7,
					},
					Endpoints: []*apiv1.Endpoint{
						{Address: "10.0.0.1:8080", Health: "HEALTHY", Weight: 3, Locality: "r/z", ActiveConnections: 7},
						{Address: "[fd00::9]:80", Health: "DRAINING", Priority: 1, Weight: 1},
					},
				},
				{Name: "gone", Weight: 1000000000, Share: 0.25},
			},
		},
		{
			Scope: "shop/web/app=web", Name: "echo",
			Clusters: []*apiv1.ServiceCluster{{
				Name: "p", Weight: 1, Share: 1, Kind: "passthrough", Policy: "ROUND_ROBIN", Counters: &apiv1.Counters{Passed: 8},
			}},
		},
	}}
	if got := ServicesOf(snap, counters); !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := ServicesOf(nil, counters); len(got.Services) != 0 {
		t.Errorf("without a snapshot: %v", got)
	}
}
