// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unique"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"kmesh/helper/mesh"
)

// TranslateAssignment translates the endpoints of an EDS cluster.
func TranslateAssignment(a *endpointv3.ClusterLoadAssignment, source string) *Assignment {
	r := newReport(source, TypeAssignment, a.GetClusterName())
	out := &Assignment{Name: a.GetClusterName()}
	if a.GetClusterName() == "" {
		r.invalid("cluster_name", "is empty: an assignment is known by its cluster's name")
	}
	localities := r.assignment(a, "")
	out.Verdicts = r.done()
	if !r.bad {
		out.Localities = localities
	}
	return out
}

// endpoints counts what an assignment lists, usable or not.
func endpoints(a *endpointv3.ClusterLoadAssignment) int {
	n := 0
	for _, l := range a.GetEndpoints() {
		n += len(l.GetLbEndpoints())
	}
	return n
}

// assignment reads localities and their endpoints, which are addresses.
func (r *report) assignment(a *endpointv3.ClusterLoadAssignment, path string) []mesh.Locality {
	out, _ := r.places(a, path, literal)
	return out
}

// places reads localities and their endpoints: those that are addresses are in the
// localities, those that are names beside them. Endpoints that cannot be connected to
// are left out, with a verdict.
func (r *report) places(a *endpointv3.ClusterLoadAssignment, path string, kind addressKind) ([]mesh.Locality, []target) {
	if a == nil {
		return nil, nil
	}
	r.collapse = true
	defer func() { r.collapse = false }()
	r.walk(a, path)
	if path != "" && empty(a.ProtoReflect()) {
		r.add(path, mesh.Default, "is empty")
	}

	var out []mesh.Locality
	var targets []target
	seen := map[netip.AddrPort]bool{}
	weights := map[uint32]uint64{} // of localities, by priority
	for i, l := range a.GetEndpoints() {
		at := join(path, "endpoints["+strconv.Itoa(i)+"]")
		loc := mesh.Locality{
			Region:   once(l.GetLocality().GetRegion()),
			Zone:     once(l.GetLocality().GetZone()),
			SubZone:  once(l.GetLocality().GetSubZone()),
			Priority: l.GetPriority(),
			Weight:   l.GetLoadBalancingWeight().GetValue(),
		}
		if weights[loc.Priority] += uint64(loc.Weight); weights[loc.Priority] > math.MaxUint32 {
			r.invalid(join(at, "load_balancing_weight"), "the sum of locality weights of priority %d is more than %d", loc.Priority, uint32(math.MaxUint32))
			return nil, nil
		}
		if n := len(l.GetLbEndpoints()); n > 0 && kind == literal {
			loc.Endpoints = make([]mesh.Endpoint, 0, n) // no more than they are: there are many
		}
		var sum uint64
		for j, e := range l.GetLbEndpoints() {
			at := at + ".lb_endpoints[" + strconv.Itoa(j) + "]"
			r.asks(e, at)
			ep, name, ok := r.endpoint(a, e, at, kind)
			if !ok {
				continue
			}
			if name.lookup.Name != "" {
				name.locality, name.before = i, len(loc.Endpoints)
				name.weight, name.health = ep.Weight, ep.Health
				targets = append(targets, name)
				continue
			}
			if seen[ep.Addr] {
				r.add(at, mesh.Default, ep.Addr.String()+" is listed before: the first one counts")
				continue
			}
			seen[ep.Addr] = true
			if sum += uint64(ep.Weight); sum > math.MaxUint32 {
				r.invalid(join(at, "load_balancing_weight"), "the sum of endpoint weights is more than %d", uint32(math.MaxUint32))
				return nil, nil
			}
			loc.Endpoints = append(loc.Endpoints, ep)
		}
		if len(loc.Endpoints) == 0 {
			loc.Endpoints = nil
		}
		out = append(out, loc)
	}
	return slices.Clip(out), targets
}

// once is a string that very many resources have: it is held once.
func once(s string) string { return unique.Make(s).Value() }

