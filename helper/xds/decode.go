// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"crypto/sha256"
	"errors"
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	// Extensions that may stand in an Any: a file cannot be read without knowing
	// the types that it names.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// errNoName: a resource cannot be kept apart from others without a name.
var errNoName = errors.New("has no name")

// unwrap looks through the Resource envelope that some servers use.
func unwrap(a *anypb.Any) (*anypb.Any, error) {
	wrapper := &discoveryv3.Resource{}
	if !a.MessageIs(wrapper) {
		return a, nil
	}
	if err := a.UnmarshalTo(wrapper); err != nil {
		return nil, fmt.Errorf("decode envelope: %w", err)
	}
	if wrapper.GetResource() == nil {
		return nil, fmt.Errorf("envelope %q is empty", wrapper.GetName())
	}
	return wrapper.GetResource(), nil
}

// decode unpacks one resource: its type URL, its name and the message. The
// resource has no source yet, and is not validated.
func decode(a *anypb.Any) (typeURL string, res Resource, err error) {
	if a, err = unwrap(a); err != nil {
		return "", Resource{}, err
	}
	typeURL = a.GetTypeUrl()
	msg, err := a.UnmarshalNew()
	if err != nil {
		return typeURL, Resource{}, fmt.Errorf("decode %s: %w", typeURL, err)
	}
	name, ok := nameOf(msg)
	if !ok {
		return typeURL, Resource{}, fmt.Errorf("resources of type %q are not used: give Listener, Cluster, ClusterLoadAssignment or RouteConfiguration", typeURL)
	}
	if name == "" {
		return typeURL, Resource{}, errNoName
	}
	return "type.googleapis.com/" + string(msg.ProtoReflect().Descriptor().FullName()),
		Resource{Name: name, Message: msg, Hash: sha256.Sum256(a.GetValue())}, nil
}

// nameOf returns a resource's name; false for a type that is not delivered.
func nameOf(msg proto.Message) (string, bool) {
	switch m := msg.(type) {
	case *listenerv3.Listener:
		return m.GetName(), true
	case *clusterv3.Cluster:
		return m.GetName(), true
	case *endpointv3.ClusterLoadAssignment:
		return m.GetClusterName(), true
	case *routev3.RouteConfiguration:
		return m.GetName(), true
	}
	return "", false
}

// known tells whether this build has the message type.
func known(name string) bool {
	_, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	return err == nil
}
