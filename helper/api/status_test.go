// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

func TestStatusOf(t *testing.T) {
	verdict := func(resource string, class mesh.Class) mesh.Verdict {
		return mesh.Verdict{Source: "lds.yaml", Type: "Listener", Resource: resource, Field: "name", Class: class, Message: "why"}
	}
	shown := func(resource, class string) *apiv1.Verdict {
		return &apiv1.Verdict{Source: "lds.yaml", Type: "Listener", Resource: resource, Field: "name", Class: class, Message: "why"}
	}
	got := StatusOf(Node{
		Version: "v1",
		Started: time.Now().Add(-time.Minute),
		NodeID:  "n",
		BPFFS:   "/sys/fs/bpf/kmesh",
		State:   bpf.State{ABI: 1, Phase: bpf.PhaseLive, Generation: 7},
		XdsKind: "server",
		Scopes: scopes.Status{Default: &scopes.ScopeStatus{Xds: xds.Status{
			Source: "istiod:15010", Connected: true, Since: time.Unix(1700000000, 0),
			Problems:  []mesh.Verdict{verdict("a", mesh.Invalid)},
			Types:     []xds.TypeStatus{{Type: xds.ClusterType, Version: "7", Resources: 3, Accepted: 2, Rejected: 1, LastError: "bad", States: map[xds.State]int{xds.Acked: 3, xds.Nacked: 1}}},
			Unsettled: []xds.ResourceState{{Type: "Cluster", Name: "a", State: xds.Nacked, Version: "6", RejectedVersion: "7", LastError: "bad", Since: time.Unix(1700000001, 0)}},
		},
			Config: snapshot.Status{
				Version: 5, Published: 4, PublishError: "full", Holding: "waits",
				Resources: []snapshot.ResourceStatus{{
					Type: "Listener", Name: "b", Source: "lds.yaml", Version: "1", State: snapshot.Live,
					Verdicts: []mesh.Verdict{
						verdict("b", mesh.Enforced), verdict("b", mesh.Default), verdict("b", mesh.UnsupportedCondition),
						verdict("b", mesh.UnsupportedAction), verdict("b", mesh.Invalid),
					},
				}, {
					Type: "Cluster", Name: "c", Source: "cds.yaml", Version: "1", State: snapshot.Unused,
					Verdicts: []mesh.Verdict{verdict("c", mesh.UnsupportedCondition), verdict("c", mesh.UnsupportedAction)},
				}},
				Problems: []mesh.Verdict{verdict("a", mesh.Invalid), verdict("b", mesh.Invalid)},
			}}},
		Fills: []publish.Fill{{Map: "km_pods", Entries: 1, Capacity: 2}},
		Pods:  &apiv1.PodsResponse{Pods: []*apiv1.Pod{{State: "live"}}},
	})
	if got.UptimeSeconds < 60 || got.UptimeSeconds > 120 {
		t.Errorf("uptime %d s, want a minute", got.UptimeSeconds)
	}
	got.UptimeSeconds = 0
	want := &apiv1.StatusResponse{
		Version: "v1", NodeId: "n", Bpffs: "/sys/fs/bpf/kmesh", Abi: 1, Phase: "live", Generation: 7,
		Xds: &apiv1.Xds{
			Kind: "server", Address: "istiod:15010", Connected: true, SinceUnixSeconds: 1700000000,
			Types:     []*apiv1.XdsType{{Type: xds.ClusterType, Version: "7", Resources: 3, Accepted: 2, Rejected: 1, LastError: "bad", States: map[string]uint32{"ACKED": 3, "NACKED": 1}}},
			Unsettled: []*apiv1.XdsResource{{Type: "Cluster", Name: "a", State: "NACKED", Version: "6", RejectedVersion: "7", LastError: "bad", SinceUnixSeconds: 1700000001}},
		},
		Config: &apiv1.Config{
			Version: 5, Published: 4, PublishError: "full", Holding: "waits",
			Resources: []*apiv1.Resource{
				{Type: "Listener", Name: "b", Source: "lds.yaml", Version: "1", State: "live"},
				{Type: "Cluster", Name: "c", Source: "cds.yaml", Version: "1", State: "unused"},
			},
		},
		Verdicts: []*apiv1.Verdict{shown("b", "unsupported-condition"), shown("b", "not-enforced")},
		Problems: []*apiv1.Verdict{shown("a", "invalid"), shown("b", "invalid")},
		Maps:     []*apiv1.Map{{Name: "km_pods", Entries: 1, Capacity: 2}},
		Pods:     &apiv1.PodCounts{Live: 1},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