// socketMatch is the metadata by which a cluster chooses the transport socket for an
// endpoint.
const socketMatch = "envoy.transport_socket_match"

// asks reports, once for each, that an endpoint asks for automatic mTLS or for a tunnel.
func (r *report) asks(e *endpointv3.LbEndpoint, path string) {
	if e.GetMetadata() == nil {
		return
	}
	path = join(path, "metadata")
	fields := e.GetMetadata().GetFilterMetadata()[socketMatch].GetFields()
	for _, one := range []struct{ field, value, msg string }{
		{"tlsMode", "istio", "automatic mTLS is NOT ENFORCED: sent in clear"},
		{"tunnel", "http", "tunnels (HBONE) are not made: sent in clear, to the endpoint itself"},
	} {
		if fields[one.field].GetStringValue() == one.value && !r.seen[one.msg] {
			r.seen[one.msg] = true
			r.add(path, mesh.UnsupportedAction, one.msg)
		}
	}
	r.add(path, mesh.Default, "")
}

// endpoint reads one endpoint, which is an address or a name; false when it cannot be
// used.
func (r *report) endpoint(a *endpointv3.ClusterLoadAssignment, e *endpointv3.LbEndpoint, path string, kind addressKind) (mesh.Endpoint, target, bool) {
	out := mesh.Endpoint{Weight: 1}
	if w := e.GetLoadBalancingWeight(); w != nil {
		if w.GetValue() == 0 {
			r.invalid(join(path, "load_balancing_weight"), "0 is not a weight: use health_status DRAINING, or leave the endpoint out")
			return out, target{}, false
		}
		out.Weight = w.GetValue()
	}
	to := e.GetEndpoint()
	at := join(path, "endpoint.address")
	if name := e.GetEndpointName(); name != "" {
		to = a.GetNamedEndpoints()[name]
		at = join(path, "endpoint_name")
		if to == nil {
			r.invalid(at, "%q is not in named_endpoints", name)
			return out, target{}, false
		}
	}
	addr, name, ok := r.target(to.GetAddress(), at, kind)
	if !ok {
		return out, target{}, false
	}
	out.Addr = addr
	switch e.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
		out.Health = mesh.Healthy
	case corev3.HealthStatus_DEGRADED:
		out.Health = mesh.Degraded
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_TIMEOUT:
		out.Health = mesh.Unhealthy
	case corev3.HealthStatus_DRAINING:
		out.Health = mesh.Draining
	default:
		r.invalid(join(path, "health_status"), "%d is not a health status", e.GetHealthStatus())
		return out, target{}, false
	}
	return out, name, true
}

// target returns what to connect to. An address of a kind that is not supported is
// skipped with a verdict; a port that cannot be one is invalid.
func (r *report) target(a *corev3.Address, path string, kind addressKind) (netip.AddrPort, target, bool) {
	sa := a.GetSocketAddress()
	if sa == nil {
		r.add(path, mesh.UnsupportedAction, "skipped: "+describe(a)+" cannot be connected to from here")
		return netip.AddrPort{}, target{}, false
	}
	path = join(path, "socket_address")
	addr, err := netip.ParseAddr(sa.GetAddress())
	named := err != nil && kind == hostname && isName(sa.GetAddress())
	if !named && (err != nil || addr.Zone() != "") {
		what := " is not an IP address"
		if kind == hostname {
			what = " is neither an IP address nor a name that DNS could know"
		}
		r.add(join(path, "address"), mesh.UnsupportedAction, "skipped: "+describe(a)+what)
		return netip.AddrPort{}, target{}, false
	}
	port, ok := r.port(sa, path)
	switch {
	case !ok:
		return netip.AddrPort{}, target{}, false
	case named:
		return netip.AddrPort{}, target{
			lookup: mesh.Lookup{Name: strings.ToLower(sa.GetAddress())}, field: join(path, "address"), port: port,
		}, true
	}
	return netip.AddrPortFrom(addr.Unmap(), port), target{}, true
}
