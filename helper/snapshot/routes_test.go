// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"

	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// hcm is a listener that takes its routes by RDS.
func hcm(t testing.TB, name, addr, rds string) xds.Resource {
	return res(t, &listenerv3.Listener{}, fmt.Sprintf(`{name: '%s', address: {socket_address: {address: %s, port_value: 80}},
filter_chains: [{filters: [{name: h, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
stat_prefix: x, rds: {route_config_name: '%s', config_source: {ads: {}}}}}]}]}`, name, addr, rds))
}

// rds is a route configuration with one virtual host per cluster.
func rds(t testing.TB, name string, clusters ...string) xds.Resource {
	text := "name: '" + name + "'\nvirtual_hosts:\n"
	if len(clusters) == 0 {
		text = "name: '" + name + "'"
	}
	for i, c := range clusters {
		text += fmt.Sprintf("- {name: vh%d, domains: [h%d], routes: [{name: main, match: {prefix: /}, route: {cluster: %s}}]}\n", i, i, c)
	}
	return res(t, &routev3.RouteConfiguration{}, text)
}

func routes(r ...xds.Resource) xds.Update { return xds.Update{Type: xds.RouteType, Resources: r} }

// TestRoutesWarm: a listener waits for its routes, they wait for their clusters,
// and those for their endpoints.
func TestRoutesWarm(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "s", 1)), listeners(lis(t, "l4", "10.0.0.9", "s"))), "l4@10.0.0.9>s(1)")
	b.want(b.apply(listeners(lis(t, "l4", "10.0.0.9", "s"), hcm(t, "web", "10.0.0.1", "80"))), "=")
	if got := b.Wanted(xds.RouteType); !slices.Equal(got, []string{"80"}) {
		t.Fatalf("wanted %v", got)
	}
	if got := b.state(envoy.TypeListener, "web"); got != Warming {
		t.Errorf("listener %s", got)
	}
	b.want(b.apply(clusters(eds(t, "a"), static(t, "s", 1)), routes(rds(t, "80", "a", "s"))), "=") // and now the endpoints
	if p := b.problem(); p != "" {
		t.Errorf("problem %s", p)
	}
	b.want(b.apply(assignments(cla(t, "a", 7))), "l4@10.0.0.9>s(1) http:web@10.0.0.1>a(7)>s(1)")
	for typ, want := range map[string]State{envoy.TypeListener: Live, envoy.TypeRoute: Live} {
		name := map[string]string{envoy.TypeListener: "web", envoy.TypeRoute: "80"}[typ]
		if got := b.state(typ, name); got != want {
			t.Errorf("%s %s: %s", typ, name, got)
		}
	}
	b.want(b.apply(assignments(cla(t, "a", 8))), "l4@10.0.0.9>s(1) http:web@10.0.0.1>a(8)>s(1)") // the short way
}

