// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// perService is how many endpoints a service has.
const perService = 10

// The services that the test speaks to. All others have endpoints that nobody is at.
const (
	steady = iota // its endpoints are servers, and stay
	moving        // has one server at a time, another with each change
	firstFar
)

// routesName is the one RouteConfiguration, named after its port as istiod does.
const routesName = "80"

// world is a mesh as a control plane makes it of services: one listener for all addresses at port 80, a virtual host, a
// cluster and an assignment for each service. Half of the services have a second route.
type world struct {
	services int
	server   netip.Addr // where the endpoints of steady and moving are
}

// basePort is the first of the ports at which the server is: perService of them.
const basePort = 9000

func hostOf(i int) string    { return fmt.Sprintf("svc-%d.default.svc.cluster.local", i) }
func clusterOf(i int) string { return "outbound|80||" + hostOf(i) }
func vipOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}) }

// farOf is an endpoint that nobody is at; addrOf is the one that a change puts in the place of a service's first.
func farOf(i, k int) netip.AddrPort {
	n := i*perService + k
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), 8080)
}

func changedAddr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200 + byte(n>>16), byte(n >> 8), byte(n)}), 8080)
}

var ads = &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}

func (w world) clusters() map[string]types.Resource {
	out := make(map[string]types.Resource, w.services)
	for i := range w.services {
		out[clusterOf(i)] = &clusterv3.Cluster{
			Name: clusterOf(i), ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads, ServiceName: clusterOf(i)},
			LbPolicy:         clusterv3.Cluster_LEAST_REQUEST,
		}
	}
	return out
}

func (w world) assignments() map[string]types.Resource {
	out := make(map[string]types.Resource, w.services)
	for i := range w.services {
		out[clusterOf(i)] = assignment(i, w.endpoints(i))
	}
	return out
}

// endpoints are those of a service before any change.
func (w world) endpoints(i int) []netip.AddrPort {
	var out []netip.AddrPort
	for k := range perService {
		switch i {
		case steady:
			out = append(out, netip.AddrPortFrom(w.server, uint16(basePort+k)))
		case moving:
			return []netip.AddrPort{netip.AddrPortFrom(w.server, basePort)}
		default:
			out = append(out, farOf(i, k))
		}
	}
	return out
}

func assignment(i int, at []netip.AddrPort) *endpointv3.ClusterLoadAssignment {
	locality := &endpointv3.LocalityLbEndpoints{
		Locality:            &corev3.Locality{Region: "region", Zone: "zone"},
		LoadBalancingWeight: wrapperspb.UInt32(uint32(len(at))),
	}
	for _, a := range at {
		locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(a)}},
			LoadBalancingWeight: wrapperspb.UInt32(1),
		})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: clusterOf(i), Endpoints: []*endpointv3.LocalityLbEndpoints{locality}}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())}}}}
}

func (w world) listener() (*listenerv3.Listener, error) {
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	hcm, err := anypb.New(&hcmv3.HttpConnectionManager{
		StatPrefix:     "outbound_0.0.0.0_80",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: routesName}},
		HttpFilters:    []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router}}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name: "0.0.0.0_80", Address: address(netip.MustParseAddrPort("0.0.0.0:80")),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: hcm}}}}},
	}, nil
}

// routes are those of all services. The steady one answers one path itself, with this status: what changes when a
// route does.
func (w world) routes(status int) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{Name: routesName, IgnorePortInHostMatching: true}
	for i := range w.services {
		vh := &routev3.VirtualHost{
			Name:    hostOf(i) + ":80",
			Domains: []string{hostOf(i), fmt.Sprintf("svc-%d", i), fmt.Sprintf("svc-%d.default", i), fmt.Sprintf("svc-%d.default.svc", i), vipOf(i).String()},
		}
		to := &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: clusterOf(i)}}}
		if i%2 == 1 {
			vh.Routes = append(vh.Routes, &routev3.Route{Name: "api", Action: to,
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/api/"}}})
		}
		vh.Routes = append(vh.Routes, &routev3.Route{Name: "default", Action: to,
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}})
		out.VirtualHosts = append(out.VirtualHosts, vh)
	}
	return withStatus(out, status)
}

// statusPath is the path that the steady service's virtual host answers itself.
const statusPath = "/status"

// withStatus is a copy with another status there.
func withStatus(rc *routev3.RouteConfiguration, status int) *routev3.RouteConfiguration {
	vh := proto.Clone(rc.VirtualHosts[steady]).(*routev3.VirtualHost)
	answer := &routev3.Route{Name: "status", Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: statusPath}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: uint32(status)}}}
	vh.Routes = []*routev3.Route{answer, vh.Routes[len(vh.Routes)-1]}
	out := &routev3.RouteConfiguration{Name: rc.Name, IgnorePortInHostMatching: rc.IgnorePortInHostMatching}
	out.VirtualHosts = append(out.VirtualHosts, rc.VirtualHosts...)
	out.VirtualHosts[steady] = vh
	return out
}
