// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// request is what somebody asks about.
type request struct {
	authority string // as in the URL
	host      string
	port      uint16
	addr      netip.Addr // where the client connects to; invalid: not known
	target    string
	head      string // the bytes that a client would send
}

// newRequest makes the request of a method, a URL and headers. The URL is taken as
// it is written: nothing is decoded or cleaned, because clients send it as it is.
func newRequest(method, url string, headers []string, address string) (*request, error) {
	for _, s := range append([]string{method, url}, headers...) {
		if strings.ContainsAny(s, "\r\n") {
			return nil, fmt.Errorf("%q has a line break", s)
		}
	}
	rest, ok := strings.CutPrefix(url, "http://")
	switch {
	case ok:
	case strings.HasPrefix(url, "https://"):
		return nil, errors.New("https is not routed by request: its connections are balanced as they are")
	case strings.Contains(url, "://"):
		return nil, fmt.Errorf("URL %q: only http is routed", url)
	default:
		rest = url
	}
	rest, _, _ = strings.Cut(rest, "#") // no client sends a fragment
	r := &request{authority: rest, target: "/"}
	if at := strings.IndexAny(rest, "/?"); at >= 0 {
		r.authority, r.target = rest[:at], rest[at:]
		if r.target[0] == '?' {
			r.target = "/" + r.target
		}
	}
	if _, after, found := strings.Cut(r.authority, "@"); found {
		r.authority = after
	}
	if r.authority == "" {
		return nil, fmt.Errorf("URL %q has no host: give http://HOST[:PORT]/PATH", url)
	}
	var port string
	r.host, port = head.SplitHost(r.authority)
	r.port = 80
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("URL %q: %q is not a port", url, port)
		}
		r.port = uint16(n)
	}
	if address == "" {
		r.addr, _ = netip.ParseAddr(strings.Trim(r.host, "[]"))
	} else {
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", address, err)
		}
		r.addr = addr
	}
	r.addr = r.addr.Unmap()

	text := method + " " + r.target + " HTTP/1.1\r\n"
	named := false
	var fields string
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, fmt.Errorf("header %q: give \"NAME: VALUE\"", h)
		}
		named = named || strings.EqualFold(name, "host")
		fields += name + ": " + strings.TrimSpace(value) + "\r\n"
	}
	if !named {
		text += "Host: " + r.authority + "\r\n"
	}
	r.head = text + fields + "\r\n"
	return r, nil
}

// find returns the service that the request's connection is for; nil when no
// listener has its destination.
func (o *offline) find(r *request) (*mesh.Service, error) {
	services := slices.Concat(o.scope.HTTP, o.scope.Services)
	if r.addr.IsValid() {
		return byAddress(services, r.addr, r.port), nil
	}
	// A name has no address here: which listener it is follows from the port, and
	// where several have it, from the host.
	var onPort []*mesh.Service
	for _, s := range services {
		if slices.ContainsFunc(s.Frontends, func(f mesh.Frontend) bool {
			return f.Protocol == mesh.TCP && (f.Port == r.port || f.Port == 0)
		}) {
			onPort = append(onPort, s)
		}
	}
	if len(onPort) <= 1 {
		if len(onPort) == 0 {
			return nil, nil
		}
		return onPort[0], nil
	}
	var named, wild []*mesh.Service
	for _, s := range onPort {
		if s.HTTP == nil {
			continue
		}
		vh := explain.FindVirtualHost(s.HTTP, r.authority)
		switch {
		case vh == nil:
		case !slices.Equal(vh.Domains, []string{"*"}):
			named = append(named, s)
		case slices.ContainsFunc(s.Frontends, func(f mesh.Frontend) bool { return f.Prefix.Bits() == 0 }):
			wild = append(wild, s)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) == 0 && len(wild) == 1:
		return wild[0], nil
	}
	names := make([]string, 0, len(onPort))
	for _, s := range onPort {
		names = append(names, strconv.Quote(s.Name))
	}
	return nil, usageError{fmt.Errorf("%d listeners have port %d (%s): say with --address which IP address the client connects to",
		len(names), r.port, strings.Join(names, ", "))}
}

// byAddress finds a frontend as a connection does: a host prefix with the port,
// then the longest prefix with the port, then the longest one with port 0.
func byAddress(services []*mesh.Service, addr netip.Addr, port uint16) *mesh.Service {
	var best *mesh.Service
	rank := -1
	for _, s := range services {
		for _, f := range s.Frontends {
			if f.Protocol != mesh.TCP || !f.Prefix.Contains(addr) || f.Port != port && f.Port != 0 {
				continue
			}
			n := f.Prefix.Bits()
			if f.Port != 0 {
				n += 1000
			}
			if n > rank {
				best, rank = s, n
			}
		}
	}
	return best
}