// TestRoutesKeepLastGood: whatever is wrong with the newest version, the last good
// one stays, and the problem is said.
func TestRoutesKeepLastGood(t *testing.T) {
	start := func(t *testing.T) *bench {
		b := newBench(t, Options{})
		b.want(b.apply(clusters(static(t, "s", 1)), listeners(hcm(t, "web", "10.0.0.1", "80")), routes(rds(t, "80", "s"))),
			"http:web@10.0.0.1>s(1)")
		return b
	}
	t.Run("missing cluster", func(t *testing.T) {
		b := start(t)
		b.want(b.apply(routes(rds(t, "80", "gone"))), "=")
		if p := b.problem(); !strings.Contains(p, `RouteConfiguration "80": virtual_hosts[0].routes[0].route.cluster: virtual host "vh0", route "main": cluster "gone"`) ||
			!strings.Contains(p, "last good version stays") {
			t.Errorf("problem %s", p)
		}
		if got := b.state(envoy.TypeRoute, "80"); got != LastGood {
			t.Errorf("state %s", got)
		}
		// Another virtual host is not held up, one that is new is refused.
		b.want(b.apply(routes(rds(t, "80", "gone", "s", "gone"))), "http:web@10.0.0.1>s(1)>s(1)")
		if p := b.problem(); !strings.Contains(p, `virtual host "vh2", route "main": cluster "gone"`) || !strings.Contains(p, "answered 503") {
			t.Errorf("problem %s", p)
		}
		vhs := b.last.Scopes[0].HTTP[0].HTTP.VirtualHosts
		if r := vhs[2].Routes[0]; len(vhs) != 3 || !r.Unsupported || r.Name != "main" || vhs[0].Routes[0].Unsupported {
			t.Errorf("virtual hosts %+v", vhs)
		}
		b.want(b.apply(routes(rds(t, "80", "s", "s"))), "http:web@10.0.0.1>s(1)>s(1)")
		if p := b.problem(); p != "" {
			t.Errorf("problem %s", p)
		}
	})
	t.Run("cluster removed", func(t *testing.T) {
		b := start(t)
		b.want(b.apply(clusters(static(t, "other", 2))), "=")
		if p := b.problem(); !strings.Contains(p, `cluster "s"`) {
			t.Errorf("problem %s", p)
		}
		b.want(b.apply(routes(rds(t, "80", "other"))), "http:web@10.0.0.1>other(2)")
	})
	t.Run("invalid", func(t *testing.T) {
		b := start(t)
		bad := res(t, &routev3.RouteConfiguration{}, "{name: '80', virtual_hosts: [{name: a, domains: [x]}, {name: b, domains: [X]}]}")
		if err := b.Apply(t.Context(), routes(bad)); err == nil || !strings.Contains(err.Error(), "is given twice") {
			t.Errorf("accepted: %v", err)
		}
		b.want(b.built(), "=")
	})
	t.Run("listener moves to routes that do not come", func(t *testing.T) {
		b := start(t)
		b.want(b.apply(listeners(hcm(t, "web", "10.0.0.1", "90"))), "=")
		if got := b.Wanted(xds.RouteType); !slices.Equal(got, []string{"90"}) {
			t.Errorf("wanted %v", got)
		}
		b.Absent(xds.RouteType, []string{"90"})
		b.want(b.built(), "=")
		if p := b.problem(); !strings.Contains(p, `route configuration "90": there is no RouteConfiguration of this name: the last good version stays`) {
			t.Errorf("problem %s", p)
		}
		b.want(b.apply(routes(rds(t, "90", "s", "s"))), "http:web@10.0.0.1>s(1)>s(1)")
	})
	t.Run("gone from a directory", func(t *testing.T) {
		b := start(t)
		b.want(b.apply(xds.Update{Type: xds.RouteType, Complete: true}), "=")
		if p := b.problem(); !strings.Contains(p, `RouteConfiguration "80": is gone`) {
			t.Errorf("problem %s", p)
		}
	})
}

// TestVirtualHostIdentity: of a configuration that is sent again, only the virtual
// hosts that have changed are new.
func TestVirtualHostIdentity(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "s", 1), static(t, "t", 2)), listeners(hcm(t, "web", "10.0.0.1", "80")), routes(rds(t, "80", "s", "s", "s"))),
		"http:web@10.0.0.1>s(1)>s(1)>s(1)")
	before := b.last.Scopes[0].HTTP[0].HTTP.VirtualHosts
	b.want(b.apply(routes(rds(t, "80", "s", "t", "s"))), "http:web@10.0.0.1>s(1)>t(2)>s(1)")
	after := b.last.Scopes[0].HTTP[0].HTTP.VirtualHosts
	if before[0] != after[0] || before[1] == after[1] || before[2] != after[2] {
		t.Error("identity")
	}
}

// TestRoutesNeverSeen: a route configuration that does not exist leaves its
// listener out, and no other one.
func TestRoutesNeverSeen(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "s", 1)), listeners(hcm(t, "web", "10.0.0.1", "80"), lis(t, "l4", "10.0.0.9", "s"))), "=")
	b.Absent(xds.RouteType, []string{"80", "never asked for"})
	b.want(b.built(), "l4@10.0.0.9>s(1)")
	if got := b.state(envoy.TypeListener, "web"); got != LeftOut {
		t.Errorf("listener %s", got)
	}
}

