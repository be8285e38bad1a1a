// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"kmesh/bpf"
	"kmesh/helper/automaton"
)

// reader finds in the maps what the programs would, by the maps alone. Everything is
// named, never numbered, so that what two sets of maps say can be compared.
type reader struct{ rt *bpf.Runtime }

// must panics: a test that follows an id to nothing has found a mistake.
func must(what string, err error) {
	if err != nil {
		panic(fmt.Sprintf("%s: %v", what, err))
	}
}

func (r reader) name(id uint32) string {
	var n bpf.Name
	must(fmt.Sprintf("name %d", id), r.rt.Names.Lookup(id, &n))
	return string(n.Name[:n.Len])
}

func (r reader) vhost(id uint32) bpf.VHost {
	var v bpf.VHost
	must(fmt.Sprintf("virtual host %d", id), r.rt.VHosts.Lookup(id, &v))
	return v
}

func (r reader) program(v bpf.VHost) *automaton.Program {
	slab := r.rt.SlabMemory()[int(v.Slab)*bpf.SlabSize:][:bpf.SlabSize]
	n := automaton.SizeOf(slab[v.Program:])
	if n == 0 || v.Program%automaton.Align != 0 {
		panic(fmt.Sprintf("no program at %d of slab %d", v.Program, v.Slab))
	}
	return &automaton.Program{Bytes: slab[v.Program:][:n]}
}

// decide says what becomes of a request of a service: of the bytes of a head. draw is
// the number out of 2^32 that every draw gives.
func (r reader) decide(service uint32, head []byte, draw uint32) string {
	var h bpf.HTTP
	must("http", r.rt.HTTP.Lookup(service, &h))
	m := automaton.NewMachine(r.program(r.vhost(h.Any)))
	if m.Feed(head); m.Kind() != automaton.Route {
		return "no head"
	}
	id := r.findHost(service, h, spanOf(m, head, automaton.SpanHost))
	if id == 0 {
		return "404"
	}
	v := r.vhost(id)
	m = automaton.NewMachine(r.program(v))
	m.Feed(head)
	for i := m.Next(0); i >= 0 && i < int(v.N_routes); i = m.Next(i + 1) {
		route := r.rt.Routes()[int(v.Routes)+i]
		if route.Never != 0 || route.Fraction != 0 && draw >= route.Fraction {
			continue
		}
		return r.action(&route, m, head, draw)
	}
	return "404"
}

func spanOf(m *automaton.Machine, head []byte, span int) string {
	from, to := m.Span(span)
	return string(head[from:to])
}

func (r reader) findHost(service uint32, h bpf.HTTP, host string) uint32 {
	if h.Flags&bpf.HTTPStarOnly != 0 {
		return h.Star
	}
	host = strings.ToLower(host)
	if i := strings.LastIndexByte(host, ':'); h.Flags&bpf.HTTPIgnorePort != 0 && i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	look := func(kind uint8, text string) (id uint32) {
		if len(text) == 0 || len(text) > bpf.MaxHost {
			return 0
		}
		var key any
		m := r.rt.Hosts
		if len(text) > bpf.ShortHost {
			k := bpf.LongHostKey{Service: service, Kind: kind, Len: uint16(len(text))}
			copy(k.Name[:], text)
			key, m = k, r.rt.LongHosts
		} else {
			k := bpf.HostKey{Service: service, Kind: kind, Len: uint16(len(text))}
			copy(k.Name[:], text)
			key = k
		}
		if m.Lookup(key, &id) != nil {
			return 0
		}
		return id
	}
	if id := look(bpf.HostExact, host); id != 0 {
		return id
	}
	has := func(bits [4]uint64, n int) bool { return bits[n>>6&3]>>(n&63)&1 != 0 }
	for n := len(host) - 1; n > 0; n-- {
		if has(h.Suffixes, n) {
			if id := look(bpf.HostSuffix, host[len(host)-n:]); id != 0 {
				return id
			}
		}
	}
	for n := len(host) - 1; n > 0; n-- {
		if has(h.Prefixes, n) {
			if id := look(bpf.HostPrefix, host[:n]); id != 0 {
				return id
			}
		}
	}
	return h.Star
}

func (r reader) action(route *bpf.Route, m *automaton.Machine, head []byte, draw uint32) string {
	if route.AbortAlways != 0 || draw < route.Abort {
		return fmt.Sprintf("%s aborts\n%s", r.name(route.Id), r.answer(route.AbortReply, m, head))
	}
	switch route.Kind {
	case bpf.RouteReply:
		return fmt.Sprintf("%s answers\n%s", r.name(route.Id), r.answer(route.Reply, m, head))
	case bpf.RouteUnsupported:
		return r.name(route.Id) + " 503"
	}
	return r.name(route.Id) + " forwards" + r.shares(route) + r.hash(route)
}

func (r reader) shares(route *bpf.Route) (text string) {
	total := uint32(0)
	for _, s := range r.rt.Shares()[route.Shares:][:route.N_shares] {
		text += fmt.Sprintf(" %s=%d", r.name(s.Cluster), s.Weight)
		total += s.Weight
	}
	if total != route.Total {
		panic("the sum of the weights is wrong")
	}
	return text
}

func (r reader) hash(route *bpf.Route) string {
	return fmt.Sprintf(" hash %d %q", route.Hash, route.HashName[:route.HashLen])
}

