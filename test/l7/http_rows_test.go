// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// Rows about requests and responses.

// abcd is a service whose paths /b, /c and /d lead to the second to fourth server, all else to the first.
func (s *scene) abcd() (*service, []*server) {
	s.Helper()
	e := s.https(4)
	return s.serve(s.to("/b", e[1]), s.to("/c", e[2]), s.to("/d", e[3]), s.to("/", e[0])), e
}

func prefixed(path string) mesh.RouteMatch {
	return mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathPrefix, Value: path}}
}

// refusedBody is refused for a request with a large body. The connection may end, if the answer says so; else it must
// go on.
func (c *conn) refusedBody(q request, status int, further func()) {
	c.s.Helper()
	if r := c.refused(q.String(), status); r.Close {
		c.expectEnd()
		return
	}
	further()
}

// pause lets a segment go before the next one.
const pause = 2 * time.Millisecond

// cut cuts a text at some places.
func cut(text string, at ...int) []string {
	var out []string
	from := 0
	for _, i := range at {
		out = append(out, text[from:i])
		from = i
	}
	return append(out, text[from:])
}

func init() {
	add(everywhere, "routed per request", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		peers := map[string]bool{}
		for range 4 {
			for i, path := range []string{"/", "/b", "/c", "/d"} {
				r := c.ask(request{path: path, body: body(100*i, 1), do: do{Size: 1000 * i, Seed: 7}}, e[i])
				peers[r.Header.Get("X-Peer")] = true
			}
		}
		for _, e := range e {
			if s.mode != direct && e.accepted() != 1 {
				s.Errorf("%s: %d connections for 4 requests of one, want 1", e.name, e.accepted())
			}
		}
		for peer := range peers {
			p, err := netip.ParseAddrPort(peer)
			if err != nil || p.Addr() != addrOf(s.clients[0], s.v6) {
				s.Errorf("a server saw %s (%v), want the client's address", peer, err)
			}
			if s.mode != direct && p.Port()&0xc000 != 0x4000 {
				s.Errorf("a server saw %s, want a port of the range of legs", peer)
			}
		}
	})
	add(routed, "first request elsewhere", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b", "/c", "/d"} {
			c := s.dial(svc.at)
			c.get(path, e[i])
			c.get("/b", e[1])
		}
		s.wantServed(e, 1, 5, 1, 1)
	})
	add(routed, "by host, method, header and query", func(s *scene) {
		e := s.https(6)
		host := func(name string, domains []string, routes ...*mesh.Route) *mesh.VirtualHost {
			return &mesh.VirtualHost{Name: name, Domains: domains, Routes: routes}
		}
		header := s.to("/", e[2])
		header.Match.Headers = []mesh.HeaderMatch{{Name: "x-canary", Match: mesh.StringMatch{Value: "yes"}}}
		method := s.to("/", e[3])
		method.Match.Headers = []mesh.HeaderMatch{{Name: ":method", Match: mesh.StringMatch{Value: "POST"}}}
		query := s.to("/", e[4])
		query.Match.Query = []mesh.QueryMatch{{Name: "v", Match: mesh.StringMatch{Value: "2"}}}
		svc := s.serveHosts(
			host("exact", []string{"one.example"}, s.to("/", e[1])),
			host("wild", []string{"*.example"}, header, method, query, s.to("/", e[5])),
			host("all", []string{"*"}, s.to("/", e[0])))
		c := s.dial(svc.at)
		for range 2 {
			for _, q := range []struct {
				request
				want int
			}{
				{request{path: "/x", host: "one.example"}, 1},
				{request{path: "/x", host: "ONE.Example"}, 1},
				{request{path: "/x", host: "two.example"}, 5},
				{request{path: "/x", host: "a.one.example", header: []string{"X-Canary: yes"}}, 2},
				{request{path: "/x", host: "two.example", method: "POST", body: "body"}, 3},
				{request{path: "/x?a=1&v=2", host: "two.example"}, 4},
				{request{path: "/x", host: "example"}, 0},
			} {
				c.ask(q.request, e[q.want])
			}
		}
	})
	add(routed, "hosts of every length", func(s *scene) {
		e := s.https(4)
		of := map[string]*server{}
		var hosts []*mesh.VirtualHost
		serve := func(domain string, e *server) {
			of[domain] = e
			hosts = append(hosts, &mesh.VirtualHost{Name: domain, Domains: []string{domain}, Routes: []*mesh.Route{s.to("/", e)}})
		}
		// A key is made by the word, and from 57 bytes on it is another one.
		lengths := []int{3, 7, 8, 9, 15, 16, 17, 47, 48, 49, 54, 55, 56, 57, 58, 63, 64, 65, 128, 200, 253}
		var asked []string
		for _, n := range lengths {
			exact, suffix, prefix := "e"+strings.Repeat("x", n-1), strings.Repeat("s", n-1)+"w", "p"+strings.Repeat("q", n-1)
			serve(exact, e[1])
			serve("*"+suffix, e[2])
			serve(prefix+"*", e[3])
			asked = append(asked, exact, strings.ToUpper(exact), exact+"y", "A"+suffix, "ab.C"+strings.ToUpper(suffix), suffix, prefix+"Z", prefix)
		}
		serve("*", e[0])
		svc := s.serveHosts(hosts...)
		c := s.dial(svc.at)
		for _, host := range asked {
			c.ask(request{path: "/", host: host}, of[explain.FindVirtualHost(svc.mesh.HTTP, host).Name])
		}
	})
	add(routed, "no route, no host", func(s *scene) {
		e := s.https(2)
		svc := s.serveHosts(&mesh.VirtualHost{Name: "v", Domains: []string{"the-host"}, Routes: []*mesh.Route{s.to("/a", e[0]), s.to("/b", e[1])}})
		for _, first := range []string{"", "/a", "/b"} {
			c := s.dial(svc.at)
			if first != "" {
				c.get(first, map[string]*server{"/a": e[0], "/b": e[1]}[first])
			}
			for range 2 {
				c.refused(request{path: "/none"}.String(), 404)
				c.refused(request{path: "/a", host: "other"}.String(), 404)
				if r := c.refused(request{path: "/none", method: "HEAD"}.String(), 404); len(r.body) != 0 {
					s.Errorf("a body in the answer to HEAD: %q", r.body)
				}
				c.get("/a", e[0])
				c.get("/b", e[1])
			}
			c.refusedBody(request{path: "/none", method: "POST", body: body(50_000, 1)}, 404, func() { c.get("/b", e[1]) })
		}
	})
	add(routed, "answers of the program's own", func(s *scene) {
		e := s.https(2)
		redirect := &mesh.Route{Name: "redirect", Match: prefixed("/old"), Redirect: &mesh.Redirect{Status: 308, Host: "new.example", Prefix: "/new"}}
		fixed := &mesh.Route{Name: "direct", Match: prefixed("/direct"), Direct: &mesh.DirectResponse{Status: 200, Body: []byte(body64(4096))}}
		teapot := s.to("/teapot", e[0])
		teapot.Abort = &mesh.Abort{Fraction: mesh.Fraction{Numerator: 100, Denominator: 100}, Status: 418}
		hole := s.split("/hole", share{&mesh.Cluster{Name: "hole", Kind: mesh.Blackhole}, 1})
		s.clusters = append(s.clusters, &mesh.Cluster{Name: "hole", Kind: mesh.Blackhole})
		unsupported := &mesh.Route{Name: "unsupported", Match: prefixed("/not"), Unsupported: true}
		svc := s.serve(redirect, fixed, teapot, hole, unsupported, s.to("/b", e[1]), s.to("/", e[0]))
		for _, first := range []string{"", "/", "/b"} {
			c := s.dial(svc.at)
			if first != "" {
				c.get(first, map[string]*server{"/": e[0], "/b": e[1]}[first])
			}
			r := c.refused(request{path: "/old/a?b=c"}.String(), 308)
			if got := r.Header.Get("Location"); got != "http://new.example/new/a?b=c" {
				s.Errorf("Location %q", got)
			}
			c.get("/b", e[1])
			if r := c.refused(request{path: "/direct"}.String(), 200); string(r.body) != body64(4096) {
				s.Errorf("a body of %d bytes, want 4096", len(r.body))
			}
			if r := c.refused(request{path: "/direct", method: "HEAD"}.String(), 200); len(r.body) != 0 {
				s.Errorf("a body in the answer to HEAD")
			}
			c.refused(request{path: "/teapot"}.String(), 418)
			c.get("/", e[0])
			c.refused(request{path: "/hole"}.String(), 503)
			c.refused(request{path: "/not"}.String(), 503)
			c.refusedBody(request{path: "/direct", method: "POST", body: body(50_000, 1)}, 200, func() {
				c.refusedBody(request{path: "/direct", method: "POST", body: body(50_000, 1), chunks: []int{10_000}}, 200, func() { c.get("/b", e[1]) })
			})
		}
	})
	add(routed, "answers of the program's own, pipelined", func(s *scene) {
		e := s.https(2)
		fixed := &mesh.Route{Name: "direct", Match: prefixed("/direct"), Direct: &mesh.DirectResponse{Status: 200, Body: []byte("direct")}}
		svc := s.serve(fixed, s.to("/b", e[1]), s.to("/", e[0]))
		for _, order := range [][]string{{"/direct", "/direct"}, {"/", "/direct", "/b", "/direct", "/"}, {"/direct", "/b"}} {
			c := s.dial(svc.at)
			var text strings.Builder
			for _, path := range order {
				text.WriteString(request{path: path}.String())
			}
			c.write(text.String())
			for _, path := range order {
				if path == "/direct" {
					if r := c.read("GET"); string(r.body) != "direct" {
						s.Fatalf("status %d, %q", r.StatusCode, r.body)
					}
					continue
				}
				c.check(request{path: path}, map[string]*server{"/": e[0], "/b": e[1]}[path])
			}
		}
	})
	add(everywhere, "a head in several segments", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			q := request{path: path, header: []string{"X-Some: thing"}}
			text := q.String()
			for _, at := range [][]int{{1}, {3}, {4}, {5}, {len(text) - 1}, {len(text) - 2}, {len(text) - 4}, {6, 20, 30}, {2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22}} {
				c := s.dial(svc.at)
				for range 2 { // the first request of a connection, and a later one
					for _, part := range cut(text, at...) {
						c.write(part)
						time.Sleep(pause)
					}
					c.check(q, e[i])
					c.get("/c", e[2])
				}
			}
		}
	})
	add(everywhere, "a head byte by byte", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for i, path := range []string{"/b", "/", "/b", "/b"} {
			q := request{path: path, header: []string{"X-Some: " + strings.Repeat("thing", 20)}}
			if i == 3 {
				q.method, q.body = "POST", "body"
			}
			c.write(strings.Split(q.String(), "")...)
			c.check(q, map[string]*server{"/": e[0], "/b": e[1]}[path])
		}
	})
	add(everywhere, "a head of almost 8 KiB", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for _, path := range []string{"/b", "/", "/b"} {
			q := request{path: path, body: body(5000, 1)}
			fill := 8192 - len(q.head()) - len("X-Fill: \r\n")
			q.header = []string{"X-Fill: " + strings.Repeat("x", fill)}
			c.ask(q, map[string]*server{"/": e[0], "/b": e[1]}[path])
		}
	})
	add(routed, "a head of more than 8 KiB", func(s *scene) {
		svc, e := s.abcd()
		for later := range 2 {
			for _, size := range []int{8192, 20_000} {
				c := s.dial(svc.at)
				if later == 1 {
					c.get("/b", e[1])
				}
				c.refused(request{path: "/b", header: []string{"X-Fill: " + strings.Repeat("x", size)}}.String(), 431)
				c.expectEnd()
			}
		}
	})
	add(everywhere, "a body with the head", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for i, n := range []int{1, 1000, 9000, 200_000, 200_000, 200_000, 1_000_000} {
			for j, path := range []string{"/", "/b", "/c"} {
				c.ask(request{method: "POST", path: path, body: body(n, uint64(i)), do: do{Size: n / 2, Seed: uint64(j)}}, e[j])
			}
		}
	})
	add(routed, "200 kB in the first write, elsewhere", func(s *scene) {
		svc, e := s.abcd()
		for range 3 {
			c := s.dial(svc.at)
			c.ask(request{method: "POST", path: "/b", body: body(200_000, 1)}, e[1])
			c.ask(request{method: "POST", path: "/", body: body(200_000, 2)}, e[0])
		}
	})
	add(routed, "malformed", func(s *scene) {
		svc, e := s.abcd()
		for text, status := range map[string]int{
			"GET x HTTP/1.1\r\nHost: a\r\n\r\n":                                                                    400,
			"GET / HTTP/1.1\r\n\r\n":                                                                               400,
			"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n":                                                         400,
			"GET / HTTP/1.1\nHost: a\n\n":                                                                          400,
			"GET / HTTP/1.1\r\nHost: a\r\n x\r\n\r\n":                                                              400,
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx":                        400,
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":       400,
			"GET / HTTP/3.0\r\nHost: a\r\n\r\n":                                                                    505,
			"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n":                                                                  400,
			"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", 120) + "\r\n":                             431,
			"GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n":                                                        400,
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n":                      400,
			"GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n":                                                     400,
			"GET / HTTP/1.1\r\nHost: a\r\nX-Y: a\x00b\r\n\r\n":                                                     400,
			"GET /" + strings.Repeat("long", 2500) + " HTTP/1.1\r\nHost: a\r\n\r\n":                                431,
			"OPTIONS * HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n (never looked at)": 400,
		} {
			if _, out := head.ParseRequest([]byte(text)); out.Status != status {
				s.Fatalf("%.60q: the reference says %+v, not %d", text, out, status)
			}
			for later := range 2 {
				c := s.dial(svc.at)
				if later == 1 {
					c.get("/b", e[1])
				}
				r := c.refused(text, status)
				if !r.Close {
					s.Errorf("%.60q: the answer does not say that the connection ends", text)
				}
				c.expectEnd()
			}
		}
	})
	add(routed, "pipelining to one cluster", func(s *scene) {
		svc, e := s.abcd()
		for _, first := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			want := map[string]*server{"/": e[0], "/b": e[1]}[first]
			var all []request
			var text strings.Builder
			for i := range 8 {
				q := request{path: fmt.Sprintf("%s?%d", first, i), do: do{Size: 100 * i, Seed: uint64(i)}}
				if i%3 == 2 {
					q.method, q.body = "POST", body(500*i, uint64(i))
				}
				all = append(all, q)
				text.WriteString(q.String())
			}
			c.write(text.String())
			for _, q := range all {
				c.check(q, want)
			}
			c.get("/c", e[2])
		}
	})
	add(routed, "pipelining to different clusters", func(s *scene) {
		svc, e := s.abcd()
		for _, delay := range []time.Duration{0, 30 * time.Millisecond} {
			c := s.dial(svc.at)
			var all []request
			var text strings.Builder
			// Each that is held waits for a timer of the client's, which doubles.
			for i, path := range []string{"/", "/b", "/b", "/c", "/", "/d", "/b"}[:many(4, 7)] {
				q := request{path: path, do: do{Size: 300 * i, Seed: uint64(i), Delay: delay}}
				if i%3 == 2 {
					q.method, q.body = "POST", body(500*i, uint64(i))
				}
				all = append(all, q)
				text.WriteString(q.String())
			}
			c.write(text.String())
			for _, q := range all {
				c.check(q, map[string]*server{"/": e[0], "/b": e[1], "/c": e[2], "/d": e[3]}[q.path])
			}
		}
	})
	add(routed, "pipelining, in pieces", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		one := request{method: "POST", path: "/", body: body(3000, 1), do: do{Delay: 20 * time.Millisecond, Size: 3000}}
		two := request{path: "/b", do: do{Size: 3000, Chunked: true}}
		three := request{path: "/c"}
		text := one.String() + two.String() + three.String()
		n, m := len(one.String()), len(one.String()+two.String())
		for _, at := range [][]int{{n - 1, m - 1}, {n + 1, m + 1}, {n, m}, {100, n + 10, n + 20, m - 2, m + 3}} {
			for _, part := range cut(text, at...) {
				c.write(part)
				time.Sleep(pause)
			}
			c.check(one, e[0])
			c.check(two, e[1])
			c.check(three, e[2])
		}
	})
	add(everywhere, "a chunked request body", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for i, chunks := range [][]int{{}, {1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {10_000, 5, 20_000}, {0xfff, 0x1000, 0x1001}, {1448, 1448}} {
			for j, path := range []string{"/b", "/", "/c"} {
				q := request{method: "POST", path: path, body: body(40_000, uint64(i)), chunks: chunks, do: do{Size: 10_000, Chunked: true}}
				if j == 2 { // in segments of its own
					text := q.String()
					at := []int{len(q.head()), len(q.head()) + 1, len(q.head()) + 3, len(text) - 4, len(text) - 1}
					for _, part := range cut(text, at...) {
						c.write(part)
						time.Sleep(pause)
					}
					c.check(q, e[2])
					continue
				}
				c.ask(q, map[string]*server{"/": e[0], "/b": e[1]}[path])
			}
		}
	})
	add(everywhere, "a chunked request body with a trailer", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for i, path := range []string{"/b", "/"} {
			q := request{method: "POST", path: path, body: "abcdef", chunks: []int{2}}
			c.write(q.head() + "2;name=value\r\nab\r\n0004\r\ncdef\r\n0\r\nX-Trailer: yes\r\n\r\n")
			c.check(q, e[1-i])
		}
	})
	add(everywhere, "HEAD, 204, 304 and hints", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for _, q := range []request{
			{method: "HEAD", do: do{Size: 5000}},
			{do: do{Status: http.StatusNoContent}},
			{do: do{Status: http.StatusNotModified}},
			{do: do{Hints: 2, Size: 5000, Chunked: true}},
			{method: "HEAD", do: do{Size: 5000, Chunked: true}},
			{do: do{Status: http.StatusInternalServerError, Size: 10}},
			{method: "DELETE", do: do{}},
		} {
			for i, path := range []string{"/", "/b", "/c"} {
				q.path = path
				c.ask(q, e[i])
			}
		}
	})
	add(everywhere, "Expect: 100-continue", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b", "/c"} {
			c := s.dial(svc.at)
			for range 2 {
				q := request{method: "PUT", path: path, header: []string{"Expect: 100-continue"}, body: body(100_000, 1)}
				c.write(q.head())
				c.expect("HTTP/1.1 100 Continue\r\n\r\n")
				c.write(q.body)
				c.check(q, e[i])
				c.ask(q, e[i]) // and without waiting
				c.get("/d", e[3])
			}
		}
	})
	add(everywhere, "HTTP/1.0", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			q := request{path: path, version: "HTTP/1.0", do: do{Size: 100}}
			c.ask(q, e[i])
			c.expectEnd()

			c = s.dial(svc.at)
			q.header = []string{"Connection: keep-alive"}
			c.ask(q, e[i])
			c.get("/c", e[2])

			c = s.dial(svc.at) // no Host is needed
			c.write("GET " + path + " HTTP/1.0\r\n\r\n")
			if r := c.read("GET"); r.StatusCode != 200 || s.mode != direct && r.server() != e[i].name {
				s.Errorf("without Host: status %d of %q, want 200 of %s", r.StatusCode, r.server(), e[i].name)
			}
			c.expectEnd()
		}
	})
	add(everywhere, "Connection: close", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			c.get("/c", e[2])
			c.ask(request{path: path, header: []string{"Connection: close"}, do: do{Size: 50_000}}, e[i])
			c.expectEnd()
			c.Close()
			c = s.dial(svc.at)
			c.get("/c", e[2])
			c.ask(request{path: path, do: do{Size: 50_000, Close: true, Chunked: true}}, e[i])
			c.expectEnd()
			c.Close()
		}
		s.wantClosed(e...)
	})
	add(everywhere, "a response until the end of the connection", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b", "/c"} {
			c := s.dial(svc.at)
			if i == 2 {
				c.get("/d", e[3])
			}
			c.write(request{path: path, do: do{Size: 300_000, Seed: 3, UntilClose: true}}.String())
			r := c.read("GET")
			if string(r.body) != body(300_000, 3) || s.mode != direct && r.server() != e[i].name {
				s.Errorf("%s: %d bytes of %q, want 300000 of %s", path, len(r.body), r.server(), e[i].name)
			}
			c.Close()
		}
		s.wantClosed(e...)
	})
	add(everywhere, "a response that is not HTTP", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			c.write(request{path: path, do: do{Raw: "hello\r\nworld\r\n"}}.String())
			c.expect("hello\r\nworld\r\n")
			c.expectEnd()
			_ = e[i]
		}
	})
	add(everywhere, "Upgrade", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			c.get("/c", e[2])
			q := request{path: path, header: []string{"Connection: Upgrade", "Upgrade: echo"}}
			c.ask(q, e[i]) // not granted
			q.do.Upgrade = true
			c.write(q.String())
			if r := c.read("GET"); r.StatusCode != 101 || s.mode != direct && r.server() != e[i].name {
				s.Fatalf("status %d of %q, want 101 of %s", r.StatusCode, r.server(), e[i].name)
			}
			for _, text := range []string{"GET /d HTTP/1.1\r\nHost: a\r\n\r\n", "\x00\x01\x02", body(100_000, 2), "HTTP/1.1 200 OK\r\n\r\n"} {
				c.write(text)
				c.expect(text)
			}
			if err := c.CloseWrite(); err != nil {
				s.Fatal(err)
			}
			c.expectEnd()
		}
	})
	add(guessed|plain, "CONNECT", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		c.write("CONNECT somewhere:443 HTTP/1.1\r\nHost: somewhere:443\r\n\r\n")
		if r := c.read("CONNECT"); r.StatusCode != 200 || r.server() != e[0].name {
			s.Fatalf("status %d of %q, want 200 of %s", r.StatusCode, r.server(), e[0].name)
		}
		for _, text := range []string{"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", "\x16\x03\x01", body(50_000, 2)} {
			c.write(text)
			c.expect(text)
		}
	})
	add(everywhere, "a slow reader, a slow server", func(s *scene) {
		svc, e := s.abcd()
		for i, path := range []string{"/", "/b"} {
			c := s.dial(svc.at)
			q := request{path: path, do: do{Size: 8 << 20, Seed: 4}}
			c.write(q.String())
			time.Sleep(400 * time.Millisecond) // both windows are full by now
			c.check(q, e[i])
			c.ask(request{method: "POST", path: path, body: body(3<<20, 5), do: do{Slow: 2 * time.Millisecond}}, e[i])
			c.get("/c", e[2])
		}
	})
	add(routed, "a head that takes too long", func(s *scene) {
		if s.v6 {
			return // the clock does not know the family
		}
		svc, e := s.abcd()
		first, later := s.dial(svc.at), s.dial(svc.at)
		later.get("/b", e[1])
		text := request{path: "/"}.String()
		first.write(text[:20])
		later.write(text[:20])
		time.Sleep(5500 * time.Millisecond)
		for _, c := range []*conn{first, later} {
			c.refused(text[20:], 408)
			c.expectEnd()
		}
	})
}

// wantServed fails unless the servers have answered so many requests each.
func (s *scene) wantServed(e []*server, want ...int) {
	s.Helper()
	for i, n := range want {
		if got := e[i].served(); got != n {
			s.Errorf("%s served %d requests, want %d", e[i].name, got, n)
		}
	}
}