// TestRoutesForgotten: an answer for a listener that has gone is not kept.
func TestRoutesForgotten(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "s", 1)), listeners(hcm(t, "web", "10.0.0.1", "80")), routes(rds(t, "80", "s"), rds(t, "81", "s"))),
		"http:web@10.0.0.1>s(1)")
	if len(b.routes) != 1 {
		t.Errorf("%d route configurations are kept", len(b.routes))
	}
	b.want(b.apply(listeners()), "")
	if len(b.routes) != 0 || len(b.Wanted(xds.RouteType)) != 0 {
		t.Errorf("kept: %v, wanted: %v", b.routes, b.Wanted(xds.RouteType))
	}
}

// TestSharedRoutes: unchanged services keep their identity when routes are
// delivered again.
func TestSharedRoutes(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "s", 1)), listeners(hcm(t, "a", "10.0.0.1", "80"), hcm(t, "b", "10.0.0.2", "80")), routes(rds(t, "80", "s"))),
		"http:a@10.0.0.1>s(1) http:b@10.0.0.2>s(1)")
	before := slices.Clone(b.last.Scopes[0].HTTP)
	b.want(b.apply(routes(rds(t, "80", "s"))), "=")
	b.want(b.apply(listeners(hcm(t, "a", "10.0.0.1", "80"), hcm(t, "b", "10.0.0.3", "80"))), "http:a@10.0.0.1>s(1) http:b@10.0.0.3>s(1)")
	after := b.last.Scopes[0].HTTP
	if before[0] != after[0] || before[1] == after[1] {
		t.Error("identity")
	}
	if services := b.last.Scopes[0].Services; len(services) != 0 {
		t.Errorf("HTTP services among those that are published: %v", services)
	}
}

// TestControlPlaneRoutes goes from a real go-control-plane server to snapshots: a
// listener with routes by RDS, a change of them, and a NACK that keeps the last
// good ones.
func TestControlPlaneRoutes(t *testing.T) {
	for _, protocol := range []xds.Protocol{xds.SotW, xds.Delta} {
		t.Run(string(protocol), func(t *testing.T) { controlPlaneRoutes(t, protocol) })
	}
}

func controlPlaneRoutes(t *testing.T, protocol xds.Protocol) {
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	set := func(version string, r xds.Resource) {
		t.Helper()
		snap, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{
			resource.ClusterType:  {eds(t, "a").Message, eds(t, "b").Message},
			resource.EndpointType: {cla(t, "a", 1).Message, cla(t, "b", 2).Message},
			resource.ListenerType: {hcm(t, "web", "10.0.0.1", "80").Message, lis(t, "l4", "10.0.0.9", "a").Message},
			resource.RouteType:    {r.Message},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := snapshots.SetSnapshot(t.Context(), "node", snap); err != nil {
			t.Fatal(err)
		}
	}
	nacks := make(chan string, 100)
	nacked := func(detail string) {
		if detail == "" {
			return
		}
		select {
		case nacks <- detail:
		default:
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	defer g.Stop()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(t.Context(), snapshots, serverv3.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			nacked(r.GetErrorDetail().GetMessage())
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			nacked(r.GetErrorDetail().GetMessage())
			return nil
		}}))
	go func() { _ = g.Serve(ln) }()

	set("1", rds(t, "80", "a", "b"))
	log := slog.New(slog.DiscardHandler)
	src, err := xds.NewServer(xds.ServerOptions{Targets: []string{ln.Addr().String()}, Protocol: protocol, Node: &corev3.Node{Id: "node"}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	got := feed(t, src, New(Options{Logger: log}))
	if x := text(got.next()); x != "l4@10.0.0.9>a(1) http:web@10.0.0.1>a(1)>b(2)" {
		t.Fatalf("the first snapshot is not whole: %s", x)
	}
	set("2", rds(t, "80", "b"))
	got.until("l4@10.0.0.9>a(1) http:web@10.0.0.1>b(2)")
	set("3", res(t, &routev3.RouteConfiguration{}, "{name: '80', virtual_hosts: [{name: a, domains: [x], routes: [{match: {safe_regex: {regex: '('}}, route: {cluster: a}}]}]}"))
	select {
	case n := <-nacks:
		if !strings.Contains(n, `RouteConfiguration "80": virtual_hosts[0].routes[0].match.safe_regex.regex`) {
			t.Errorf("nack %s", n)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no nack")
	}
	set("4", rds(t, "80", "a"))
	got.until("l4@10.0.0.9>a(1) http:web@10.0.0.1>a(1)")
}
