// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	udpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"

	"kmesh/helper/mesh"
)

const (
	typeTLSInspector  = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
	typeHTTPInspector = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
)

// TranslateListener translates one listener.
func TranslateListener(l *listenerv3.Listener, source string) *Listener {
	r := newReport(source, TypeListener, l.GetName())
	out := &Listener{Name: l.GetName()}
	policies := unenforced(l)
	r.inbound, out.Unenforced = policies.message(), policies.of(l.GetName())
	got := r.listener(l)
	out.Verdicts = r.done()
	if unserved(l) {
		quiet(out.Verdicts)
	}
	if !r.bad {
		out.Services, out.HTTP, out.References, out.Rest = got.services, got.http, got.refs, r.rest
	}
	return out
}

// served is what a listener leads to.
type served struct {
	services []*mesh.Service
	http     []*HTTPService
	refs     []Reference
}

func (r *report) listener(l *listenerv3.Listener) served {
	if l.GetName() == "" {
		r.invalid("name", "is empty: a listener is known by its name")
	}
	for _, f := range l.GetListenerFilters() {
		switch f.GetTypedConfig().MessageName() {
		case typeTLSInspector:
			r.tlsInspector = true
		case typeHTTPInspector:
			r.httpInspector = true
		}
	}
	r.rest = getsRest(l)
	governed := !r.walk(l, "")
	binds, ok := r.addresses(l)
	if ok && r.rest {
		binds = everywhere
	}
	if ok && binds[0].proto == mesh.UDP {
		services, refs := r.udp(l, binds, governed)
		return served{services: services, refs: refs}
	}
	chains := r.chains(l)
	if !ok {
		return served{}
	}
	return r.tcp(l, binds, chains, governed)
}

// addresses returns everything that the listener binds; false when that is
// nothing, or not one protocol.
func (r *report) addresses(l *listenerv3.Listener) ([]bind, bool) {
	if l.GetApiListener() != nil || l.GetInternalListener() != nil {
		return nil, false
	}
	if l.GetAddress() == nil {
		r.invalid("address", "is missing")
		return nil, false
	}
	all := r.binds(l.GetAddress(), "address")
	for i, a := range l.GetAdditionalAddresses() {
		path := "additional_addresses[" + strconv.Itoa(i) + "].address"
		if a.GetAddress() == nil {
			r.invalid(path, "is missing")
			continue
		}
		all = append(all, r.binds(a.GetAddress(), path)...)
	}
	seen := map[bind]bool{}
	for _, b := range all {
		if b.proto != all[0].proto {
			r.invalid("additional_addresses", "mixes TCP and UDP: make two listeners")
			return nil, false
		}
		if seen[b] {
			r.invalid("additional_addresses", "%s port %d is given twice", b.prefix, b.port)
			return nil, false
		}
		seen[b] = true
	}
	return all, len(all) > 0
}

// udp translates a listener whose udp_proxy is a listener filter.
func (r *report) udp(l *listenerv3.Listener, binds []bind, governed bool) ([]*mesh.Service, []Reference) {
	for i := range l.GetFilterChains() {
		r.add("filter_chains["+strconv.Itoa(i)+"]", mesh.UnsupportedAction, "filter chains (QUIC) are not served on a UDP listener")
	}
	if l.GetDefaultFilterChain() != nil {
		r.add("default_filter_chain", mesh.UnsupportedAction, "filter chains (QUIC) are not served on a UDP listener")
	}
	for i, f := range l.GetListenerFilters() {
		cfg := &udpv3.UdpProxyConfig{}
		if !f.GetTypedConfig().MessageIs(cfg) {
			continue
		}
		path := "listener_filters[" + strconv.Itoa(i) + "].typed_config"
		if err := f.GetTypedConfig().UnmarshalTo(cfg); err != nil {
			r.invalid(path, "cannot be decoded: %v", err)
			return nil, nil
		}
		cluster, field, ok := r.udpCluster(cfg, path)
		if !ok || !governed {
			return nil, nil
		}
		svc := &mesh.Service{Name: l.GetName(), Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
		for _, h := range cfg.GetHashPolicies() {
			svc.HashSource = svc.HashSource || h.GetSourceIp()
		}
		for _, b := range binds {
			svc.Frontends = append(svc.Frontends, mesh.Frontend{Prefix: b.prefix, Port: b.port, Protocol: mesh.UDP})
		}
		sortFrontends(svc.Frontends)
		return []*mesh.Service{svc}, []Reference{{Cluster: cluster, Field: field}}
	}
	if governed {
		r.add("listener_filters", mesh.UnsupportedAction, "no udp_proxy: the listener is not governed")
	}
	return nil, nil
}

// udpCluster returns the one cluster that a udp_proxy sends to.
func (r *report) udpCluster(cfg *udpv3.UdpProxyConfig, path string) (cluster, field string, ok bool) {
	//lint:ignore SA1019 the older way to say it is the one that most configurations use
	if c := cfg.GetCluster(); c != "" {
		return c, join(path, "cluster"), true
	}
	action := cfg.GetMatcher().GetOnNoMatch().GetAction().GetTypedConfig()
	if cfg.GetMatcher() == nil {
		r.invalid(path, "has neither a matcher nor a cluster")
		return "", "", false
	}
	route := &udpv3.Route{}
	path = join(path, "matcher.on_no_match.action.typed_config")
	if !action.MessageIs(route) {
		r.add(path, mesh.UnsupportedCondition, "only an action of type udp_proxy.v3.Route is supported")
		return "", "", false
	}
	if err := action.UnmarshalTo(route); err != nil {
		r.invalid(path, "cannot be decoded: %v", err)
		return "", "", false
	}
	if route.GetCluster() == "" {
		r.invalid(join(path, "cluster"), "is empty")
		return "", "", false
	}
	return route.GetCluster(), join(path, "cluster"), true
}
