// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	udpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/udp_proxy/v3"

	"kmesh/helper/mesh"
)

// frontend is one address of a chain, and how long the prefix was that matched.
type frontend struct {
	mesh.Frontend
	bits int // -1 for the default chain, and for one without prefix_ranges
}

// chain is one filter chain on its way to a service.
type chain struct {
	name      string
	path      string
	match     *listenerv3.FilterChainMatch
	isDefault bool
	served    bool
	frontends []frontend
	clusters  []mesh.WeightedCluster
	refs      []Reference
	hash      bool         // by the source's address
	http      *HTTPService // what the connection manager says; nil for L4
	parts     []*part      // of an HTTP chain
}

// tcp translates the filter chains of a TCP listener.
func (r *report) tcp(l *listenerv3.Listener, binds []bind, chains []*chain, governed bool) served {
	if len(chains) == 0 {
		r.invalid("filter_chains", "has no filter chain")
		return served{}
	}
	for i, f := range l.GetListenerFilters() {
		if f.GetTypedConfig().MessageIs(&udpv3.UdpProxyConfig{}) {
			r.add("listener_filters["+strconv.Itoa(i)+"].typed_config", mesh.UnsupportedAction, "is not used: the listener's address is TCP")
		}
	}
	r.place(chains, binds)
	if !governed {
		return served{}
	}
	if slices.ContainsFunc(chains, func(c *chain) bool { return c.http != nil }) {
		r.pair(chains)
		services, refs := r.httpServices(l.GetName(), chains)
		return served{http: services, refs: refs}
	}
	r.shadow(chains)
	var services []*mesh.Service
	var refs []Reference
	taken := map[string]bool{}
	for _, c := range chains {
		if !c.served || len(c.frontends) == 0 {
			continue
		}
		svc := &mesh.Service{Name: serviceName(l.GetName(), c, len(chains), taken), Clusters: c.clusters, HashSource: c.hash}
		for _, f := range c.frontends {
			svc.Frontends = append(svc.Frontends, f.Frontend)
		}
		sortFrontends(svc.Frontends)
		services = append(services, svc)
		refs = append(refs, c.refs...)
	}
	return served{services: services, refs: refs}
}

// serviceName is the listener's name, with the chain's where there are several.
func serviceName(listener string, c *chain, chains int, taken map[string]bool) string {
	if chains == 1 {
		return listener
	}
	name := listener + "/" + c.name
	for n := 2; taken[name]; n++ { // chain names need not be unique
		name = listener + "/" + c.name + "#" + strconv.Itoa(n)
	}
	taken[name] = true
	return name
}

// chains translates every chain by itself.
func (r *report) chains(l *listenerv3.Listener) (all []*chain) {
	add := func(fc *listenerv3.FilterChain, path, name string, isDefault bool) {
		if fc.GetName() != "" {
			name = fc.GetName()
		}
		c := &chain{name: name, path: path, match: fc.GetFilterChainMatch(), isDefault: isDefault}
		r.httpChain = speaksHTTP(fc)
		c.served = !r.walk(fc, path)
		r.httpChain = false
		r.terminal(c, fc)
		all = append(all, c)
	}
	for i, fc := range l.GetFilterChains() {
		add(fc, "filter_chains["+strconv.Itoa(i)+"]", strconv.Itoa(i), false)
	}
	if fc := l.GetDefaultFilterChain(); fc != nil {
		add(fc, "default_filter_chain", "default", true)
	}
	return all
}

