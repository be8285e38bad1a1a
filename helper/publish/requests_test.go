// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"cmp"
	"context"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// webPublisher has one HTTP service "web" with one route to the cluster "a", and tells
// their ids.
func webPublisher(t *testing.T) (p *Publisher, service, cluster, route uint32) {
	t.Helper()
	p = publisher(t, load(t, nil))
	publish(t, p, httpSnapshot(&mesh.Service{
		Name: "web", Clusters: forward("", "a").Clusters, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)},
		HTTP: &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*mesh.Route{forward("/", "a")}}}},
	}))
	for id, n := range p.now.names {
		switch {
		case n.kind == bpf.NameService:
			service = id
		case n.kind == bpf.NameCluster && n.name == "a":
			cluster = id
		case n.kind == bpf.NameRoute && n.name == RouteName("web", "v", "", 0):
			route = id
		}
	}
	if service == 0 || cluster == 0 || route == 0 {
		t.Fatalf("no id in %v", p.now.names)
	}
	return p, service, cluster, route
}

func TestHTTPCounters(t *testing.T) {
	p, service, cluster, route := webPublisher(t)
	const gone = 1 << 30
	for i, k := range []bpf.RequestKey{
		{Pod: 1, Service: service, Cluster: cluster, Route: route, Status: 200},
		{Pod: 2, Service: service, Status: 404, Flags: bpf.RequestLocal},
		{Pod: 3, Service: gone, Status: 200},
		{Pod: 4, Service: service, Cluster: gone, Status: 200},
		{Pod: 5, Service: service, Cluster: cluster, Route: gone, Status: 200},
		{Pod: 6, Service: cluster, Status: 200}, // names something else
	} {
		if err := p.rt.Requests.Put(k, bpf.RequestStats{Count: uint64(i + 1), Duration: 1 << 40, Buckets: [20]uint64{19: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.rt.Events.Put(uint32(2), uint64(9)); err != nil {
		t.Fatal(err)
	}
	got, err := p.HTTPCounters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got.Requests, func(a, b Request) int { return cmp.Compare(a.Pod, b.Pod) })
	stats := func(n uint64) bpf.RequestStats {
		return bpf.RequestStats{Count: n, Duration: 1 << 40, Buckets: [20]uint64{19: 1}}
	}
	want := []Request{
		{Pod: 1, Service: "web", Cluster: "a", Route: "web|v/#0", Status: 200, RequestStats: stats(1)},
		{Pod: 2, Service: "web", Status: 404, Local: true, RequestStats: stats(2)},
	}
	if diff := gocmp.Diff(want, got.Requests); diff != "" {
		t.Error(diff)
	}
	if len(got.Events) != bpf.Events {
		t.Errorf("%d events, want %d", len(got.Events), bpf.Events)
	}
	for i, e := range got.Events {
		want := EventCount{Event: bpf.Event(i)}
		if i == 2 {
			want.Count = 9
		}
		if e != want {
			t.Errorf("event %d is %v, want %v", i, e, want)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.HTTPCounters(ctx); err == nil {
		t.Error("a scrape that was given up read on")
	}
}

func TestFlows(t *testing.T) {
	p, service, cluster, route := webPublisher(t)
	all := p.rt.Flows()
	all[3] = bpf.Flow{Slot: 3, State: bpf.FlowOpen, Service: service, Cluster: cluster, Route: route}
	all[3].Legs[1].Cluster = cluster
	all[4] = bpf.Flow{Slot: 4, State: bpf.FlowClosed, Service: service}
	all[len(all)-1] = bpf.Flow{Slot: 5, State: bpf.FlowSyn, Service: cluster, Cluster: 1 << 30, Route: service}
	want := []Flow{
		{Flow: all[3], ServiceName: "web", ClusterName: "a", RouteName: "web|v/#0", LegClusters: [4]string{1: "a"}},
		{Flow: all[len(all)-1]},
	}
	if got := p.Flows(); !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every route is listed, in its order, also one that nobody took; a service's inner
// virtual host is not.
func TestRouteUses(t *testing.T) {
	p := publisher(t, load(t, nil))
	host := &mesh.VirtualHost{Name: "v", Domains: []string{"*"}, Routes: []*mesh.Route{forward("/x", "b"), forward("/", "a")}}
	host.Routes[0].Name = "z"
	publish(t, p, httpSnapshot(&mesh.Service{
		Name: "web", Clusters: forward("", "a").Clusters, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)},
		HTTP: &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{host}},
	}))
	for id, n := range p.now.names {
		if n.name == "web|v/#1" {
			for pod, count := range map[uint64]uint64{1: 3, 2: 4} {
				if err := p.rt.Requests.Put(bpf.RequestKey{Pod: pod, Route: id, Status: 200}, bpf.RequestStats{Count: count}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	got, err := p.RouteUses(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []RouteUse{
		{Service: "web", VirtualHost: host, Index: 0, Name: "web|v/z"},
		{Service: "web", VirtualHost: host, Index: 1, Name: "web|v/#1", Requests: 7},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got[0].Route() != host.Routes[0] {
		t.Error("the route is another one")
	}
}
