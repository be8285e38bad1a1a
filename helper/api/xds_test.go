// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/lastgood"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// What a server says of a resource and what became of it are one line; the workload API
// has services and workloads under one type.
func TestXdsSourceOf(t *testing.T) {
	got := XdsSourceOf(XdsSource{
		Name: "workloads", Kind: "server", Generation: 7, Xds: xds.Status{Source: "istiod:15012"},
		Disk: &lastgood.Status{Loaded: time.Unix(1700000000, 0), FromDisk: []string{"Address"}, WriteError: "full"},
		Asked: []xds.ResourceState{
			{Type: "Listener", Name: "b", State: xds.Nacked, Version: "1", RejectedVersion: "2", LastError: "bad", Since: time.Unix(1700000001, 0)},
			{Type: "Address", Name: "shop/web", State: xds.Acked, Version: "3"},
			{Type: "Cluster", Name: "gone", State: xds.DoesNotExist},
		},
		Used: []snapshot.ResourceStatus{
			{Type: "Service", Name: "shop/web", State: snapshot.Live}, {Type: "Listener", Name: "b", State: snapshot.LastGood},
			{Type: "Listener", Name: "a", Version: "9", State: snapshot.Warming},
		},
	})
	want := &apiv1.XdsSource{
		Name: "workloads", Generation: 7,
		Xds: &apiv1.Xds{Kind: "server", Address: "istiod:15012", FromDiskUnixSeconds: 1700000000, DiskProblem: "full"},
		Resources: []*apiv1.XdsResource{
			{Type: "Address", Name: "shop/web", State: "ACKED", Version: "3", Use: "live"},
			{Type: "Cluster", Name: "gone", State: "DOES_NOT_EXIST"},
			{Type: "Listener", Name: "a", Version: "9", Use: "warming"},
			{Type: "Listener", Name: "b", State: "NACKED", Version: "1", RejectedVersion: "2", LastError: "bad", SinceUnixSeconds: 1700000001, Use: "last-good"},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}
