// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	wrrv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

const typeClusterProvided = "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided"

// typedPolicy takes the first policy of the list that is supported, as Envoy takes
// the first that it knows. With none, endpoints are taken in turn, and a verdict
// says so.
func (r *report) typedPolicy(p *clusterv3.LoadBalancingPolicy, path string, out *mesh.Cluster, depth int) {
	if depth > maxDepth {
		r.invalid(path, "nested more than %d levels deep", maxDepth)
		return
	}
	chosen := false
	for i, one := range p.GetPolicies() {
		at := path + ".policies[" + strconv.Itoa(i) + "].typed_extension_config.typed_config"
		config := one.GetTypedExtensionConfig().GetTypedConfig()
		if chosen {
			r.add(at, mesh.Default, "not used: a policy before it is")
			continue
		}
		chosen = r.onePolicy(config, at, out, depth)
	}
	if !chosen {
		r.add(path, mesh.UnsupportedAction, "no policy of the list is supported: endpoints are taken in turn (round robin)")
		out.Policy = mesh.RoundRobin
	}
}

// onePolicy applies one typed policy if it is supported.
func (r *report) onePolicy(config *anypb.Any, at string, out *mesh.Cluster, depth int) bool {
	var msg proto.Message
	if config.MessageName() == typeClusterProvided {
		r.add(at, mesh.Enforced, "")
		return true
	}
	for _, m := range []proto.Message{
		&roundv3.RoundRobin{}, &randomv3.Random{}, &leastv3.LeastRequest{}, &maglevv3.Maglev{}, &ringv3.RingHash{}, &wrrv3.WrrLocality{},
	} {
		if config.MessageIs(m) {
			msg = m
		}
	}
	if msg == nil {
		r.add(at, mesh.UnsupportedAction, "policy "+strconv.Quote(config.GetTypeUrl())+" is not supported: the next one of the list is tried")
		return false
	}
	if err := config.UnmarshalTo(msg); err != nil {
		r.invalid(at, "cannot be decoded: %v", err)
		return true
	}
	r.walk(msg, at)
	weighted := false
	switch m := msg.(type) {
	case *roundv3.RoundRobin:
		out.Policy = mesh.RoundRobin
		weighted = m.GetLocalityLbConfig().GetLocalityWeightedLbConfig() != nil
	case *randomv3.Random:
		out.Policy = mesh.Random
		weighted = m.GetLocalityLbConfig().GetLocalityWeightedLbConfig() != nil
	case *leastv3.LeastRequest:
		out.Policy = mesh.LeastRequest
		weighted = m.GetLocalityLbConfig().GetLocalityWeightedLbConfig() != nil
	case *maglevv3.Maglev:
		out.Policy = mesh.Maglev
		weighted = m.GetLocalityWeightedLbConfig() != nil
		r.tableSize(m.GetTableSize().GetValue(), join(at, "table_size"), out)
	case *ringv3.RingHash:
		out.Policy = mesh.Maglev
		weighted = m.GetLocalityWeightedLbConfig() != nil
		r.add(at, mesh.UnsupportedAction, "approximated by Maglev")
	case *wrrv3.WrrLocality:
		weighted = true
		if m.GetEndpointPickingPolicy() == nil {
			r.invalid(join(at, "endpoint_picking_policy"), "is missing")
			return true
		}
		r.typedPolicy(m.GetEndpointPickingPolicy(), join(at, "endpoint_picking_policy"), out, depth+1)
	}
	out.LocalityWeighted = out.LocalityWeighted || weighted
	if _, ok := msg.(*wrrv3.WrrLocality); !ok && msg.ProtoReflect().IsValid() && proto.Size(msg) == 0 {
		r.add(at, mesh.Enforced, "")
	}
	return true
}
