// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"sync"
	"time"

	"kmesh/test/l7/gate"
	"kmesh/test/node/wire"
)

// Rows about how connections begin and end.

const (
	synOnly = gate.SYN
	synAck  = gate.SYN | gate.ACK
)

// lose drops one packet with these flags towards, or from, a server.
func (s *scene) lose(d gate.Direction, e *server, mask, value uint8, p gate.Payload) *gate.Active {
	s.Helper()
	return s.rule(gate.Rule{Direction: d, Action: gate.Drop, Payload: p, Port: e.port, Mask: mask, Value: value, Limit: 1})
}

// hole drops every SYN to a server: it is there, and nobody hears of it.
func (s *scene) hole(i int) *server {
	s.Helper()
	e := s.http(i)
	s.rule(gate.Rule{Direction: gate.Up, Action: gate.Drop, Port: e.port, Mask: synAck, Value: synOnly})
	return e
}

// took runs f and fails if it takes longer.
func (s *scene) took(limit time.Duration, what string, f func()) {
	s.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d > limit {
		s.Errorf("%s took %v, want at most %v", what, d, limit)
	}
}

// quick runs f n times and fails unless the fastest needed no timer of TCP, the shortest of which is 200 ms.
func (s *scene) quick(n int, what string, f func()) {
	s.Helper()
	best := time.Hour
	for range n {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	if best > 150*time.Millisecond {
		s.Errorf("%s took %v at best", what, best)
	}
}

func init() {
	add(everywhere, "one request", func(s *scene) {
		e := s.http(0)
		s.dial(s.serve(s.to("/", e)).at).get("/", e)
	})
	add(everywhere, "SYN lost", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		r := s.lose(gate.Up, e, synAck, synOnly, gate.Any)
		s.took(4*time.Second, "the request", func() { s.dial(svc.at).get("/", e) })
		if s.acted(r) != 1 {
			s.Error("no SYN was lost")
		}
	})
	add(everywhere, "SYN-ACK lost", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		r := s.lose(gate.Down, e, synAck, synAck, gate.Any)
		s.took(4*time.Second, "the request", func() { s.dial(svc.at).get("/", e) })
		if s.acted(r) != 1 {
			s.Error("no SYN-ACK was lost")
		}
	})
	add(everywhere, "request lost", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		r := s.lose(gate.Up, e, 0, 0, gate.With)
		s.dial(svc.at).get("/", e)
		if s.acted(r) != 1 {
			s.Error("no request was lost")
		}
	})
	add(everywhere, "response lost", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		r := s.lose(gate.Down, e, 0, 0, gate.With)
		s.dial(svc.at).ask(request{path: "/", do: do{Size: 50_000}}, e)
		if s.acted(r) != 1 {
			s.Error("no response was lost")
		}
	})
	add(routed, "re-bind: SYN, SYN-ACK or replay lost", func(s *scene) {
		e := s.https(4)
		svc := s.serve(s.to("/b", e[1]), s.to("/c", e[2]), s.to("/d", e[3]), s.to("/", e[0]))
		s.lose(gate.Up, e[1], synAck, synOnly, gate.Any)
		s.lose(gate.Down, e[2], synAck, synAck, gate.Any)
		s.lose(gate.Up, e[3], 0, 0, gate.With)
		c := s.dial(svc.at)
		for i, path := range []string{"/", "/b", "/c", "/d"} {
			s.took(4*time.Second, path, func() { c.get(path, e[i]) })
		}
	})
	add(routed, "endpoint refuses", func(s *scene) {
		no, yes := s.refusing(0), s.http(1)
		svc := s.serve(s.to("/", no, yes))
		s.quick(6, "a connection with a refusing endpoint", func() { s.dial(svc.at).get("/", yes) })
	})
	add(routed, "re-bind: endpoint refuses", func(s *scene) {
		e, no, yes := s.http(0), s.refusing(0), s.http(1)
		svc := s.serve(s.to("/b", no, yes), s.to("/", e))
		s.quick(4, "a re-bind with a refusing endpoint", func() {
			c := s.dial(svc.at)
			c.get("/", e)
			c.get("/b", yes)
			c.get("/", e)
		})
	})
	add(guessed, "every endpoint refuses", func(s *scene) {
		svc := s.serve(s.to("/", s.refusing(0), s.refusing(1)))
		s.quick(3, "connect", func() {
			if _, errno := s.try(svc.at, how{}); errno != "ECONNREFUSED" {
				s.Errorf("connect: %q, want ECONNREFUSED", errno)
			}
		})
	})
	add(local, "every endpoint refuses", func(s *scene) {
		svc := s.serve(s.to("/", s.refusing(0), s.refusing(1)))
		s.dial(svc.at).refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 503)
	})
	add(routed, "re-bind: every endpoint refuses", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/b", s.refusing(0), s.refusing(1)), s.to("/", e))
		c := s.dial(svc.at)
		for range 2 {
			c.get("/", e)
			c.refused("GET /b HTTP/1.1\r\nHost: a\r\n\r\n", 503)
		}
		c.get("/", e)
		first := s.dial(svc.at)
		first.refused("GET /b HTTP/1.1\r\nHost: a\r\n\r\n", 503)
		first.get("/", e)
	})
	add(routed, "black hole", func(s *scene) {
		hole, e := s.hole(0), s.http(1)
		svc := s.serve(s.to("/", hole, e))
		for range 3 {
			s.took(5*time.Second, "a connection with a black hole", func() { s.dial(svc.at).get("/", e) })
		}
		s.took(500*time.Millisecond, "a connection after the black hole is known", func() { s.dial(svc.at).get("/", e) })
	})
	add(routed, "re-bind: black hole", func(s *scene) {
		hole, e := s.hole(0), s.https(2)
		svc := s.serve(s.to("/b", hole, e[1]), s.to("/", e[0]))
		for range 2 {
			c := s.dial(svc.at)
			c.get("/", e[0])
			s.took(5*time.Second, "a re-bind with a black hole", func() { c.get("/b", e[1]) })
			c.get("/", e[0])
		}
	})
	add(routed, "re-bind: black hole only", func(s *scene) {
		hole, e := s.hole(0), s.http(1)
		c := s.dial(s.serve(s.to("/b", hole), s.to("/", e)).at)
		c.get("/", e)
		c.refused("GET /b HTTP/1.1\r\nHost: a\r\n\r\n", 503)
		c.get("/", e)
	})
	add(routed, "no endpoint anywhere", func(s *scene) {
		for _, svc := range []*service{s.serve(s.to("/")), s.serve(s.to("/b"), s.to("/c"), s.to("/"))} {
			if _, errno := s.try(svc.at, how{}); errno != "ECONNREFUSED" {
				s.Errorf("connect: %q, want ECONNREFUSED", errno)
			}
		}
	})
	add(routed, "no endpoint for the guess", func(s *scene) {
		e := s.http(0)
		c := s.dial(s.serve(s.to("/b", e), s.to("/")).at)
		c.refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 503)
		c.get("/b", e)
		c.refused("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 503)
	})
	add(everywhere, "the client's port towards two services of one endpoint", func(s *scene) {
		e, other := s.http(0), s.http(0)
		one, two := s.serve(s.to("/", e)), s.serve(s.to("/", e))
		if s.mode == direct {
			two = s.serve(s.to("/", other))
		}
		port := s.freePort()
		a, b := s.dialAs(one.at, how{bind: port}), s.dialAs(two.at, how{bind: port})
		for range 3 {
			a.get("/", e)
			b.get("/", e)
		}
	})
	add(everywhere, "the client's port towards the endpoint itself", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		port := s.freePort()
		a := s.dialAs(svc.at, how{bind: port})
		a.get("/", e)
		if s.mode != direct {
			b := s.dialAs(e.addr(s.v6), how{bind: port})
			b.get("/", e)
		}
		a.get("/", e)
	})
	add(everywhere, "a port used again at once", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		port := s.freePort()
		for i := range 20 {
			var c *conn
			// The server's last ACK may be on its way, and the port is not free before.
			eventually(s.T, "connect from a port used before", func() (errno string) {
				c, errno = s.try(svc.at, how{bind: port})
				return errno
			}, func(errno string) bool { return errno != "EADDRNOTAVAIL" })
			if c == nil {
				s.Fatal("no connection from a port used before")
			}
			c.get("/", e)
			if i%2 == 0 {
				c.reset()
				continue
			}
			c.ask(request{path: "/", do: do{Close: true}}, e)
			c.expectEnd()
			c.Close()
		}
	})
	add(everywhere, "two pods with the same port", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		port := s.freePort()
		a, b := s.dialAs(svc.at, how{bind: port}), s.dialAs(svc.at, how{bind: port, client: 1})
		for range 3 {
			a.get("/", e)
			b.get("/", e)
		}
		a.Close()
		b.get("/", e)
	})
	add(routed, "a pod that is its own endpoint", func(s *scene) {
		self, e := s.httpIn(s.clients[0]), s.http(0)
		svc := s.serve(s.to("/b", e), s.to("/", self))
		c := s.dial(svc.at)
		c.get("/", self)
		c.get("/b", e)
		c.ask(request{path: "/", body: body(100_000, 1), do: do{Size: 100_000}}, self)
	})
	add(everywhere, "a v4-mapped socket", func(s *scene) {
		if s.v6 {
			return
		}
		svc, e := s.abcd()
		c := s.dialAs(svc.at, how{network: wire.TCPMapped})
		c.get("/", e[0])
		c.get("/b", e[1])
	})
	add(everywhere, "an MPTCP socket", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dialAs(svc.at, how{network: wire.MPTCP})
			c.get(path, e[i])
			c.ask(request{path: "/c", body: body(100_000, 1), do: do{Size: 100_000}}, e[2])
		}
	})
	add(guessed|plain, "data in the SYN", func(s *scene) {
		e := s.raw(0, echo)
		svc := s.serve(s.to("/", e))
		// What is in a SYN has not been matched: it must not leave the pod.
		var early *gate.Active
		if s.mode != direct {
			early = s.rule(gate.Rule{Direction: gate.Up, Action: gate.Drop, Payload: gate.With, Port: e.port, Mask: synAck, Value: synOnly})
		}
		for range 2 {
			c := s.dialAs(svc.at, how{fastOpen: true})
			c.expect("e0:hello\n")
			c.write("more")
			c.expect("more")
		}
		if early != nil && s.acted(early) != 0 {
			s.Error("a SYN left the pod with data that nothing had matched")
		}
	})
	add(everywhere, "other options of TCP", func(s *scene) {
		e := []*server{s.http(0), s.http(1), s.http(bareServer)}
		for client := range nClients {
			for guess := range e {
				svc := s.serve(s.to("/0", e[0]), s.to("/1", e[1]), s.to("/2", e[2]), s.to("/", e[guess]))
				c := s.dialAs(svc.at, how{client: client})
				for i := range 2 * len(e) {
					i = (i + guess + client) % len(e)
					c.ask(request{path: fmt.Sprintf("/%d", i), body: body(150_000, 1), do: do{Size: 150_000}}, e[i])
				}
			}
		}
	})
	add(everywhere, "an endpoint with a smaller MSS", func(s *scene) {
		e := []*server{s.http(0), s.http(smallServer)}
		for guess := range e {
			svc := s.serve(s.to("/0", e[0]), s.to("/1", e[1]), s.to("/", e[guess]))
			c := s.dial(svc.at)
			for i := range 6 {
				c.ask(request{path: fmt.Sprintf("/%d", i%2), body: body(1+i*700, 1), do: do{Size: 150_000}}, e[i%2])
			}
		}
	})
	add(everywhere, "many connections at once", func(s *scene) {
		svc, e := s.abcd()
		var all []*conn
		for range 150 {
			all = append(all, s.dial(svc.at))
		}
		for i, path := range []string{"/", "/b", "/"} {
			for _, c := range all {
				c.write(request{path: path}.String())
			}
			for _, c := range all {
				c.check(request{path: path}, e[i%2])
			}
		}
		for _, c := range all {
			c.Close()
		}
		s.wantClosed(e...)
	})
	add(everywhere, "FIN before data", func(s *scene) {
		e := s.http(0)
		c := s.dial(s.serve(s.to("/", e)).at)
		if err := c.CloseWrite(); err != nil {
			s.Fatal(err)
		}
		c.expectEnd()
		s.wantClosed(e)
	})
	add(everywhere, "RST before data", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		port := s.freePort()
		s.dialAs(svc.at, how{bind: port}).reset()
		s.wantClosed(e)
		s.dialAs(svc.at, how{bind: port}).get("/", e)
	})
	add(everywhere, "half close after the request", func(s *scene) {
		e := s.https(2)
		svc := s.serve(s.to("/b", e[1]), s.to("/", e[0]))
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			c.write(request{path: path, body: body(3000, 1), do: do{Size: 200_000, Delay: 20 * time.Millisecond}}.String())
			if err := c.CloseWrite(); err != nil {
				s.Fatal(err)
			}
			c.check(request{path: path, body: body(3000, 1), do: do{Size: 200_000}}, e[i])
			c.expectEnd()
		}
		s.wantClosed(e...)
	})
	add(everywhere, "the client closes", func(s *scene) {
		e := s.https(3)
		svc := s.serve(s.to("/b", e[1]), s.to("/c", e[2]), s.to("/", e[0]))
		c := s.dial(svc.at)
		c.get("/", e[0])
		c.get("/b", e[1])
		c.get("/c", e[2])
		c.Close()
		s.wantClosed(e...)
		c = s.dial(svc.at)
		c.get("/", e[0])
		c.get("/b", e[1])
		c.reset()
		s.wantClosed(e...)
	})
	add(everywhere, "the client goes away in the middle of a response", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		for range 3 {
			c := s.dial(svc.at)
			c.write(request{path: "/", do: do{Size: 20 << 20}}.String())
			c.expect("HTTP/1.1 200 OK\r\n")
			c.Close()
		}
		s.wantClosed(e)
	})
	add(everywhere, "the server breaks off in the middle of a response", func(s *scene) {
		e := s.http(0)
		c := s.dial(s.serve(s.to("/", e)).at)
		c.write(request{path: "/", do: do{Size: 1 << 20, Break: true}}.String())
		s.took(5*time.Second, "noticing the end", func() {
			if _, err := c.tryRead("GET"); err == nil {
				s.Error("half of a response was taken for a whole one")
			}
		})
	})
}

// wantClosed fails unless the servers' connections end.
func (s *scene) wantClosed(e ...*server) {
	s.Helper()
	for _, e := range e {
		eventually(s.T, "open connections of "+e.name, e.open, func(n int) bool { return n == 0 })
	}
}

var ports struct {
	sync.Mutex
	last uint16
}

// freePort is a port that no other row uses, outside the ephemeral range and the legs'.
func (s *scene) freePort() uint16 {
	ports.Lock()
	defer ports.Unlock()
	ports.last++
	return 10_000 + ports.last
}
