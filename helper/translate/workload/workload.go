// SPDX-License-Identifier: Apache-2.0

// Package workload translates the workload API (istio.workload.Address,
// istio.security.Authorization) into the mesh model, and keeps what is made of many
// resources together as they change one by one.
//
// It is pure: no clock, no I/O, the same output for the same input. The invariant: every
// populated field of a resource gets a verdict, said in one place, the table in rules.go;
// and after any order of changes an Index holds what it would hold had it been given the
// last version of each resource at once.
//
// The order of precedence between this input and Envoy's types: the workload API says
// which services there are, for L4, and who is behind an address; Envoy's types say what
// one scope of pods is to do with a destination, and win wherever they say anything about
// one. The merge of the two is snapshot.Merge.
//
// A waypoint that takes plain connections (no hbone_mtls_port) is an endpoint like any
// other: a service that is bound to it leads there, at the service's port. One that takes
// HBONE only cannot be spoken to from the kernel: the service leads to its own workloads,
// and a verdict says that what the waypoint would enforce is NOT ENFORCED. The pods of a
// waypoint must not be enrolled: their connections to the service would come back.
//
// A service's ports are TCP: the API has no word for UDP.
package workload

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/address"
)

// The short names of the resource types, as verdicts carry them.
const (
	TypeService       = "Service"
	TypeWorkload      = "Workload"
	TypeAuthorization = "Authorization"
)

// maxWaypoints bounds those of one service: the data path holds a service's clusters in
// a fixed array that the verifier can walk.
const maxWaypoints = 32

// Address is what became of an istio.workload.Address: one of Service and Workload is
// set, unless it is invalid.
type Address struct {
	Name     string
	Verdicts []mesh.Verdict
	Service  *Service
	Workload *Workload
}

// Service is a service, not yet joined with its workloads.
type Service struct {
	Key                 string // "namespace/hostname"
	Namespace, Hostname string
	// Frontends are its addresses and prefixes, with their networks.
	frontends []frontend
	ports     []port
	families  families
	prefer    preference
	waypoints []waypoint
}

// frontend is an address of a service.
type frontend struct {
	network string
	prefix  netip.Prefix
}

// port is a port of a service.
type port struct {
	service, target uint16 // target 0: each workload says its own
	app             mesh.AppProtocol
}

// families are those that a service has.
type families struct{ v4, v6 bool }

// preference says which workloads come first.
type preference struct {
	mode   address.LoadBalancing_Mode
	scopes []address.LoadBalancing_Scope
	all    bool // unhealthy ones too
}

// waypoint is where a service's connections are to pass.
type waypoint struct {
	key    string // of a service; "" for an address
	addr   netip.Addr
	tunnel bool // by HBONE only
	weight uint32
}

// Workload is a workload, and what it says about services.
type Workload struct {
	mesh.Workload
	// services are the ports by which it serves, by the service's key.
	services map[string][]port
	remote   bool // it is reached through a gateway of its network
}

// TranslateAddress translates a service or a workload.
func TranslateAddress(a *address.Address, source string) *Address {
	switch a.GetType().(type) {
	case *address.Address_Service:
		return translateService(a.GetService(), source)
	case *address.Address_Workload:
		return translateWorkload(a.GetWorkload(), source)
	}
	r := &report{source: source, typ: "Address"}
	r.invalid("type", "neither a service nor a workload")
	return &Address{Verdicts: r.done()}
}