// terminal reads the last filter, which says where connections go.
func (r *report) terminal(c *chain, fc *listenerv3.FilterChain) {
	filters := fc.GetFilters()
	if len(filters) == 0 {
		r.add(c.path, mesh.UnsupportedAction, "no filter: the chain is not served")
		c.served = false
		return
	}
	for i, f := range filters[:len(filters)-1] {
		if f.GetTypedConfig().MessageIs(&tcpv3.TcpProxy{}) {
			r.invalid(join(c.path, "filters["+strconv.Itoa(i)+"]"), "a tcp_proxy must be the last filter")
		}
		if f.GetTypedConfig().MessageName() == typeHCM {
			r.invalid(join(c.path, "filters["+strconv.Itoa(i)+"]"), "an HTTP connection manager must be the last filter")
		}
	}
	path := join(c.path, "filters["+strconv.Itoa(len(filters)-1)+"].typed_config")
	last := filters[len(filters)-1].GetTypedConfig()
	proxy := &tcpv3.TcpProxy{}
	manager := &hcmv3.HttpConnectionManager{}
	if last.MessageIs(manager) {
		if err := last.UnmarshalTo(manager); err != nil {
			r.invalid(path, "cannot be decoded: %v", err)
			c.served = false
			return
		}
		r.manager(c, manager, path)
		return
	}
	if !last.MessageIs(proxy) {
		r.add(path, mesh.UnsupportedAction, "the last filter is neither a tcp_proxy nor an HTTP connection manager: the chain is not served")
		c.served = false
		return
	}
	if err := last.UnmarshalTo(proxy); err != nil {
		r.invalid(path, "cannot be decoded: %v", err)
		c.served = false
		return
	}
	r.tcpProxy(c, proxy, path)
}

// tcpProxy reads the clusters of a tcp_proxy and their weights.
func (r *report) tcpProxy(c *chain, p *tcpv3.TcpProxy, path string) {
	for _, h := range p.GetHashPolicy() {
		c.hash = c.hash || h.GetSourceIp() != nil
	}
	if p.GetWeightedClusters() == nil {
		if p.GetCluster() == "" {
			r.invalid(join(path, "cluster"), "is empty: give a cluster or weighted_clusters")
			return
		}
		c.clusters = []mesh.WeightedCluster{{Cluster: p.GetCluster(), Weight: 1}}
		c.refs = []Reference{{Cluster: p.GetCluster(), Field: join(path, "cluster")}}
		return
	}
	path = join(path, "weighted_clusters.clusters")
	list := p.GetWeightedClusters().GetClusters()
	if len(list) == 0 {
		r.invalid(path, "is empty")
		return
	}
	if len(list) > MaxWeightedClusters {
		r.invalid(path, "has %d clusters: a service can have %d", len(list), MaxWeightedClusters)
		return
	}
	var sum uint64
	for i, wc := range list {
		at := path + "[" + strconv.Itoa(i) + "]"
		if wc.GetName() == "" {
			r.invalid(join(at, "name"), "is empty")
			continue
		}
		sum += uint64(wc.GetWeight())
		if wc.GetWeight() == 0 {
			r.add(join(at, "weight"), mesh.Enforced, "0: never drawn")
		}
		c.clusters = append(c.clusters, mesh.WeightedCluster{Cluster: wc.GetName(), Weight: wc.GetWeight()})
		c.refs = append(c.refs, Reference{Cluster: wc.GetName(), Field: join(at, "name")})
	}
	switch {
	case sum == 0:
		r.invalid(path, "all weights are 0: give one of them a weight")
	case sum > math.MaxUint32:
		r.invalid(path, "the sum of weights %d is more than %d", sum, uint32(math.MaxUint32))
	}
}

// place gives every chain its frontends as Envoy matches them: by destination
// port, then by the longest prefix, without going back.
func (r *report) place(chains []*chain, binds []bind) {
	for _, b := range binds {
		exact := false // a chain names this port: the others are not asked
		for _, c := range chains {
			port := c.match.GetDestinationPort()
			exact = exact || (!c.isDefault && port != nil && port.GetValue() == uint32(b.port))
		}
		for _, c := range chains {
			if c.isDefault {
				c.frontends = append(c.frontends, frontend{mesh.Frontend{Prefix: b.prefix, Port: b.port, Protocol: b.proto}, -1})
				continue
			}
			port := c.match.GetDestinationPort()
			if (port != nil && port.GetValue() != uint32(b.port)) || (port == nil && exact) {
				continue
			}
			r.prefixes(c, b)
		}
	}
	r.unique(chains)
	for _, c := range chains {
		if len(c.frontends) == 0 {
			r.add(c.path, mesh.Default, "never reached: no address of the listener leads here")
		}
	}
}

