// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const typePrefix = "type.googleapis.com/"

// viewLimit is how long istiod may take to answer.
const viewLimit = 30 * time.Second

// View is all that istiod sends to one client, by name.
type View struct {
	Clusters  map[string]*clusterv3.Cluster
	Listeners map[string]*listenerv3.Listener
	Routes    map[string]*routev3.RouteConfiguration
	Endpoints map[string]*endpointv3.ClusterLoadAssignment
}

// View asks istiod, with the helper's token, for all that it has for a client: clusters, listeners, and what these refer
// to. It is no code of the helper's.
func (c *Control) View(ctx context.Context, id string, about map[string]string) (*View, error) {
	ctx, cancel := context.WithTimeout(ctx, viewLimit)
	defer cancel()
	v, err := c.view(ctx, id, about)
	if err != nil {
		return nil, fmt.Errorf("asking istiod as %s: %w", id, err)
	}
	return v, nil
}

func (c *Control) view(ctx context.Context, id string, about map[string]string) (*View, error) {
	roots, err := os.ReadFile(c.Roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("istiod's root certificate is none")
	}
	token, err := os.ReadFile(c.Token)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+Addr,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: ServerName})),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.n.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+string(token), "clusterid", ClusterID)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	fields := map[string]*structpb.Value{}
	for k, v := range about {
		fields[k] = structpb.NewStringValue(v)
	}
	s := &session{stream: stream, node: &corev3.Node{Id: id, Metadata: &structpb.Struct{Fields: fields}}}
	return s.all()
}

// session asks for one type after another.
type session struct {
	stream grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	node   *corev3.Node
}

func (s *session) all() (*View, error) {
	v := &View{}
	var err error
	if v.Clusters, err = ask(s, (*clusterv3.Cluster).GetName); err != nil {
		return nil, err
	}
	var assignments []string
	for _, name := range slices.Sorted(maps.Keys(v.Clusters)) {
		if c := v.Clusters[name]; c.GetType() == clusterv3.Cluster_EDS {
			assignments = append(assignments, name)
		}
	}
	if len(assignments) > 0 {
		if v.Endpoints, err = ask(s, (*endpointv3.ClusterLoadAssignment).GetClusterName, assignments...); err != nil {
			return nil, err
		}
	}
	if v.Listeners, err = ask(s, (*listenerv3.Listener).GetName); err != nil {
		return nil, err
	}
	routes := map[string]bool{}
	for _, l := range v.Listeners {
		for _, fc := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
			for _, f := range fc.GetFilters() {
				m := &hcmv3.HttpConnectionManager{}
				if f.GetTypedConfig().MessageIs(m) && f.GetTypedConfig().UnmarshalTo(m) == nil && m.GetRds() != nil {
					routes[m.GetRds().GetRouteConfigName()] = true
				}
			}
		}
	}
	if len(routes) > 0 {
		v.Routes, err = ask(s, (*routev3.RouteConfiguration).GetName, slices.Sorted(maps.Keys(routes))...)
	}
	return v, err
}

// ask asks for the resources of a type, all of them if none is named.
func ask[T any, M interface {
	*T
	proto.Message
}](s *session, name func(M) string, names ...string) (map[string]M, error) {
	typ := typePrefix + string(M(new(T)).ProtoReflect().Descriptor().FullName())
	if err := s.stream.Send(&discoveryv3.DiscoveryRequest{Node: s.node, TypeUrl: typ, ResourceNames: names}); err != nil {
		return nil, err
	}
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", typ, err)
		}
		if r.GetTypeUrl() != typ {
			continue // a push of a type that was answered before
		}
		ack := &discoveryv3.DiscoveryRequest{TypeUrl: typ, ResourceNames: names, VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce()}
		if err := s.stream.Send(ack); err != nil {
			return nil, err
		}
		out := map[string]M{}
		for _, packed := range r.GetResources() {
			m := M(new(T))
			if err := packed.UnmarshalTo(m); err != nil {
				return nil, fmt.Errorf("%s: %w", typ, err)
			}
			out[name(m)] = m
		}
		return out, nil
	}
}

// Names are the names of all resources of one type, sorted, on lines.
func Names[M any](of map[string]M) string { return strings.Join(slices.Sorted(maps.Keys(of)), "\n") }