// answer writes a reply's parts one after another.
func (r reader) answer(id uint32, m *automaton.Machine, head []byte) string {
	var v bpf.Reply
	must(fmt.Sprintf("reply %d", id), r.rt.Replies.Lookup(id, &v))
	if id < bpf.ReplyFirst && id != uint32(v.Status) {
		panic("a reply has another status than its id")
	}
	authority := spanOf(m, head, automaton.SpanHost)
	host := authority
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	path, query := spanOf(m, head, automaton.SpanPath), ""
	if from, to := m.Span(automaton.SpanQuery); from > 0 {
		query = string(head[from-1 : to])
	}
	text := ""
	for _, p := range v.Parts[:v.N_parts] {
		switch p.Kind {
		case bpf.PartText:
			text += string(v.Text[p.From:][:p.Len])
		case bpf.PartBody:
			if spanOf(m, head, automaton.SpanMethod) != "HEAD" {
				text += string(v.Text[p.From:][:p.Len])
			}
		case bpf.PartHost:
			text += host
		case bpf.PartAuthority:
			text += authority
		case bpf.PartNot80:
			text += strings.TrimSuffix(authority, ":80")
		case bpf.PartPath:
			text += path[min(int(p.From), len(path)):]
		case bpf.PartQuery:
			text += query
		default:
			panic(fmt.Sprintf("a part of kind %d", p.Kind))
		}
	}
	return text
}

// dump writes everything that can be reached, by name and sorted.
func (r reader) dump() string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	must("frontends", readAll(r.rt.Frontends, func(k bpf.FrontendKey, id uint32) error {
		add("frontend %v %d -> %s", bpf.AddrOf(k.Addr, k.Family), bpf.PortWord(k.Port), r.name(id))
		return nil
	}))
	must("prefixes", readAll(r.rt.Prefixes, func(k bpf.PrefixKey, id uint32) error {
		add("prefix %v/%d %d -> %s", bpf.AddrOf(k.Addr, k.Family), k.Prefixlen, bpf.PortWord(k.Port), r.name(id))
		return nil
	}))
	must("guesses", readAll(r.rt.Guesses, func(k bpf.FrontendKey, id uint32) error {
		guess := "none"
		if id != 0 {
			guess = r.name(id)
		}
		add("guess %v %d -> %s", bpf.AddrOf(k.Addr, k.Family), bpf.PortWord(k.Port), guess)
		return nil
	}))
	must("services", readAll(r.rt.Services, func(id uint32, v bpf.Service) error {
		text := fmt.Sprintf("service %s flags %d total %d", r.name(id), v.Flags, v.Total)
		for _, s := range v.Shares[:v.N] {
			text += fmt.Sprintf(" %s=%d", r.name(s.Cluster), s.Weight)
		}
		add("%s", text)
		return nil
	}))
	must("http", readAll(r.rt.HTTP, func(id uint32, v bpf.HTTP) error {
		add("http %s %d %x %x star %s any %s all %s", r.name(id), v.Flags, v.Suffixes, v.Prefixes, r.content(v.Star), r.content(v.Any), r.content(v.All))
		return nil
	}))
	must("hosts", readAll(r.rt.Hosts, func(k bpf.HostKey, id uint32) error {
		add("host %s %d %q -> %s", r.name(k.Service), k.Kind, k.Name[:k.Len], r.content(id))
		return nil
	}))
	must("long hosts", readAll(r.rt.LongHosts, func(k bpf.LongHostKey, id uint32) error {
		add("host %s %d %q -> %s", r.name(k.Service), k.Kind, k.Name[:k.Len], r.content(id))
		return nil
	}))
	must("clusters", readAll(r.rt.Clusters, func(id uint32, v bpf.Cluster) error {
		add("cluster %s kind %d policy %d requests %d connections %d: %d and %d slots", r.name(id), v.Kind, v.Policy, v.MaxRequests, v.MaxConnections, v.V4.N, v.V6.N)
		return nil
	}))
	must("names", readAll(r.rt.Names, func(id uint32, v bpf.Name) error {
		add("name %d %s", v.Kind, v.Name[:v.Len])
		return nil
	}))
	must("replies", readAll(r.rt.Replies, func(id uint32, v bpf.Reply) error {
		add("reply %v %q", v.Parts[:v.N_parts], strings.TrimRight(string(v.Text[:]), "\x00"))
		return nil
	}))
	must("virtual hosts", readAll(r.rt.VHosts, func(id uint32, v bpf.VHost) error {
		add("virtual host %s", r.content(id))
		return nil
	}))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// content writes a virtual host without any place or id.
func (r reader) content(id uint32) string {
	v := r.vhost(id)
	sum := r.program(v).Bytes
	text := fmt.Sprintf("program of %d bytes %s", len(sum), hex.EncodeToString(sum[len(sum)-8:]))
	if id == bpf.VHostResponse {
		return text + " for responses, or none"
	}
	for _, route := range r.rt.Routes()[v.Routes:][:v.N_routes] {
		text += fmt.Sprintf("; %s kind %d fraction %d/%d abort %d/%d", r.name(route.Id), route.Kind, route.Fraction, route.Never, route.Abort, route.AbortAlways)
		for _, reply := range []uint32{route.Reply, route.AbortReply} {
			if reply != 0 {
				var rep bpf.Reply
				must("reply", r.rt.Replies.Lookup(reply, &rep))
				text += fmt.Sprintf(" reply %d %v %q", rep.Status, rep.Parts, strings.TrimRight(string(rep.Text[:]), "\x00"))
			}
		}
		text += r.shares(&route) + r.hash(&route)
	}
	return text
}
