// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"

	"kmesh/bpf"
)

// Request is what one pod asked of one service, with one outcome.
type Request struct {
	Pod            uint64 // netns cookie
	Scope, Service string
	Cluster        string // empty: the program answered
	Route          string // empty: none matched
	Status         uint16 // 0: the connection ended before there was one
	Local          bool
	bpf.RequestStats
}

// HTTPCounters are the counters of the L7 path.
type HTTPCounters struct {
	Requests []Request
	Events   []EventCount // every event
}

// EventCount is how often an event occurred.
type EventCount struct {
	Event bpf.Event
	Count uint64
}

// HTTPCounters reads the counters of the L7 path. Requests whose service, cluster or
// route has gone are left out: they are about to be deleted, and under another name
// they would look like new ones.
func (p *Publisher) HTTPCounters(ctx context.Context) (HTTPCounters, error) {
	names, _, scopes := p.index()
	var c HTTPCounters
	err := readCounted(ctx, p.rt, "km_requests", func(k bpf.RequestKey, v bpf.RequestStats) {
		svc, cl, route := names[k.Service], names[k.Cluster], names[k.Route]
		if svc.kind != bpf.NameService || k.Cluster != 0 && cl.kind != bpf.NameCluster ||
			k.Route != 0 && route.kind != bpf.NameRoute {
			return
		}
		c.Requests = append(c.Requests, Request{
			Pod: k.Pod, Scope: scopes[svc.scope], Service: svc.name, Cluster: cl.name, Route: route.name,
			Status: k.Status, Local: k.Flags&bpf.RequestLocal != 0, RequestStats: v,
		})
	})
	if err != nil {
		return HTTPCounters{}, fmt.Errorf("counters of HTTP: %w", err)
	}
	events, err := p.rt.EventCounts()
	if err != nil {
		return HTTPCounters{}, fmt.Errorf("counters of HTTP: %w", err)
	}
	for i, n := range events {
		c.Events = append(c.Events, EventCount{bpf.Event(i), n})
	}
	return c, nil
}

// Flow is a connection of the L7 path, with the names of what it last used; a name
// is empty where there is none, or no longer.
type Flow struct {
	bpf.Flow
	Scope, ServiceName, ClusterName, RouteName string
	LegClusters                                [len(bpf.Flow{}.Legs)]string
}

// Flows copies the connections that are being opened or are open.
func (p *Publisher) Flows() []Flow {
	live := p.rt.LiveFlows()
	names, _, scopes := p.index()
	named := func(id uint32, kind uint8) string {
		if n := names[id]; n.kind == kind {
			return n.name
		}
		return ""
	}
	out := make([]Flow, len(live))
	for i, f := range live {
		out[i] = Flow{
			Flow: f, ServiceName: named(f.Service, bpf.NameService),
			ClusterName: named(f.Cluster, bpf.NameCluster), RouteName: named(f.Route, bpf.NameRoute),
		}
		if out[i].ServiceName != "" {
			out[i].Scope = scopes[names[f.Service].scope]
		}
		for j, l := range f.Legs {
			out[i].LegClusters[j] = named(l.Cluster, bpf.NameCluster)
		}
	}
	return out
}
