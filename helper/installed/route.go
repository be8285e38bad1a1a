// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"fmt"

	"kmesh/bpf"
	"kmesh/helper/head"
)

// act says what a route does, without fraction and abort.
func (t *Tables) act(r *bpf.Route, from *head.Request) (string, error) {
	switch r.Kind {
	case bpf.RouteForward:
		switch r.Hash {
		case bpf.HashSource:
			return "forwarded, by a hash of the pod's address", nil
		case bpf.HashHeader:
			return fmt.Sprintf("forwarded, by a hash of header %s", r.HashName[:min(int(r.HashLen), len(r.HashName))]), nil
		}
		return "forwarded", nil
	case bpf.RouteReply:
		return t.reply(r.Reply, from)
	}
	return "answered 503: the route has a condition or an action that cannot be served (kmeshctl status)", nil
}

// probability is n of 2^32, or 1.
func probability(n uint32, always bool) float64 {
	if always {
		return 1
	}
	return float64(n) / (1 << 32)
}

// taken is the part of what matches that a route takes.
func taken(r *bpf.Route) float64 {
	if r.Never != 0 {
		return 0
	}
	return probability(r.Fraction, r.Fraction == 0)
}

// domainOf is the domain as the configuration writes it.
func domainOf(kind uint8, name string) string {
	switch kind {
	case bpf.HostSuffix:
		return "*" + name
	case bpf.HostPrefix:
		return name + "*"
	}
	return name
}

// lookUpHost finds the virtual host of a domain without its "*", in lower case and of at most bpf.MaxHost bytes.
func (t *Tables) lookUpHost(service uint32, kind uint8, name string) (id uint32, ok bool, err error) {
	if len(name) > bpf.ShortHost {
		k := bpf.LongHostKey{Service: service, Kind: kind, Len: uint16(len(name))}
		copy(k.Name[:], name)
		return lookup[bpf.LongHostKey, uint32](t.rt.LongHosts, k)
	}
	k := bpf.HostKey{Service: service, Kind: kind, Len: uint16(len(name))}
	copy(k.Name[:], name)
	return lookup[bpf.HostKey, uint32](t.rt.Hosts, k)
}
