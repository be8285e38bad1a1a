// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// Rows about what stays as it is: who is served by whom, and numbers that nobody changed.

// withServers is a cluster with other endpoints.
func (s *scene) withServers(c *mesh.Cluster, servers ...*server) *mesh.Cluster {
	out := *c
	out.Localities = []mesh.Locality{{}}
	for _, e := range servers {
		out.Localities[0].Endpoints = append(out.Localities[0].Endpoints, mesh.Endpoint{Addr: e.addr(s.v6), Weight: 1})
	}
	return &out
}

// owners asks for every user, or source, once, and says who answered.
func (s *scene) owners(keys int, ask func(key int) *reply) map[int]string {
	s.Helper()
	out := map[int]string{}
	for key := range keys {
		r := ask(key)
		if r.StatusCode != http.StatusOK || r.server() == "" {
			s.Fatalf("key %d: status %d of %q", key, r.StatusCode, r.server())
		}
		out[key] = r.server()
	}
	return out
}

// stays changes endpoints and fails if a key moves that need not. few is how many of the keys may move all the same
// when an endpoint comes or goes: maglev moves some (Eisenbud et al., section 3.4).
func (s *scene) stays(svc *service, own, other *mesh.Cluster, e []*server, few int, owners func() map[int]string) {
	s.Helper()
	first := owners()
	same := func(when string) {
		s.Helper()
		if now := owners(); !maps.Equal(now, first) {
			s.Errorf("%s: %v, was %v", when, now, first)
		}
	}
	moved := func(when string, may func(was, is string) bool) {
		s.Helper()
		n := 0
		for key, is := range owners() {
			if was := first[key]; is != was && !may(was, is) {
				n++
			}
		}
		if n > few {
			s.Errorf("%s: %d of %d keys moved without need, want at most %d", when, n, len(first), few)
		}
	}
	same("nothing changed")
	svc.replace(s.withServers(other, e[4], e[0], e[1]))
	same("another cluster has more endpoints")
	svc.replace(other)
	same("another cluster has fewer endpoints")
	svc.replace(s.withServers(own, e...))
	moved("an endpoint came", func(_, is string) bool { return is == e[4].name })
	svc.replace(own)
	same("it left again")
	svc.replace(s.withServers(own, e[:3]...))
	moved("an endpoint left", func(was, _ string) bool { return was == e[3].name })
	svc.replace(own)
	same("it came again")
	svc.replace(withHealth(own, 2, mesh.Draining))
	moved("an endpoint is draining", func(was, _ string) bool { return was == e[2].name })
	svc.replace(own)
	same("it is healthy again")
}

// flowFrom is the flow of a connection of the first client.
func (s *scene) flowFrom(c *conn) *bpf.Flow {
	s.Helper()
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	all := s.flows(func(f *bpf.Flow) bool {
		return f.State == bpf.FlowOpen && swap16(f.Key.ClientPort) == port && s.owns(f)
	})
	if len(all) != 1 {
		s.Fatalf("%d flows from port %d, want 1", len(all), port)
	}
	f := *all[0]
	return &f
}

// window is how much a connection's client may send at once, as it was told.
func (c *conn) window() uint32 {
	c.s.Helper()
	var info *unix.TCPInfo
	rc, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }), err)
	}
	if err != nil {
		c.s.Fatal(err)
	}
	return info.Snd_wnd
}

func init() {
	add(routed, "a body larger than the next endpoint's window", func(s *scene) {
		e := s.https(2)
		c := s.dial(s.serve(s.to("/b", e[1]), s.to("/", e[0])).at)
		c.get("/b", e[1])
		first := c.window()
		c.ask(request{path: "/", body: body(8_000_000, 1)}, e[0])
		// The endpoint takes some megabytes by now, but the other one what it took before: more than that is lost, and repeated a timer later.
		if now := c.window(); now > first+first/8 {
			s.Errorf("the client may send %d bytes, %d before", now, first)
		}
		c.ask(request{path: "/b", body: body(500_000, 2)}, e[1])
	})
	add(routed, "sticky by a header while endpoints change", func(s *scene) {
		e := s.https(5)
		own, other := s.cluster(mesh.Maglev, e[:4]...), s.cluster(mesh.RoundRobin, e[4])
		r := s.split("/", share{own, 1})
		r.Hash = mesh.Hash{Kind: mesh.HashHeader, Header: "x-user"}
		svc := s.serve(s.split("/other", share{other, 1}), r)
		kept := s.dial(svc.at)
		const users = 40
		s.stays(svc, own, other, e, users/5, func() map[int]string {
			ask := func(c *conn) func(key int) *reply {
				return func(key int) *reply {
					c.write(request{path: "/", header: []string{fmt.Sprintf("X-User: user-%d", key)}}.String())
					return c.read(http.MethodGet)
				}
			}
			on := s.owners(users, ask(kept))
			fresh := s.dial(svc.at)
			defer fresh.Close()
			if got := s.owners(users, ask(fresh)); !maps.Equal(got, on) {
				s.Errorf("on another connection: %v, was %v", got, on)
			}
			return on
		})
	})
	add(routed, "sticky by source while endpoints change", func(s *scene) {
		e := s.https(5)
		own, other := s.cluster(mesh.Maglev, e[:4]...), s.cluster(mesh.RoundRobin, e[4])
		r := s.split("/", share{own, 1})
		r.Hash = mesh.Hash{Kind: mesh.HashSource}
		svc := s.serve(s.split("/other", share{other, 1}), r)
		// Of three sources at most one may move without need, each time.
		s.stays(svc, own, other, e, 1, func() map[int]string {
			return s.owners(nClients, func(client int) *reply {
				c := s.dialAs(svc.at, how{client: client})
				defer c.Close()
				c.write(request{path: "/"}.String())
				return c.read(http.MethodGet)
			})
		})
	})
	add(guessed, "never re-bound: every number is the endpoint's own", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for i := range 8 {
			c.ask(request{path: "/", body: body(30_000*i, 1), do: do{Size: 40_000 * i, Chunked: i%2 == 1}}, e[0])
		}
		c.write("GET / HTT")
		c.write("P/1.1\r\nHost: the-host\r\n\r\n") // held meanwhile
		c.read(http.MethodGet)
		f := s.flowFrom(c)
		if f.Rebinds != 0 || f.Flags&bpf.FlowRebound != 0 {
			s.Errorf("it was re-bound: %s", flowLine(f))
		}
		for i, l := range f.Legs {
			if l.Dc != 0 || l.Ds != 0 || i > 0 && l.State != bpf.LegNone {
				s.Errorf("leg %d has deltas, or is there: %s", i, flowLine(f))
			}
		}
		c.get("/b", e[1]) // which changes them
		if f = s.flowFrom(c); f.Rebinds != 1 || f.Flags&bpf.FlowRebound == 0 || f.Legs[f.Leg].Ds == 0 {
			s.Errorf("it was not re-bound: %s", flowLine(f))
		}
	})
}
