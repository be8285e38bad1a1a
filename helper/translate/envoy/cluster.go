// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"math"
	"math/big"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"kmesh/helper/mesh"
)

// TranslateCluster translates one cluster.
func TranslateCluster(c *clusterv3.Cluster, source string) *Cluster {
	r := newReport(source, TypeCluster, c.GetName())
	out := &Cluster{Name: c.GetName()}
	translated, assignment, names := r.cluster(c)
	out.Verdicts = r.done()
	if !r.bad {
		out.Cluster, out.Assignment, out.Names = translated, assignment, names
	}
	return out
}

func (r *report) cluster(c *clusterv3.Cluster) (*mesh.Cluster, string, *Names) {
	r.resolves = isDNS(c) && c.GetClusterType() == nil // else its type says how
	if c.GetName() == "" {
		r.invalid("name", "is empty: a cluster is known by its name")
	}
	r.walk(c, "")
	out := &mesh.Cluster{
		Name:             c.GetName(),
		LocalityWeighted: c.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil,
	}
	out.MaxRequests = requestLimit(c)
	r.balancing(c, out)
	assignment, names := r.discovery(c, out)
	r.sockets(c, out)
	r.circuitBreakers(c.GetCircuitBreakers(), out)
	if out.Kind != mesh.Endpoints {
		out.Localities, names = nil, nil
	}
	return out, assignment, names
}

// typeHTTPOptions are the options by which a cluster speaks HTTP.
const typeHTTPOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// typeTunnel is the socket to a listener inside Envoy, by which Istio makes tunnels to endpoints that ask for one.
const typeTunnel = "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport"

// requestLimit is how many requests one connection may serve, 0 for any number. The
// extension replaces the cluster's own common options; the cluster's field counts
// where these say nothing.
func requestLimit(c *clusterv3.Cluster) uint16 {
	//lint:ignore SA1019 older control planes still give it
	common := c.GetCommonHttpProtocolOptions()
	options := &httpv3.HttpProtocolOptions{}
	if packed := c.GetTypedExtensionProtocolOptions()[typeHTTPOptions]; packed.MessageIs(options) && packed.UnmarshalTo(options) == nil {
		common = options.GetCommonHttpProtocolOptions()
	}
	limit := common.GetMaxRequestsPerConnection()
	if limit == nil {
		//lint:ignore SA1019 as above
		limit = c.GetMaxRequestsPerConnection()
	}
	return uint16(min(limit.GetValue(), math.MaxUint16))
}

// defaultConnections is Envoy's limit where a cluster does not say one.
const defaultConnections = 1024

// circuitBreakers reads how many connections a cluster may have: by the first thresholds of the default priority, as
// Envoy does.
func (r *report) circuitBreakers(cb *clusterv3.CircuitBreakers, out *mesh.Cluster) {
	limit, said := uint32(defaultConnections), false
	for i, t := range cb.GetThresholds() {
		v, first := t.GetMaxConnections(), false
		if t.GetPriority() == corev3.RoutingPriority_DEFAULT {
			first, said = !said, true
		}
		if v == nil {
			continue
		}
		if first {
			limit = v.GetValue()
		}
		rl := enforced
		switch {
		case v.GetValue() == math.MaxUint32:
			rl = benign(msgNoLimit)
		case t.GetPriority() != corev3.RoutingPriority_DEFAULT:
			rl = ignored(msgPriority)
		case !first:
			rl = benign("never used: others of the same priority come before")
		case out.Kind == mesh.Passthrough:
			rl = ignored(msgPassed)
		case out.Kind != mesh.Endpoints:
			rl = benign("nothing is connected")
		}
		r.note("circuit_breakers.thresholds["+strconv.Itoa(i)+"].max_connections", rl)
	}
	for i, t := range cb.GetPerHostThresholds() {
		if v := t.GetMaxConnections(); v != nil {
			rl := ignored(msgPerHost)
			if v.GetValue() == math.MaxUint32 {
				rl = benign(msgNoLimit)
			}
			r.note("circuit_breakers.per_host_thresholds["+strconv.Itoa(i)+"].max_connections", rl)
		}
	}
	if out.Kind == mesh.Endpoints && limit != math.MaxUint32 {
		out.MaxConnections = &limit
	}
}

const (
	msgNoLimit  = "no limit"
	msgPriority = "every connection is of the default priority"
	msgPassed   = "connections to the original destination are not counted"
	msgPerHost  = "limits of one endpoint are not enforced"
)

// AssignmentName returns the name of the assignment that a cluster asks for, valid
// or not; empty if it is not an EDS cluster. Servers that know a cluster may wait
// for its assignment to be asked for before they send any.
func AssignmentName(c *clusterv3.Cluster) string {
	if c.GetClusterType() != nil || c.GetType() != clusterv3.Cluster_EDS {
		return ""
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return name
	}
	return c.GetName()
}

