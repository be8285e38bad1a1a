// SPDX-License-Identifier: Apache-2.0

// Package control is a real control plane on a test's node: go-control-plane's ADS server, on one port for its whole
// life, whose services lead to endpoints that the test gives. It can be stopped, started, and made to send what nobody
// should.
package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
)

// NodeID is what the helper calls itself (--node-id).
const NodeID = "node-1"

// Addr is where the server listens, in the node's network namespace.
const Addr = "127.0.0.1:15010"

// Server is the control plane. It is not safe for use from several goroutines.
type Server struct {
	in    func(func() error) error
	cache cachev3.SnapshotCache
	grpc  *grpc.Server
	n     int
}

// New makes a server that is not started. in runs a function in the node's network namespace (node.Node.Do).
func New(in func(func() error) error) *Server {
	return &Server{in: in, cache: cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil)}
}

// Start listens.
func (s *Server) Start() error {
	var l net.Listener
	// A server that was stopped a moment ago may have the port still.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := s.in(func() (err error) {
			l, err = net.Listen("tcp", Addr)
			return err
		})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("control plane: %w", err)
		}
	}
	s.grpc = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, serverv3.NewServer(context.Background(), s.cache, nil))
	go func() { _ = s.grpc.Serve(l) }()
	return nil
}

// Stop ends it, and every stream.
func (s *Server) Stop() { s.grpc.Stop() }

// Service is a TCP service that leads to one endpoint.
type Service struct {
	Name     string
	At       netip.AddrPort
	Endpoint netip.AddrPort
}

// Serve sends these services, each through an EDS cluster of its name.
func (s *Server) Serve(services ...Service) error {
	var listeners, clusters, endpoints []types.Resource
	ads := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
	for _, svc := range services {
		proxy, err := anypb.New(&tcpproxyv3.TcpProxy{StatPrefix: svc.Name, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: svc.Name}})
		if err != nil {
			return err
		}
		listeners = append(listeners, listener(svc.Name, svc.At, proxy))
		clusters = append(clusters, &clusterv3.Cluster{Name: svc.Name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads}})
		endpoints = append(endpoints, &endpointv3.ClusterLoadAssignment{ClusterName: svc.Name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(svc.Endpoint)}}}}}}})
	}
	return s.set(map[resourcev3.Type][]types.Resource{
		resourcev3.ListenerType: listeners, resourcev3.ClusterType: clusters, resourcev3.EndpointType: endpoints,
	})
}

// Garble sends, in the place of a service, a listener whose filter is what its type does not have, and a cluster that
// may not be.
func (s *Server) Garble(svc Service) error {
	proxy := &anypb.Any{TypeUrl: "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", Value: []byte("\xff\xff\xff not a message")}
	return s.set(map[resourcev3.Type][]types.Resource{
		resourcev3.ListenerType: {listener(svc.Name, svc.At, proxy)},
		resourcev3.ClusterType: {&clusterv3.Cluster{Name: svc.Name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: svc.Name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
						Address: "not an address", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 1 << 20}}}}}}}}}}}}},
	})
}

func (s *Server) set(resources map[resourcev3.Type][]types.Resource) error {
	s.n++
	snap, err := cachev3.NewSnapshot(fmt.Sprint(s.n), resources)
	if err == nil {
		err = s.cache.SetSnapshot(context.Background(), NodeID, snap)
	}
	if err != nil {
		return errors.Join(errors.New("control plane"), err)
	}
	return nil
}

func listener(name string, at netip.AddrPort, proxy *anypb.Any) types.Resource {
	return &listenerv3.Listener{Name: name, Address: address(at),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: proxy}}}}}}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}
