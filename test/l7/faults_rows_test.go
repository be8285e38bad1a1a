// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"time"

	"kmesh/test/l7/gate"
)

// Rows about heads that come in pieces, with something behind or before them.

func init() {
	add(routed, "the client closes behind half of a head", func(s *scene) {
		svc, e := s.abcd()
		for _, path := range []string{"/", "/b"} { // on a leg that is confirmed, or another
			c := s.dial(svc.at)
			c.get(path, e[map[string]int{"/": 0, "/b": 1}[path]])
			c.write("GET /c HTTP/1.1\r\nHo")
			time.Sleep(pause)
			c.Close()
		}
		s.wantClosed(e...)
	})
	add(routed, "half of a head behind a request that is lost", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		c.get("/", e[0])
		lost := s.lose(gate.Up, e[0], 0, 0, gate.With)
		c.write(request{path: "/"}.String())
		time.Sleep(pause)
		text := request{path: "/"}.String()
		c.write(text[:20])
		time.Sleep(pause)
		c.write(text[20:])
		c.get2(e[0])
		if s.acted(lost) != 1 {
			s.Error("no request was lost")
		}
	})
	add(routed, "half of a head while a response runs", func(s *scene) {
		svc, e := s.abcd()
		for _, after := range []bool{false, true} { // the rest comes before, or after, the response
			c := s.dial(svc.at)
			c.write(request{path: "/", do: do{Delay: 30 * time.Millisecond, Size: 3000}}.String())
			time.Sleep(pause)
			text := request{path: "/b"}.String()
			c.write(text[:20])
			time.Sleep(pause)
			if !after {
				c.write(text[20:])
			}
			c.check(request{path: "/", do: do{Size: 3000}}, e[0])
			if after {
				c.write(text[20:])
			}
			c.check(request{path: "/b"}, e[1])
			c.get("/c", e[2])
		}
	})
	add(routed, "a request that waits for its answer keeps no hold", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			q := request{path: path, do: do{Delay: time.Second}}
			text := q.String()
			c.write(text[:20])
			time.Sleep(pause)
			c.write(text[20:])
			start := time.Now()
			eventually(s.T, "the hold", func() uint32 { return s.flowFrom(c).Hold }, func(hold uint32) bool { return hold == 0 })
			if d := time.Since(start); d > 700*time.Millisecond {
				s.Errorf("the endpoint's ACK was there at once, and the hold was given up after %v", d)
			}
			c.check(q, e[i])
		}
	})
	add(routed, "half of a head, and the rest while a slow response runs", func(s *scene) {
		if s.v6 {
			return // the clock does not know the family
		}
		svc, e := s.abcd()
		c := s.dial(svc.at)
		c.write(request{path: "/", do: do{Delay: 5500 * time.Millisecond}}.String())
		time.Sleep(pause)
		text := request{path: "/b"}.String()
		c.write(text[:20])
		time.Sleep(pause)
		c.write(text[20:]) // 4 ms later: nothing of the client's is slow
		c.check(request{path: "/"}, e[0])
		c.check(request{path: "/b"}, e[1])
	})
}

// get2 reads the replies to two requests for "/".
func (c *conn) get2(e *server) {
	c.s.Helper()
	for range 2 {
		c.check(request{path: "/"}, e)
	}
}
