// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// An HTTP listener for a prefix of addresses takes what is meant for any of them;
// what it does not know it passes. Only the addresses that it knows are routed:
// those that its virtual hosts name, and those of endpoints that clients reach
// without a service's address (headless). Each is a frontend of its own, with the
// cluster that a connection to it is likely to need.

// wildPorts are the ports at which a cluster's endpoints are frontends, by the
// cluster's name.
type wildPorts map[string]map[uint16]bool

// passes adds a service that passes what comes to a prefix frontend.
func (c *scopeCompiler) passes(svc *mesh.Service, f mesh.Frontend) {
	n := name{scope: c.scope, kind: bpf.NameService, name: StoredName(svc.Name + " " + passCluster)}
	id := c.ids.nameID(n)
	c.want.names[id] = n
	v := bpf.Service{N: 1, Total: 1}
	v.Shares[0] = bpf.Share{Cluster: c.passID(), Weight: 1}
	c.want.services[id] = v
	// A frontend that another service has too is that one's.
	_ = c.want.addFrontend(c.scope, f, id)
}

// passID returns the id of the cluster that passes connections.
func (c *scopeCompiler) passID() uint32 {
	if id, ok := c.clusterIDs[passCluster]; ok {
		return id
	}
	n := name{scope: c.scope, kind: bpf.NameCluster, name: passCluster}
	id := c.ids.nameID(n)
	c.want.names[id] = n
	c.want.clusters[id] = compileCluster(id, &mesh.Cluster{Name: passCluster, Kind: mesh.Passthrough}, c.ids, c.want.endpoints)
	c.clusterIDs[passCluster] = id
	return id
}

// addWild adds the frontends that a service's prefixes come down to, and tells
// whether there are any.
func (c *scopeCompiler) addWild(h *httpService) bool {
	var prefixes []mesh.Frontend
	for _, f := range h.svc.Frontends {
		if !f.Prefix.IsSingleIP() {
			prefixes = append(prefixes, f)
		}
	}
	if len(prefixes) == 0 {
		return false
	}
	found := false
	for _, vh := range h.svc.HTTP.VirtualHosts {
		guess, known := uint32(0), false
		for _, domain := range vh.Domains {
			addr, port, ok := literal(domain)
			if !ok {
				continue
			}
			if !known {
				guess, known = c.clusterIDs[likeliest(vh)], true // 0: answer the SYN
			}
			for _, f := range prefixes {
				if f.Port == port || port == 0 || f.Port == 0 {
					found = c.addKnown(h, f, netip.AddrPortFrom(addr, max(f.Port, port)), guess) || found
				}
			}
		}
	}
	routed := make(map[string]bool)
	eachRoute(h.svc, func(r *mesh.Route) {
		for _, w := range r.Clusters {
			routed[w.Cluster] = true
		}
	})
	for _, cname := range slices.Sorted(maps.Keys(routed)) {
		for _, f := range prefixes {
			if f.Port == 0 {
				continue
			}
			if c.wild[cname] == nil {
				c.wild[cname] = make(map[uint16]bool)
			}
			c.wild[cname][f.Port] = true
			for addr := range addressesAt(c.clusters[cname], f.Port) {
				found = c.addKnown(h, f, netip.AddrPortFrom(addr, f.Port), c.passID()) || found
			}
		}
	}
	return found
}

// addKnown adds one address below a prefix frontend, unless another service has it
// or has a longer prefix of it.
func (c *scopeCompiler) addKnown(h *httpService, f mesh.Frontend, at netip.AddrPort, guess uint32) bool {
	if at.Port() == 0 || !f.Prefix.Contains(at.Addr()) {
		return false
	}
	words, family := bpf.AddrWords(at.Addr())
	k := bpf.FrontendKey{Scope: c.scope, Proto: uint8(f.Protocol), Family: family, Port: bpf.PortWord(at.Port()), Addr: words}
	if _, taken := c.want.frontends[k]; taken {
		_, ours := c.want.guesses[k]
		return ours && c.want.frontends[k] == h.id
	}
	for bits := range c.longer {
		if bits <= f.Prefix.Bits() || bits > at.Addr().BitLen() {
			continue
		}
		p, _ := at.Addr().Prefix(bits)
		pk := bpf.PrefixKey{
			Prefixlen: uint32(bpf.PrefixFixedBits + bits), Scope: c.scope, Proto: uint8(f.Protocol),
			Family: family, Port: bpf.PortWord(at.Port()),
		}
		pk.Addr, _ = bpf.AddrWords(p.Addr())
		if _, taken := c.want.prefixes[pk]; taken {
			return false
		}
	}
	c.want.frontends[k] = h.id
	c.want.guesses[k] = guess
	return true
}

// prefixLengths are the lengths of all prefix frontends of a scope.
func prefixLengths(sc *mesh.Scope) map[int]bool {
	lengths := make(map[int]bool)
	for _, list := range [][]*mesh.Service{sc.Services, sc.HTTP} {
		for _, svc := range list {
			for _, f := range svc.Frontends {
				if !f.Prefix.IsSingleIP() {
					lengths[f.Prefix.Bits()] = true
				}
			}
		}
	}
	return lengths
}

// literal reads a domain that is an address, perhaps with a port.
func literal(domain string) (addr netip.Addr, port uint16, ok bool) {
	if addr, err := netip.ParseAddr(strings.Trim(domain, "[]")); err == nil {
		return addr.Unmap(), 0, true
	}
	i := strings.LastIndexByte(domain, ':')
	if i < 0 {
		return addr, 0, false
	}
	n, err := strconv.ParseUint(domain[i+1:], 10, 16)
	if err != nil || n == 0 {
		return addr, 0, false
	}
	addr, err = netip.ParseAddr(strings.Trim(domain[:i], "[]"))
	return addr.Unmap(), uint16(n), err == nil
}

// likeliest is the cluster that most requests of a virtual host are forwarded to:
// the heaviest one of the route for every path, or else of the first route that
// forwards.
func likeliest(vh *mesh.VirtualHost) string {
	var from *mesh.Route
	for _, r := range vh.Routes {
		m := &r.Match
		every := m.Path.Kind == mesh.PathPrefix && (m.Path.Value == "" || m.Path.Value == "/") &&
			len(m.Headers) == 0 && len(m.Query) == 0 && m.Fraction == nil
		if len(r.Clusters) > 0 && (from == nil || every) {
			from = r
		}
		if every {
			break
		}
	}
	if from == nil {
		return ""
	}
	best := from.Clusters[0]
	for _, w := range from.Clusters {
		if w.Weight > best.Weight {
			best = w
		}
	}
	return best.Cluster
}

// addressesAt are the addresses of a cluster's endpoints that have a port.
func addressesAt(c *mesh.Cluster, port uint16) map[netip.Addr]bool {
	addrs := make(map[netip.Addr]bool)
	if c == nil || c.Kind != mesh.Endpoints {
		return addrs
	}
	for _, l := range c.Localities {
		for _, e := range l.Endpoints {
			if e.Addr.Port() == port {
				addrs[e.Addr.Addr()] = true
			}
		}
	}
	return addrs
}

// moves tells whether the change of a cluster is more than one of its endpoints: it
// changes frontends, or how services begin connections.
func (w wildPorts) moves(old, new *mesh.Cluster) bool {
	if old.Kind != new.Kind {
		return true
	}
	for port := range w[new.Name] {
		if !maps.Equal(addressesAt(old, port), addressesAt(new, port)) {
			return true
		}
	}
	return false
}
