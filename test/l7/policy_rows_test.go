// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"net/netip"

	"kmesh/helper/mesh"
)

// Rows about which endpoint is chosen, and about listeners for many addresses.

func init() {
	add(routed, "sticky by a header", func(s *scene) {
		e := s.https(4)
		r := s.split("/", share{s.cluster(mesh.Maglev, e...), 1})
		r.Hash = mesh.Hash{Kind: mesh.HashHeader, Header: "x-user"}
		svc := s.serve(s.to("/other", e[0]), r)
		seen := map[*server]bool{}
		owner := map[int]*server{}
		for round := range 3 {
			c := s.dial(svc.at)
			for user := range 20 {
				q := request{path: "/", header: []string{"A: b", fmt.Sprintf("X-User:  user-%d ", user)}}
				c.write(q.String())
				rep := c.read("GET")
				got := byName(e, rep.server())
				if err := q.faults(rep, rep.server()); err != nil || got == nil {
					s.Fatalf("user %d: %v of %q", user, err, rep.server())
				}
				if round == 0 {
					owner[user] = got
					seen[got] = true
				}
				if owner[user] != got {
					s.Errorf("user %d went to %s, then to %s", user, owner[user].name, got.name)
				}
				if user%5 == 0 {
					c.get("/other", e[0])
				}
			}
			c.Close()
		}
		if len(seen) < 2 {
			s.Errorf("20 users went to %d of 4 endpoints", len(seen))
		}
	})
	add(routed, "sticky by source", func(s *scene) {
		e := s.https(4)
		r := s.split("/", share{s.cluster(mesh.Maglev, e...), 1})
		r.Hash = mesh.Hash{Kind: mesh.HashSource}
		svc := s.serve(s.to("/other", e[0]), r)
		for client := range nClients {
			owner := ""
			for range 10 {
				c := s.dialAs(svc.at, how{client: client})
				c.write(request{path: "/"}.String())
				got := c.read("GET").server()
				if owner == "" {
					owner = got
				}
				if got != owner || got == "" {
					s.Errorf("client %d went to %q, then to %q", client, owner, got)
				}
				c.Close()
			}
		}
	})
	add(routed, "as many requests as one connection to an endpoint serves", func(s *scene) {
		e := s.https(2)
		limited := s.cluster(mesh.RoundRobin, e[0])
		limited.MaxRequests = 3
		svc := s.serve(s.to("/b", e[1]), s.split("/", share{limited, 1}))
		c := s.dial(svc.at)
		for i := range 9 {
			c.ask(request{path: "/", do: do{Size: 100 * i}}, e[0])
			if i%2 == 0 {
				c.get("/b", e[1])
			}
		}
		if got := e[0].accepted(); got < 3 || got > 4 {
			s.Errorf("9 requests took %d connections of at most 3 requests each, want 3 (4 with a guess that was wrong)", got)
		}
		if got := e[1].accepted(); got != 1 {
			s.Errorf("the cluster without a limit got %d connections, want 1", got)
		}
	})
	add(routed, "a listener for every address", func(s *scene) {
		e := s.https(2)
		outside := s.http(2)
		known := netip.AddrFrom4([4]byte{10, 98, byte(s.ids.Add(1) >> 8), byte(s.ids.Load())})
		host, all := known.String(), netip.MustParsePrefix("0.0.0.0/0")
		if s.v6 {
			known = netip.MustParseAddr(fmt.Sprintf("fd98::%x", s.ids.Load()))
			host, all = "["+known.String()+"]", netip.MustParsePrefix("::/0")
		}
		s.serveAt(mesh.Frontend{Prefix: all, Port: outside.port, Protocol: mesh.TCP},
			&mesh.VirtualHost{Name: "known", Domains: []string{host, fmt.Sprintf("%s:%d", host, outside.port)},
				Routes: []*mesh.Route{s.to("/b", e[1]), s.to("/", e[0])}})
		c := s.dial(netip.AddrPortFrom(known, outside.port))
		for range 2 {
			c.ask(request{path: "/", host: fmt.Sprintf("%s:%d", host, outside.port)}, e[0])
			c.ask(request{path: "/b", host: host}, e[1])
			c.refused(request{path: "/b", host: "unknown"}.String(), 404)
		}
		// What nobody knows is passed: the path makes no difference, nor does the host.
		c = s.dial(outside.addr(s.v6))
		c.ask(request{path: "/b", host: host}, outside)
	})
	add(routed, "a headless service", func(s *scene) {
		e := s.https(2)
		all := netip.MustParsePrefix("0.0.0.0/0")
		if s.v6 {
			all = netip.MustParsePrefix("::/0")
		}
		s.serveAt(mesh.Frontend{Prefix: all, Port: e[0].port, Protocol: mesh.TCP},
			&mesh.VirtualHost{Name: "headless", Domains: []string{"*"}, Routes: []*mesh.Route{s.to("/b", e[1]), s.to("/", e[0])}})
		c := s.dial(e[0].addr(s.v6))
		for range 2 {
			c.get("/", e[0])
			c.get("/b", e[1])
		}
	})
}

func byName(all []*server, name string) *server {
	for _, e := range all {
		if e.name == name {
			return e
		}
	}
	return nil
}
