// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/test/node/wire"
)

const nodeID = "node-1"

// adsServer is a real control plane on the node, on one port for its whole life.
type adsServer struct {
	b     *bed
	addr  string
	cache cachev3.SnapshotCache
	grpc  *grpc.Server
	n     int
}

func (b *bed) adsServer() *adsServer {
	b.Helper()
	s := &adsServer{b: b, addr: "127.0.0.1:15010", cache: cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil)}
	s.start()
	b.Cleanup(func() { s.grpc.Stop() })
	return s
}

func (s *adsServer) start() {
	s.b.Helper()
	var l net.Listener
	err := s.b.node.Do(func() (err error) {
		l, err = net.Listen("tcp", s.addr)
		return err
	})
	if err != nil {
		s.b.Fatal(err)
	}
	s.grpc = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, serverv3.NewServer(context.Background(), s.cache, nil))
	go s.grpc.Serve(l)
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}

// serve makes the VIP lead to one endpoint, through an EDS cluster.
func (s *adsServer) serve(to netip.AddrPort) {
	s.b.Helper()
	proxy, err := anypb.New(&tcpproxyv3.TcpProxy{StatPrefix: "echo", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "echo"}})
	if err != nil {
		s.b.Fatal(err)
	}
	ads := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	s.n++
	snap, err := cachev3.NewSnapshot(fmt.Sprint(s.n), map[resourcev3.Type][]types.Resource{
		resourcev3.ListenerType: {&listenerv3.Listener{Name: "echo", Address: address(netip.MustParseAddrPort(vip)),
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: proxy}}}}}}},
		resourcev3.ClusterType: {&clusterv3.Cluster{Name: "echo", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads}}},
		resourcev3.EndpointType: {&endpointv3.ClusterLoadAssignment{ClusterName: "echo", Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(to)}}}}}}}},
	})
	if err != nil {
		s.b.Fatal(err)
	}
	if err := s.cache.SetSnapshot(s.b.ctx, nodeID, snap); err != nil {
		s.b.Fatal(err)
	}
}

// TestServer: a real go-control-plane server feeds the helper; without the server,
// and with the helper killed beside it, the last good state serves; both come back.
func TestServer(t *testing.T) {
	b := newBed(t)
	s := b.adsServer()
	s.serve(b.v1)
	start := func() func() {
		h, err := b.node.StartHelper(b.ctx, "--xds-server", s.addr, "--node-id", nodeID)
		if err != nil {
			t.Fatal(err)
		}
		return h.Kill9
	}
	kill := start()
	client := b.client("client")
	open := b.keep(client)
	b.only(client, "v1", 10)
	s.serve(b.v2)
	if took := b.until(client, "v2"); took > time.Second {
		t.Errorf("a change took %v", took)
	}
	open.works("after a change")

	s.grpc.Stop()
	b.eventually("the helper sees that the server is gone", func() bool { return b.ctl("status")["xds"].(map[string]any)["connected"] != true })
	b.only(client, "v2", 10)
	kill()
	b.only(client, "v2", 10)
	kill = start() // ready, on what is pinned
	b.only(client, "v2", 10)
	s.serve(b.v1)
	s.start()
	b.until(client, "v1")
	open.works("after all that")
	kill()
}

// TestUDPOfARemovedEndpoint: the helper ends connected sockets of an endpoint that
// was removed, at once.
func TestUDPOfARemovedEndpoint(t *testing.T) {
	b := newBed(t)
	mesh := func(endpoint string) string {
		pods := b.node.Pods()
		a := netip.AddrPortFrom(pods[0].IP4, 9090)
		if endpoint == "v2" {
			a = netip.AddrPortFrom(pods[1].IP4, 9090)
		}
		return `- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: dns
  address: {socket_address: {address: 10.96.0.10, port_value: 53, protocol: UDP}}
  udp_listener_config: {}
  listener_filters:
  - name: envoy.filters.udp_listener.udp_proxy
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
      stat_prefix: dns
      matcher:
        on_no_match:
          action:
            name: route
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
              cluster: dns
` + static("dns", a)
	}
	for _, p := range b.node.Pods() {
		if _, _, err := p.Listen(b.ctx, wire.Listen{Network: wire.UDP, Addr: ":9090", Name: p.Name}); err != nil {
			t.Fatal(err)
		}
	}
	b.write("mesh.yaml", mesh("v1"))
	b.start()
	client := b.client("client")
	dial := wire.Dial{Network: wire.UDP, Addr: "10.96.0.10:53", Keep: true}
	connected, err := client.Dial(b.ctx, dial)
	if err != nil || connected.Server != "v1" {
		t.Fatalf("%+v, %v", connected, err)
	}
	dial.Unconnected = true
	loose, err := client.Dial(b.ctx, dial)
	if err != nil || loose.Server != "v1" {
		t.Fatalf("%+v, %v", loose, err)
	}
	b.write("mesh.yaml", mesh("v2"))
	var res wire.Result
	b.eventually("the connected socket is ended", func() bool {
		res, err = client.Exchange(b.ctx, wire.Exchange{Handle: connected.Handle, Timeout: time.Second})
		return err != nil || res.Errno != ""
	})
	if err != nil || !strings.Contains("ECONNABORTED EDESTADDRREQ", res.Errno) {
		t.Errorf("the connected socket: %+v, %v", res, err)
	}
	if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: loose.Handle}); err != nil || res.Server != "v2" || res.Peer != "10.96.0.10:53" {
		t.Errorf("the unconnected socket: %+v, %v, want it moved to v2", res, err)
	}
}
