// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
)

// protoTCP is IPPROTO_TCP, in the frontends' keys.
const protoTCP = 6

// destination is a frontend that was found.
type destination struct {
	key     bpf.FrontendKey // what the client connects to; zero if only its port is known
	text    string          // the frontend as it is in the tables
	service uint32          // 0: there is none
}

// byAddress finds a frontend as a connection does (decide.h, find_service): the exact
// one, then the longest prefix with the port, then the longest with every port.
func (t *Tables) byAddress(scope uint32, addr netip.AddrPort) (destination, error) {
	words, family := bpf.AddrWords(addr.Addr())
	d := destination{key: bpf.FrontendKey{
		Scope: scope, Proto: protoTCP, Family: family, Port: bpf.PortWord(addr.Port()), Addr: words,
	}}
	id, ok, err := lookup[bpf.FrontendKey, uint32](t.rt.Frontends, d.key)
	if err != nil {
		return d, err
	}
	if ok {
		d.service, d.text = id, addr.String()
		return d, nil
	}
	for _, port := range []uint16{d.key.Port, 0} {
		id, ok, err := lookup[bpf.PrefixKey, uint32](t.rt.Prefixes, bpf.PrefixKey{
			Prefixlen: uint32(bpf.PrefixFixedBits + addr.Addr().BitLen()), Scope: scope,
			Proto: protoTCP, Family: family, Port: port, Addr: words,
		})
		if err != nil {
			return d, err
		}
		if ok {
			d.service, d.text = id, fmt.Sprintf("the prefix that %s is in, port %s", addr.Addr(), portText(port))
			return d, nil
		}
	}
	return d, nil
}

func portText(word uint16) string {
	if word == 0 {
		return "*"
	}
	return strconv.Itoa(int(bpf.PortWord(word)))
}

// byName finds the frontend of a request whose client's address is not known: the only
// service of the port, or the only one that has a domain for the host other than "*".
func (t *Tables) byName(ctx context.Context, n names, scope uint32, port uint16, authority string) (destination, error) {
	found := make(map[uint32]destination)
	everywhere := make(map[uint32]bool) // has a frontend for all addresses
	add := func(id uint32, text string) {
		if old, ok := found[id]; !ok || text < old.text {
			found[id] = destination{service: id, text: text}
		}
	}
	exact, err := entries[bpf.FrontendKey, uint32](ctx, t.rt.Frontends)
	if err != nil {
		return destination{}, err
	}
	for k, id := range exact {
		if k.Scope == scope && k.Proto == protoTCP && k.Port == bpf.PortWord(port) {
			add(id, addrPort(k.Addr, k.Port, k.Family).String())
		}
	}
	prefixes, err := entries[bpf.PrefixKey, uint32](ctx, t.rt.Prefixes)
	if err != nil {
		return destination{}, err
	}
	for k, id := range prefixes {
		if k.Scope == scope && k.Proto == protoTCP && (k.Port == bpf.PortWord(port) || k.Port == 0) {
			length := int(k.Prefixlen) - bpf.PrefixFixedBits
			add(id, fmt.Sprintf("%s port %s", netip.PrefixFrom(bpf.AddrOf(k.Addr, k.Family), length), portText(k.Port)))
			if length == 0 {
				everywhere[id] = true
			}
		}
	}
	var all, named, wild []destination
	for id, d := range found {
		all = append(all, d)
		h, ok, err := lookup[uint32, bpf.HTTP](t.rt.HTTP, id)
		if err != nil {
			return destination{}, err
		}
		if !ok {
			continue
		}
		domain, vhost, err := t.findHost(id, h, authority)
		switch {
		case err != nil:
			return destination{}, err
		case vhost == 0:
		case domain != "*":
			named = append(named, d)
		case everywhere[id]:
			wild = append(wild, d)
		}
	}
	switch {
	case len(all) == 0:
		return destination{}, nil
	case len(all) == 1:
		return all[0], nil
	case len(named) == 1:
		return named[0], nil
	case len(named) == 0 && len(wild) == 1:
		return wild[0], nil
	}
	slices.SortFunc(all, func(a, b destination) int { return cmp.Compare(n.of(a.service), n.of(b.service)) })
	var list []string
	for _, d := range all {
		list = append(list, strconv.Quote(n.of(d.service)))
	}
	return destination{}, status.Errorf(codes.InvalidArgument,
		"%d services have port %d (%s): say with --address which IP address the pod connects to", len(list), port, strings.Join(list, ", "))
}

// findHost finds the virtual host as the programs do: exact, the longest "*suffix", the
// longest "prefix*", "*" (route.h, find_vhost). A wildcard stands for at least one byte.
// 0: there is none.
func (t *Tables) findHost(service uint32, h bpf.HTTP, authority string) (domain string, vhost uint32, err error) {
	star := func() (string, uint32, error) {
		if h.Star == 0 {
			return "", 0, nil
		}
		return "*", h.Star, nil
	}
	if h.Flags&bpf.HTTPStarOnly != 0 {
		return star()
	}
	host := hostOf(authority, h.Flags&bpf.HTTPIgnorePort != 0)
	if host == "" || len(host) > bpf.MaxHost {
		return star()
	}
	type try struct {
		kind uint8
		name string
	}
	tries := []try{{bpf.HostExact, host}}
	for _, n := range lengths(h.Suffixes, len(host)) {
		tries = append(tries, try{bpf.HostSuffix, host[len(host)-n:]})
	}
	for _, n := range lengths(h.Prefixes, len(host)) {
		tries = append(tries, try{bpf.HostPrefix, host[:n]})
	}
	for _, one := range tries {
		id, ok, err := t.lookUpHost(service, one.kind, strings.ToLower(one.name))
		if err != nil {
			return "", 0, err
		}
		if ok {
			return domainOf(one.kind, strings.ToLower(one.name)), id, nil
		}
	}
	return star()
}

// lengths returns the set bits below n, the highest first.
func lengths(set [4]uint64, n int) []int {
	var out []int
	for w := len(set) - 1; w >= 0; w-- {
		for v := set[w]; v != 0; {
			bit := bits.Len64(v) - 1
			v &^= 1 << bit
			if at := 64*w + bit; at > 0 && at < n {
				out = append(out, at)
			}
		}
	}
	return out
}
