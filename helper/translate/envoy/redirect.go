// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"net/netip"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// A sidecar's connections are redirected to one listener, which gives each to the listener
// of its original destination (use_original_dst), and has chains for what matches none:
// there the control plane says whether a pod may reach what the mesh does not know. Here
// nothing is redirected, so these chains are for every address and every port, after
// everything else.

// everywhere is what no other listener governs.
var everywhere = []bind{
	{netip.PrefixFrom(netip.IPv4Unspecified(), 0), 0, mesh.TCP},
	{netip.PrefixFrom(netip.IPv6Unspecified(), 0), 0, mesh.TCP},
}

var (
	rest    = rule{class: mesh.Enforced, msg: "its chains get what matches no other listener"}
	notRest = condition("redirected connections are governed by a listener for every address, of which no chain speaks HTTP or has a port other than the listener's")
)

func originalDst(r *report, v protoreflect.Value) rule {
	m := v.Message()
	switch {
	case !m.Get(m.Descriptor().Fields().ByName("value")).Bool():
		return harmless
	case r.rest:
		return rest
	}
	return notRest
}

// getsRest tells whether a listener gets what matches no other one. A chain for the
// listener's own port keeps connections out that were not redirected: there are none.
func getsRest(l *listenerv3.Listener) bool {
	at := l.GetAddress().GetSocketAddress()
	addr, err := netip.ParseAddr(at.GetAddress())
	if err != nil || !addr.IsUnspecified() || at.GetProtocol() != 0 || !l.GetUseOriginalDst().GetValue() {
		return false
	}
	if l.GetDefaultFilterChain() != nil && speaksHTTP(l.GetDefaultFilterChain()) {
		return false
	}
	return !slices.ContainsFunc(l.GetFilterChains(), func(fc *listenerv3.FilterChain) bool {
		port := fc.GetFilterChainMatch().GetDestinationPort()
		return port == nil && speaksHTTP(fc) || port != nil && port.GetValue() != at.GetPortValue()
	})
}