func translateService(s *address.Service, source string) *Address {
	key := s.GetNamespace() + "/" + s.GetHostname()
	r := &report{source: source, typ: TypeService, name: key}
	out := &Service{Key: key, Namespace: s.GetNamespace(), Hostname: s.GetHostname()}
	if s.GetHostname() == "" {
		r.invalid("hostname", "is empty: a service is known by its namespace and hostname")
	}
	r.walk(s.ProtoReflect(), "")
	for i, a := range s.GetAddresses() {
		at := fmt.Sprintf("addresses[%d]", i)
		if prefix, ok := r.prefix(a.GetAddress(), a.Length, at); ok {
			out.frontends = append(out.frontends, frontend{a.GetNetwork(), prefix})
		}
	}
	seen := map[uint16]bool{}
	for i, p := range s.GetPorts() {
		at := fmt.Sprintf("ports[%d]", i)
		one, ok := r.port(p, at)
		switch {
		case !ok:
		case seen[one.service]:
			r.add(at, mesh.Default, fmt.Sprintf("port %d is listed before: the first one counts", one.service))
		default:
			seen[one.service] = true
			out.ports = append(out.ports, one)
		}
	}
	out.families = families{
		v4: s.GetIpFamilies() != address.IPFamilies_IPV6_ONLY,
		v6: s.GetIpFamilies() != address.IPFamilies_IPV4_ONLY,
	}
	lb := s.GetLoadBalancing()
	out.prefer = preference{mode: lb.GetMode(), all: lb.GetHealthPolicy() == address.LoadBalancing_ALLOW_ALL}
	if lb.GetMode() == address.LoadBalancing_STRICT || lb.GetMode() == address.LoadBalancing_FAILOVER {
		out.prefer.scopes = slices.Clone(lb.GetRoutingPreference())
	}
	out.waypoints = r.waypoints(s)
	return finish(r, &Address{Name: key, Service: out})
}

// finish takes the verdicts, and drops what is invalid.
func finish(r *report, a *Address) *Address {
	if a.Verdicts = r.done(); r.bad {
		a.Service, a.Workload = nil, nil
	}
	return a
}

// waypoints reads where a service's connections are to pass: the weighted ones where
// there are any, else the one.
func (r *report) waypoints(s *address.Service) []waypoint {
	list := s.GetWeightedWaypoints()
	field := func(i int) string { return fmt.Sprintf("weighted_waypoints[%d].destination", i) }
	if len(list) > 0 && !slices.ContainsFunc(list, func(w *address.WeightedWaypoint) bool { return w.GetWeight() > 0 }) {
		r.add("weighted_waypoints", mesh.Default, "none has a weight: waypoint says where to go")
		list = nil
	}
	if len(list) == 0 {
		if s.GetWaypoint() == nil {
			return nil
		}
		list = []*address.WeightedWaypoint{{Destination: s.GetWaypoint(), Weight: 1}}
		field = func(int) string { return "waypoint" }
	} else if s.GetWaypoint() != nil {
		r.add("waypoint", mesh.Default, "weighted_waypoints says it")
	}
	var out []waypoint
	var sum uint64
	past := slices.ContainsFunc(list, func(w *address.WeightedWaypoint) bool {
		return w.GetWeight() > 0 && w.GetDestination().GetHboneMtlsPort() != 0
	})
	for i, w := range list {
		at := field(i)
		one, ok := r.gateway(w.GetDestination(), at)
		if sum += uint64(w.GetWeight()); sum > 1<<32-1 {
			r.invalid(at, "the sum of weights is more than %d", uint32(1<<32-1))
			return nil
		}
		if one.weight = w.GetWeight(); !ok {
			continue
		}
		if one.weight == 0 {
			r.add(at, mesh.Default, "without a weight it gets no connection")
			continue
		}
		const direct = ": connections go to the service's own workloads, and what the waypoint would do is NOT ENFORCED"
		switch {
		case one.tunnel:
			r.add(at, mesh.UnsupportedAction, "the waypoint takes HBONE only, which is not spoken here"+direct)
		case past:
			r.add(at, mesh.UnsupportedAction, "another waypoint of the service takes HBONE only"+direct)
		default:
			r.add(at, mesh.Enforced, "")
		}
		out = append(out, one)
	}
	if len(out) > maxWaypoints {
		r.invalid("weighted_waypoints", "%d are more than %d", len(out), maxWaypoints)
	}
	return out
}

// gateway reads where a waypoint is.
func (r *report) gateway(g *address.GatewayAddress, at string) (waypoint, bool) {
	out := waypoint{tunnel: g.GetHboneMtlsPort() != 0}
	switch g.GetDestination().(type) {
	case *address.GatewayAddress_Hostname:
		h := g.GetHostname()
		out.key = h.GetNamespace() + "/" + h.GetHostname()
		if h.GetHostname() == "" {
			r.invalid(at+".hostname.hostname", "is empty")
			return out, false
		}
	case *address.GatewayAddress_Address:
		prefix, ok := r.prefix(g.GetAddress().GetAddress(), nil, at+".address")
		if !ok {
			return out, false
		}
		out.addr = prefix.Addr()
	default:
		r.invalid(at, "has neither a hostname nor an address")
		return out, false
	}
	return out, true
}