// discovery reads where the endpoints come from.
func (r *report) discovery(c *clusterv3.Cluster, out *mesh.Cluster) (assignment string, names *Names) {
	inline := c.GetLoadAssignment()
	if c.GetClusterType() != nil && isDNS(c) {
		return "", r.names(c)
	}
	if c.GetClusterType() != nil {
		r.add("cluster_type", mesh.UnsupportedAction, "of the custom cluster types only "+typeDNS+" is supported: connections are refused")
		if inline != nil {
			r.add("load_assignment", mesh.UnsupportedAction, "is not used: custom cluster types are not supported")
		}
		out.Kind = mesh.Refused
		return "", nil
	}
	switch c.GetType() {
	case clusterv3.Cluster_EDS:
		if inline != nil {
			r.add("load_assignment", mesh.UnsupportedAction, "is not used: an EDS cluster gets its endpoints by EDS")
		}
		return AssignmentName(c), nil
	case clusterv3.Cluster_ORIGINAL_DST:
		out.Kind = mesh.Passthrough
		switch {
		case inline != nil && endpoints(inline) == 0:
			r.add("load_assignment", mesh.Default, "is empty, as it must be")
		case inline != nil:
			r.invalid("load_assignment", "an ORIGINAL_DST cluster has no endpoints of its own")
		}
	case clusterv3.Cluster_STATIC:
		out.Localities = r.assignment(inline, "load_assignment")
		if endpoints(inline) == 0 {
			out.Kind = mesh.Blackhole
		}
	case clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
		names = r.names(c)
	default:
		r.invalid("type", "%d is not a type of cluster", c.GetType())
	}
	return "", names
}

// sockets decides whether the cluster can be spoken to in clear. A cluster that
// demands TLS is refused; one that only prefers it where the endpoint can is sent
// in clear, and says so.
func (r *report) sockets(c *clusterv3.Cluster, out *mesh.Cluster) {
	if s := c.GetTransportSocket(); s != nil && !isRawBuffer(s.ProtoReflect()) {
		out.Kind = mesh.Refused
	}
	if c.GetTransportSocketMatcher() != nil {
		out.Kind = mesh.Refused
	}
	all := false // an entry that matches every endpoint has been seen
	for i, m := range c.GetTransportSocketMatches() {
		path := "transport_socket_matches[" + strconv.Itoa(i) + "]"
		if all { // Envoy takes the first that matches
			r.add(path, mesh.Default, "never reached: an entry before it matches every endpoint")
			continue
		}
		plain := m.GetTransportSocket() == nil || isRawBuffer(m.GetTransportSocket().ProtoReflect())
		everything := len(m.GetMatch().GetFields()) == 0
		switch {
		case plain:
			r.add(path, mesh.Default, "sent in clear")
		case everything:
			r.add(path, mesh.UnsupportedAction, "TLS for every endpoint is not originated here: connections are refused rather than sent in clear")
			out.Kind = mesh.Refused
		case m.GetTransportSocket().GetTypedConfig().MessageName() == typeTunnel:
			r.add(path, mesh.Default, "a tunnel (HBONE) for endpoints that ask for one: their assignment says so")
		default:
			r.add(path, mesh.Default, "automatic mTLS for endpoints that ask for it: their assignment says so")
		}
		all = everything
	}
}

// balancing reads the policy: the typed one if there is one, else lb_policy.
func (r *report) balancing(c *clusterv3.Cluster, out *mesh.Cluster) {
	if p := c.GetLoadBalancingPolicy(); p != nil {
		r.typedPolicy(p, "load_balancing_policy", out, 0)
		return
	}
	switch c.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		out.Policy = mesh.RoundRobin
	case clusterv3.Cluster_LEAST_REQUEST:
		out.Policy = mesh.LeastRequest
	case clusterv3.Cluster_RANDOM:
		out.Policy = mesh.Random
	case clusterv3.Cluster_MAGLEV:
		out.Policy = mesh.Maglev
		r.tableSize(c.GetMaglevLbConfig().GetTableSize().GetValue(), "maglev_lb_config.table_size", out)
	case clusterv3.Cluster_RING_HASH:
		out.Policy = mesh.Maglev
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		if c.GetClusterType() == nil && c.GetType() != clusterv3.Cluster_ORIGINAL_DST {
			r.invalid("lb_policy", "CLUSTER_PROVIDED is for ORIGINAL_DST clusters, not for %s", c.GetType())
		}
	case clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG:
		r.invalid("load_balancing_policy", "is missing, and lb_policy points to it")
	}
}

// tableSize takes a Maglev table size; 0 is the default.
func (r *report) tableSize(size uint64, path string, out *mesh.Cluster) {
	switch {
	case size == 0:
	case size > MaxMaglevTableSize:
		r.invalid(path, "%d is more than %d", size, MaxMaglevTableSize)
	case !new(big.Int).SetUint64(size).ProbablyPrime(0): // exact below 2^64
		r.invalid(path, "%d is not a prime number", size)
	default:
		out.MaglevTableSize = uint32(size)
	}
}

// addressKind says what an endpoint's address may be.
type addressKind bool

const (
	literal  addressKind = false // an IP address
	hostname addressKind = true  // a name that DNS would resolve
)

// describe names an address that cannot be used.
func describe(a *corev3.Address) string {
	switch {
	case a.GetPipe() != nil:
		return "a unix socket"
	case a.GetEnvoyInternalAddress() != nil:
		return "an internal listener"
	case a.GetSocketAddress() != nil:
		return fmt.Sprintf("%q", a.GetSocketAddress().GetAddress())
	}
	return "no address"
}
