// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"kmesh/helper/mesh"
)

// bind is one address that a listener governs.
type bind struct {
	prefix netip.Prefix
	port   uint16
	proto  mesh.Protocol
}

// binds returns what a listener's address stands for: one prefix, or two for
// [::] with ipv4_compat. It returns none, with a verdict given, when the address
// is of another kind (walk reported that) or not valid.
func (r *report) binds(a *corev3.Address, path string) []bind {
	sa := a.GetSocketAddress()
	if sa == nil {
		if a.GetPipe() == nil && a.GetEnvoyInternalAddress() == nil {
			r.invalid(path, "is empty: give a socket_address")
		}
		return nil
	}
	path = join(path, "socket_address")
	addr, ok := r.ip(sa.GetAddress(), join(path, "address"))
	if !ok {
		return nil
	}
	port, ok := r.port(sa, path)
	if !ok {
		return nil
	}
	proto := mesh.TCP
	if sa.GetProtocol() == corev3.SocketAddress_UDP {
		proto = mesh.UDP
	}
	if !addr.IsUnspecified() {
		return []bind{{netip.PrefixFrom(addr, addr.BitLen()), port, proto}}
	}
	out := []bind{{netip.PrefixFrom(addr, 0), port, proto}}
	if addr.Is6() && sa.GetIpv4Compat() {
		out = append(out, bind{netip.PrefixFrom(netip.IPv4Unspecified(), 0), port, proto})
	}
	return out
}

// ip parses an address that must be an IP address.
func (r *report) ip(s, path string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		r.invalid(path, "%q is not an IP address", s)
		return netip.Addr{}, false
	case addr.Zone() != "":
		r.invalid(path, "%q has a zone: link-local addresses with a zone cannot be governed", s)
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// port returns the port of a socket address, which must be one that can be
// connected to.
func (r *report) port(sa *corev3.SocketAddress, path string) (uint16, bool) {
	if _, named := sa.GetPortSpecifier().(*corev3.SocketAddress_NamedPort); named {
		return 0, false // walk gave the verdict
	}
	p := sa.GetPortValue()
	if p == 0 || p > 65535 {
		r.invalid(join(path, "port_value"), "%d is not a port: give one between 1 and 65535", p)
		return 0, false
	}
	return uint16(p), true
}

// cidr parses a prefix range. An address that is v4-mapped stands for the IPv4
// one when the prefix is inside the mapped range.
func (r *report) cidr(c *corev3.CidrRange, path string) (netip.Prefix, bool) {
	addr, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil || addr.Zone() != "" {
		r.invalid(join(path, "address_prefix"), "%q is not an IP address", c.GetAddressPrefix())
		return netip.Prefix{}, false
	}
	bits := c.GetPrefixLen().GetValue()
	if bits > uint32(addr.BitLen()) {
		r.invalid(join(path, "prefix_len"), "%d is more than %d", bits, addr.BitLen())
		return netip.Prefix{}, false
	}
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, int(bits)).Masked(), true
}