// prefix reads an address, or a prefix of that length.
func (r *report) prefix(raw []byte, length *uint32, at string) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		r.invalid(at+".address", "%d bytes are no IP address: give 4 or 16", len(raw))
		return netip.Prefix{}, false
	}
	bits := addr.BitLen()
	if length != nil {
		if *length > uint32(bits) {
			r.invalid(at+".length", "%d is more than %d", *length, bits)
			return netip.Prefix{}, false
		}
		bits = int(*length)
	}
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, bits).Masked(), true
}

// port reads a port; the target may be open.
func (r *report) port(p *address.Port, at string) (port, bool) {
	if s := p.GetServicePort(); s == 0 || s > 65535 {
		r.invalid(at+".service_port", "%d is not a port: give one between 1 and 65535", s)
		return port{}, false
	}
	if p.GetTargetPort() > 65535 {
		r.invalid(at+".target_port", "%d is not a port", p.GetTargetPort())
		return port{}, false
	}
	app := mesh.AppUnknown
	if a := p.GetAppProtocol(); a > 0 && a <= address.AppProtocol_TLS {
		app = mesh.AppProtocol(a) // the numbers are the same
	}
	return port{uint16(p.GetServicePort()), uint16(p.GetTargetPort()), app}, true
}

func translateWorkload(w *address.Workload, source string) *Address {
	r := &report{source: source, typ: TypeWorkload, name: w.GetUid()}
	if w.GetUid() == "" {
		r.invalid("uid", "is empty: a workload is known by it")
	}
	r.walk(w.ProtoReflect(), "")
	out := &Workload{
		Workload: mesh.Workload{
			UID: w.GetUid(), Namespace: w.GetNamespace(), Name: w.GetName(),
			Network: w.GetNetwork(), HostNetwork: w.GetNetworkMode() == address.NetworkMode_HOST_NETWORK,
			TrustDomain: w.GetTrustDomain(), ServiceAccount: w.GetServiceAccount(),
			Node: w.GetNode(), Cluster: w.GetClusterId(),
			Region: w.GetLocality().GetRegion(), Zone: w.GetLocality().GetZone(), SubZone: w.GetLocality().GetSubzone(),
			Canonical: w.GetCanonicalName(), Revision: w.GetCanonicalRevision(),
			Kind: strings.ToLower(w.GetWorkloadType().String()), Owner: w.GetWorkloadName(),
			Capacity: 1, Policies: slices.Clone(w.GetAuthorizationPolicies()),
		},
		remote: w.GetNetworkGateway() != nil,
	}
	if out.TrustDomain == "" {
		out.TrustDomain = "cluster.local"
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	if w.GetTunnelProtocol() == address.TunnelProtocol_HBONE {
		out.Tunnel = "HBONE"
	}
	if w.GetStatus() != address.WorkloadStatus_HEALTHY {
		out.Health = mesh.Unhealthy
	}
	if c := w.GetCapacity(); c != nil {
		if out.Capacity = c.GetValue(); out.Capacity == 0 {
			// No traffic, but what there is goes on: a capacity of nothing is a drain.
			out.Health, out.Capacity = mesh.Draining, 1
		}
	}
	for i, raw := range w.GetAddresses() {
		if prefix, ok := r.prefix(raw, nil, fmt.Sprintf("addresses[%d]", i)); ok {
			out.Addrs = append(out.Addrs, prefix.Addr())
		}
	}
	if len(w.GetServices()) > 0 {
		out.services = make(map[string][]port, len(w.GetServices()))
	}
	for _, key := range slices.Sorted(maps.Keys(w.GetServices())) {
		list := w.GetServices()[key]
		ports := []port{} // a service without ports is served all the same
		for i, p := range list.GetPorts() {
			if one, ok := r.port(p, fmt.Sprintf("services[%q].ports[%d]", key, i)); ok {
				ports = append(ports, one)
			}
		}
		out.services[key] = ports
	}
	return finish(r, &Address{Name: w.GetUid(), Workload: out})
}
