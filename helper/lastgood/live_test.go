// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/snapshot"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/xds"
)

// served runs a server of the workload API, and gives what it serves and its address.
func served(t *testing.T) (*cache.LinearCache, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addresses := cache.NewLinearCache(snapshot.AddressType)
	both := &cache.MuxCache{
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        map[string]cache.Cache{snapshot.AddressType: addresses, snapshot.AuthorizationType: cache.NewLinearCache(snapshot.AuthorizationType)},
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(context.Background(), both, nil))
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	return addresses, ln.Addr().String()
}

func service(host string, n byte) types.Resource {
	return &address.Address{Type: &address.Address_Service{Service: &address.Service{
		Namespace: "default", Hostname: host, Addresses: []*address.NetworkAddress{{Address: []byte{10, 96, 0, n}}}, Ports: []*address.Port{{ServicePort: 80, TargetPort: 80}}}}}
}

// announced are the services' names, and their addresses' last bytes.
func announced(w *snapshot.Workloads) string {
	var out []string
	for a := range w.Announced().All() {
		addr := a.Service.Frontends[0].Prefix.Addr().As4()
		out = append(out, strings.TrimSuffix(strings.TrimPrefix(a.Service.Name, "workload/default/"), ":80/ipv4")+"@"+string('0'+addr[3]))
	}
	return strings.Join(out, " ")
}

// TestLive: a node that starts without its server serves what it served; when the server is
// there, what it has changed is changed and what it has no longer goes, though its protocol
// never says that it has said all.
func TestLive(t *testing.T) {
	c, addr := served(t)
	dir := t.TempDir()
	start := func(live bool) (k *Keeper, w *snapshot.Workloads, end func()) {
		t.Helper()
		w = snapshot.NewWorkloads(snapshot.WorkloadsOptions{})
		k, err := New(w, Options{Dir: dir, Name: "workload", Types: snapshot.WorkloadTypes(), Every: time.Millisecond, SweepAfter: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		k.Load(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		if live {
			src, err := xds.NewServer(xds.ServerOptions{Targets: []string{addr}, Types: snapshot.WorkloadTypes(), Node: &corev3.Node{Id: "n"}, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			go func() { done <- src.Run(ctx, k) }()
		} else {
			done <- nil
		}
		return k, w, func() {
			t.Helper()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			k.Close()
		}
	}
	if err := c.UpdateResources(map[string]types.Resource{"default/a": service("a", 1), "default/b": service("b", 2), "default/c": service("c", 3)}, nil); err != nil {
		t.Fatal(err)
	}
	_, w, end := start(true)
	eventually(t, "the services", func() bool { return announced(w) == "a@1 b@2 c@3" })
	end()

	k, w, end := start(false)
	if got := announced(w); got != "a@1 b@2 c@3" || !k.Status().Stale() {
		t.Errorf("without the server %s, %+v", got, k.Status())
	}
	end()

	// The server cannot be understood about c: that it has, and it stays.
	bad := service("c", 4).(*address.Address)
	bad.GetService().Ports[0].ServicePort = 0
	if err := c.UpdateResources(map[string]types.Resource{"default/a": service("a", 5), "default/c": bad}, []string{"default/b"}); err != nil {
		t.Fatal(err)
	}
	k, w, end = start(true)
	eventually(t, "the server's word", func() bool { return announced(w) == "a@5 c@3" })
	eventually(t, "nothing is stale", func() bool { return !k.Status().Stale() && k.Status().Unconfirmed == 0 })
	end()
	if _, w, end = start(false); announced(w) != "a@5 c@3" {
		t.Errorf("the next time %s", announced(w))
	}
	end()
}

// TestSnapshot: what is replayed makes the snapshot that was served, of resources that are
// asked for by name too.
func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	start := func() (*Keeper, *snapshot.Store) {
		s := snapshot.New(snapshot.Options{Logger: slog.New(slog.DiscardHandler)})
		k, err := New(s, Options{Dir: dir, Name: "envoy", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k, s
	}
	give := func(k *Keeper, url, name string, m proto.Message) error {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, typ := range xds.EnvoyTypes() {
			if typ.URL == url {
				r, err := typ.Unpack(name, "1", "server", a)
				if err != nil {
					t.Fatal(err)
				}
				return k.Apply(t.Context(), xds.Update{Type: url, Resources: []xds.Resource{r}})
			}
		}
		return errors.New("no such type")
	}
	at := func(addr string, port uint32) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: addr, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
	}
	assignment := func(port uint32) *endpointv3.ClusterLoadAssignment {
		return &endpointv3.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: at("10.0.0.1", port)}}}}}}}
	}
	tcp, err := anypb.New(&tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	k, s := start()
	for _, err := range []error{
		give(k, xds.ClusterType, "c", &clusterv3.Cluster{Name: "c", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}}),
		give(k, xds.ListenerType, "l", &listenerv3.Listener{Name: "l", Address: at("10.96.0.1", 80),
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "t", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: tcp}}}}}}),
		give(k, xds.AssignmentType, "c", assignment(8080)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if give(k, xds.AssignmentType, "c", assignment(0)) == nil {
		t.Error("port 0 is accepted")
	}
	served := s.Build()
	k.Close()
	k, s = start()
	if !k.Load(t.Context()) {
		t.Fatalf("status %+v", k.Status())
	}
	again := s.Build()
	if served == nil || again == nil || len(served.Scopes[0].Services) != 1 || len(served.Scopes[0].Clusters["c"].Localities) != 1 || !reflect.DeepEqual(served.Scopes, again.Scopes) {
		t.Errorf("served %+v, and after the start %+v", served, again)
	}
}

// TestPause: writing takes a hundredth of the time, or makes no write later than 10 s, but
// never more than a twentieth.
func TestPause(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0:                       0,
		50 * time.Millisecond:   5 * time.Second,
		200 * time.Millisecond:  10 * time.Second,
		500 * time.Millisecond:  10 * time.Second,
		2000 * time.Millisecond: 40 * time.Second,
	} {
		if got := pause(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}
