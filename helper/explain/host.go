// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// FindVirtualHost returns the virtual host of a request with this authority ("" if it
// has none), or nil: an exact domain first, then the longest "*suffix", then the longest
// "prefix*", then "*". A wildcard stands for at least one byte.
func FindVirtualHost(h *mesh.HTTP, authority string) *mesh.VirtualHost {
	host := fold(authority)
	if h.IgnorePort {
		host, _ = head.SplitHost(host)
	}
	var found *mesh.VirtualHost
	best := rank{}
	for _, vh := range h.VirtualHosts {
		for _, domain := range vh.Domains {
			if r := domainRank(domain, host); best.less(r) {
				found, best = vh, r
			}
		}
	}
	return found
}

// rank orders the domains that a host is in; the zero one is none.
type rank struct{ class, length int }

func (r rank) less(other rank) bool {
	return r.class < other.class || r.class == other.class && r.length < other.length
}

func domainRank(domain, host string) rank {
	const any, prefix, suffix, exact = 1, 2, 3, 4
	switch {
	case domain == "*":
		return rank{any, 0}
	case strings.HasPrefix(domain, "*"):
		if tail := domain[1:]; len(host) > len(tail) && strings.HasSuffix(host, tail) {
			return rank{suffix, len(tail)}
		}
	case strings.HasSuffix(domain, "*"):
		if start := domain[:len(domain)-1]; len(host) > len(start) && strings.HasPrefix(host, start) {
			return rank{prefix, len(start)}
		}
	case domain == host:
		return rank{exact, 0}
	}
	return rank{}
}