// prefixes adds the frontends of one chain at one address.
func (r *report) prefixes(c *chain, b bind) {
	if len(c.match.GetPrefixRanges()) == 0 {
		c.frontends = append(c.frontends, frontend{mesh.Frontend{Prefix: b.prefix, Port: b.port, Protocol: b.proto}, -1})
		return
	}
	best := map[netip.Prefix]int{}
	for i, pr := range c.match.GetPrefixRanges() {
		path := join(c.path, "filter_chain_match.prefix_ranges["+strconv.Itoa(i)+"]")
		prefix, ok := r.cidr(pr, path)
		if !ok {
			continue
		}
		if prefix.Addr().BitLen() != b.prefix.Addr().BitLen() || !prefix.Overlaps(b.prefix) {
			continue
		}
		bits := prefix.Bits()
		if b.prefix.Bits() > bits {
			prefix = b.prefix
		}
		if old, ok := best[prefix]; !ok || bits > old {
			best[prefix] = bits
		}
	}
	for prefix, bits := range best {
		c.frontends = append(c.frontends, frontend{mesh.Frontend{Prefix: prefix, Port: b.port, Protocol: b.proto}, bits})
	}
}

// unique leaves each frontend to the chain that matches it best. Two chains that
// match alike are an error where nothing else tells them apart.
func (r *report) unique(chains []*chain) {
	owner := map[mesh.Frontend]*chain{}
	bits := map[mesh.Frontend]int{}
	for _, c := range chains {
		for _, f := range c.frontends {
			o, taken := owner[f.Frontend]
			switch {
			case !taken || (o.isDefault && !c.isDefault) || (!c.isDefault && f.bits > bits[f.Frontend]):
				owner[f.Frontend], bits[f.Frontend] = c, f.bits
			case !c.isDefault && f.bits == bits[f.Frontend] && !conditional(o) && !conditional(c):
				r.invalid(join(c.path, "filter_chain_match"), "matches the same connections as %s", o.path)
			}
		}
	}
	for _, c := range chains {
		c.frontends = slices.DeleteFunc(c.frontends, func(f frontend) bool {
			o := owner[f.Frontend]
			// Chains that differ by a condition that is not tested here all stay:
			// shadow takes them out together.
			return o != c && (c.isDefault && !conditional(o) || f.bits < bits[f.Frontend])
		})
	}
}

// conditional tells whether a chain's match has more than addresses and ports.
func conditional(c *chain) bool {
	m := c.match
	return m.GetAddressSuffix() != "" || m.GetSuffixLen() != nil || m.GetSourceType() != 0 ||
		len(m.GetDirectSourcePrefixRanges()) > 0 || len(m.GetSourcePrefixRanges()) > 0 ||
		len(m.GetSourcePorts()) > 0 || len(m.GetServerNames()) > 0 ||
		m.GetTransportProtocol() != "" || len(m.GetApplicationProtocols()) > 0
}

// shadow stops the chains that would get the connections of a chain that is not
// served: what a condition guards must not be widened to another chain. A chain
// for a longer prefix is safe, because Envoy asks it first as well.
func (r *report) shadow(chains []*chain) {
	stopped := map[*chain]*chain{}
	for _, c := range chains {
		if !c.served {
			continue
		}
		for _, guard := range chains {
			if !guard.served && takes(c, guard) {
				stopped[c] = guard
				break
			}
		}
	}
	for _, c := range chains {
		if guard := stopped[c]; guard != nil {
			c.served = false
			r.add(c.path, mesh.UnsupportedCondition,
				"not served: it would get the connections of "+guard.path+", which cannot be told apart here")
		}
	}
}

// takes tells whether c would get connections of guard.
func takes(c, guard *chain) bool {
	for _, f := range c.frontends {
		for _, g := range guard.frontends {
			if f.Port == g.Port && f.Prefix.Overlaps(g.Prefix) && f.Prefix.Bits() <= g.Prefix.Bits() {
				return true
			}
		}
	}
	return false
}

// sortFrontends gives frontends one order.
func sortFrontends(list []mesh.Frontend) {
	slices.SortFunc(list, func(a, b mesh.Frontend) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
			cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
}
