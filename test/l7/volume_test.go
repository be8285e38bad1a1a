// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"kmesh/helper/mesh"
	"kmesh/test/l7/gate"
)

// many is n requests, or the short run's.
func many(short, n int) int {
	if full {
		return n
	}
	return short
}

// volume is a test of many requests.
type volume struct {
	name string
	run  func(s *scene)
	in   where
	// fullOnly: not in the short run, since it waits for TCP's timers: those of lost packets, and those that bring
	// held requests again, which double.
	fullOnly bool
}

var volumes = []volume{
	{"switching", switching, everywhere, false},
	{"switching, 1 % lost", func(s *scene) { lossy(s, 0.01, many(2000, 40_000)) }, everywhere, true},
	{"switching, 5 % lost", func(s *scene) { lossy(s, 0.05, many(400, 10_000)) }, everywhere, true},
	{"switching, out of order", outOfOrder, everywhere, true},
	{"all at once, 1 % lost", func(s *scene) { together(s, 0.01, many(150, 20_000)) }, guessed | plain, false},
	{"all at once, 5 % lost", func(s *scene) { together(s, 0.05, many(100, 4000)) }, guessed | plain, false},
	{"pipelining", pipelining, everywhere, true},
	{"short connections", shortConnections, everywhere, false},
	{"gray release", gray, routed, false},
	{"a fraction", fraction, routed, false},
	{"routes change", routesChange, everywhere, false},
	{"draining", draining, routed, false},
	{"endpoints come and go", comeAndGo, routed, false},
	{"100 MB", bulk, everywhere, false},
	{"a connection for each request", closePerRequest, guessed, false},
	{"forged segments", spoof, guessed, false},
}

// TestVolume makes many requests, all verified.
func TestVolume(t *testing.T) {
	modes := []mode{direct, tcx}
	if full {
		modes = append(modes, clsact)
	}
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			b := newBed(t, m)
			if os.Getenv("KMESH_L7_TRACE") != "" { // costs much
				b.tap = newTap(t, b.clients[0], 1<<20)
			}
			for i, v := range volumes {
				if v.fullOnly && !full {
					continue
				}
				for j, way := range []struct {
					name string
					in   where
					v6   bool
				}{{"v4, guess", guessed, false}, {"v6, local", local, true}, {"v6, guess", guessed, true}, {"v4, local", local, false}} {
					if !full && j != i%4 && (m == direct || j != (i+1)%4) {
						continue // each test in two of the four ways, direct in at most one
					}
					if m == direct && (way.in == local || v.in&plain == 0) || v.in&way.in == 0 {
						continue
					}
					t.Run(v.name+", "+way.name, func(t *testing.T) { v.run(newScene(t, b, way.v6, way.in == local)) })
				}
			}
			b.wantIdle(t)
		})
	}
}

// mixed makes requests of all kinds for the paths /0 to /n-1, each of which has a server.
func mixed(e []*server, large int) func(r *rand.Rand) (request, []*server) {
	size := func(r *rand.Rand) int {
		switch r.IntN(10) {
		case 0:
			return r.IntN(large)
		case 1, 2, 3, 4:
			return 0
		}
		return r.IntN(3000)
	}
	return func(r *rand.Rand) (request, []*server) {
		i := r.IntN(len(e))
		q := request{path: fmt.Sprintf("/%d?%d", i, r.Uint32()), do: do{Size: size(r), Seed: uint64(r.Uint32()), Chunked: r.IntN(4) == 0}}
		switch r.IntN(12) {
		case 0:
			q.method = http.MethodHead
		case 1:
			q.do = do{Status: http.StatusNoContent}
		case 2:
			q.header = []string{"Cookie: " + body64(r.IntN(3000))}
		case 3, 4, 5, 6:
			q.method, q.body = http.MethodPost, body(size(r), uint64(r.Uint32()))
			if r.IntN(3) == 0 {
				q.chunks = []int{r.IntN(100) + 1, r.IntN(5000) + 1, 1}
			}
		}
		return q, []*server{e[i]}
	}
}

func body64(n int) string { return strings.Repeat("0123456789abcdef", n/16+1)[:n] }

// numbered serves /0 to /n-1 from n servers; all else goes to the first.
func (s *scene) numbered(n int) (*service, []*server) {
	s.Helper()
	e := s.https(n)
	var routes []*mesh.Route
	for i := range n {
		routes = append(routes, s.to(fmt.Sprintf("/%d", i), e[i]))
	}
	return s.serve(append(routes, s.to("/", e[0]))...), e
}

func switching(s *scene) {
	svc, e := s.numbered(4)
	var tell atomic.Int64 // nothing is lost: no request needs a timer
	if s.tap != nil {
		tell.Store(int64(150 * time.Millisecond))
	}
	s.fail(s.run(svc, load{conns: many(16, 64), requests: many(5000, 100_000), perConn: 40, next: mixed(e, 300_000), tell: &tell}))
	svc, e = s.numbered(6) // more than a flow has legs
	s.fail(s.run(svc, load{conns: 16, requests: many(1500, 30_000), perConn: 40, next: mixed(e, 100_000)}))
}

// bad is a rule of the gate for all packets of some servers.
func (s *scene) bad(a gate.Action, share float64, e []*server) (rules []*gate.Active) {
	s.Helper()
	for _, e := range e {
		for _, d := range []gate.Direction{gate.Up, gate.Down} {
			rules = append(rules, s.rule(gate.Rule{Direction: d, Action: a, Port: e.port, Share: share}))
		}
	}
	return rules
}

// wasBad fails unless the rules acted at all.
func (s *scene) wasBad(rules []*gate.Active) {
	s.Helper()
	var n uint64
	for _, r := range rules {
		n += s.acted(r)
	}
	if s.Logf("the gate acted on %d packets", n); n == 0 {
		s.Error("it did nothing")
	}
}

func lossy(s *scene, share float64, n int) {
	svc, e := s.numbered(4)
	rules := s.bad(gate.Drop, share, e)
	// With every tenth SYN lost one way or the other, a request may see its endpoints fail by chance. And a client has no
	// timestamps to time a segment by that it has sent again: its wait stays doubled for the next, so that seven losses
	// in a row, of some 50,000 segments, are more than 20 s.
	s.fail(s.run(svc, load{conns: 16, requests: n, perConn: 20, next: mixed(e, 60_000), patient: time.Minute, status503: share > 0.02}))
	s.wasBad(rules)
}

func outOfOrder(s *scene) {
	svc, e := s.numbered(4)
	rules := s.bad(gate.Swap, 0.02, e)
	s.fail(s.run(svc, load{conns: 16, requests: many(1500, 30_000), perConn: 20, next: mixed(e, 60_000), patient: 20 * time.Second}))
	s.wasBad(rules)
}

// pipelining writes several requests before it reads the first response. What is held waits for a timer of the
// client's, which doubles: few are written at once, on many connections.
func pipelining(s *scene) {
	svc, e := s.numbered(4)
	next := mixed(e, 5000)
	var errs errgroup.Group
	for i := range many(24, 200) {
		errs.Go(func() error { return s.pipeline(svc, next, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	if err := errs.Wait(); err != nil {
		s.Errorf("seed %#x: %v", seed, err)
	}
}

func (s *scene) pipeline(svc *service, next func(*rand.Rand) (request, []*server), r *rand.Rand) error {
	c, err := s.quietDial(svc)
	if err != nil {
		return err
	}
	defer c.Close()
	for batch := range many(1, 3) {
		var text strings.Builder
		var all []request
		var want []*server
		if batch > 0 {
			// What is sent again gives no round trip's time (RFC 6298, section 3): the timer stays doubled until
			// something was sent once.
			q, e := next(r)
			if _, err := io.WriteString(c.TCPConn, q.String()); err != nil {
				return c.failed(err)
			}
			if err := s.readAll(c, batch, []request{q}, e[:1]); err != nil {
				return err
			}
		}
		for range 1 + r.IntN(many(4, 7)) {
			q, e := next(r)
			all, want = append(all, q), append(want, e[0])
			text.WriteString(q.String())
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		for _, part := range cut(text.String(), r.IntN(text.Len())) {
			if _, err := io.WriteString(c.TCPConn, part); err != nil {
				return c.failed(err)
			}
		}
		if err := s.readAll(c, batch, all, want); err != nil {
			return err
		}
	}
	return nil
}

// readAll reads the responses to a batch.
func (s *scene) readAll(c *conn, batch int, all []request, want []*server) error {
	for i, q := range all {
		rep, err := readReply(c.r, q.method)
		if err == nil && s.mode != direct {
			err = q.faults(rep, want[i].name)
		}
		if err != nil {
			return c.failed(fmt.Errorf("batch %d, request %d of %d, %s: %w", batch, i, len(all), q.path, err))
		}
	}
	return nil
}

func shortConnections(s *scene) {
	svc, e := s.numbered(4)
	next := mixed(e, 3000)
	t := s.run(svc, load{conns: 8, requests: many(3000, 60_000), perConn: 1, next: func(r *rand.Rand) (request, []*server) {
		q, e := next(r)
		// Two thirds of them the server closes first: of the others the client keeps the port for a minute, and has
		// 28,232 of them.
		if r.IntN(3) > 0 {
			q.header = append(q.header, "Connection: close")
		}
		return q, e
	}})
	s.fail(t)
	s.wantClosed(e...)
}

// gray splits by weight, exactly.
func gray(s *scene) {
	e := s.https(3)
	clusters := []*mesh.Cluster{s.cluster(mesh.RoundRobin, e[0]), s.cluster(mesh.RoundRobin, e[1]), s.cluster(mesh.RoundRobin, e[2])}
	route := func(w [3]uint32) *mesh.Route {
		var shares []share
		for i, w := range w {
			if w > 0 {
				shares = append(shares, share{clusters[i], w})
			}
		}
		return s.split("/", shares...)
	}
	svc := s.serve(route([3]uint32{1, 0, 0}))
	n := many(3000, 20_000)
	for _, w := range [][3]uint32{{90, 10, 0}, {99, 1, 0}, {50, 30, 20}, {0, 100, 0}, {1, 0, 0}} {
		svc.update(route(w))
		// One connection a request would draw as often; here the connections stay.
		for _, perConn := range []int{0, 1} {
			if perConn == 1 && !full {
				continue
			}
			s.wantShares(e, w[:], func() *tally {
				return s.run(svc, load{conns: 8, requests: n, perConn: perConn, next: func(*rand.Rand) (request, []*server) {
					q := request{path: "/"}
					if perConn == 1 { // the server closes first, or the client runs out of ports
						q.header = []string{"Connection: close"}
					}
					return q, e
				}})
			})
		}
	}
}

// wantShares fails unless each server answered its share of a sample within 3 standard deviations, and none of a share of 0. Of several hundred right
// samples one is farther off: that gets a second chance. Both are wrong by chance once in a hundred thousand runs.
func (s *scene) wantShares(e []*server, weights []uint32, sample func() *tally) {
	s.Helper()
	var sum float64
	for _, w := range weights {
		sum += float64(w)
	}
	for last := range 2 {
		t := sample()
		s.fail(t)
		var off []string
		for i, e := range e {
			p := float64(weights[i]) / sum
			want, sigma := float64(t.done)*p, math.Sqrt(float64(t.done)*p*(1-p))
			if got := t.answered[e.name]; math.Abs(float64(got)-want) > 3*sigma {
				off = append(off, fmt.Sprintf("weights %v: %s answered %d of %d, want %.0f within 3 standard deviations (%.0f)", weights, e.name, got, t.done, want, 3*sigma))
			}
		}
		if len(off) == 0 {
			return
		}
		if s.Logf("%q", off); last == 1 {
			s.Errorf("twice: %q", off)
		}
	}
}

// fraction is a route that takes a part of the requests.
func fraction(s *scene) {
	e := s.https(2)
	some := s.to("/", e[1])
	some.Match.Fraction = &mesh.Fraction{Numerator: 3000, Denominator: 10_000}
	svc := s.serve(some, s.to("/", e[0]))
	s.wantShares(e, []uint32{7000, 3000}, func() *tally {
		return s.run(svc, load{conns: 8, requests: many(3000, 20_000), next: func(*rand.Rand) (request, []*server) {
			return request{path: "/"}, e
		}})
	})
}

// during makes a load while f runs.
func (s *scene) during(svc *service, l load, f func()) *tally {
	s.Helper()
	l.stop = make(chan struct{})
	done := make(chan *tally)
	go func() { done <- s.run(svc, l) }()
	f()
	close(l.stop)
	return <-done
}

func routesChange(s *scene) {
	e := s.https(4)
	fixed := s.to("/0", e[0])
	to := []*mesh.Route{s.to("/1", e[1]), s.to("/1", e[2]), s.to("/1", e[3])}
	rest := s.to("/", e[0])
	svc := s.serve(fixed, to[0], rest)
	own := mixed(e[:2], 20_000)
	t := s.during(svc, load{conns: 16, perConn: 100, next: func(r *rand.Rand) (request, []*server) {
		q, want := own(r)
		if want[0] == e[1] {
			want = e[1:]
		}
		return q, want
	}}, func() {
		for i := range many(40, 1500) {
			if i%7 == 6 { // other programs, too
				svc.update(s.to(fmt.Sprintf("/only%d", i), e[0]), fixed, to[i%3], rest)
			} else {
				svc.update(fixed, to[i%3], rest)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	s.fail(t)
	if s.mode != direct && (t.answered["e1"] == 0 || t.answered["e2"] == 0 || t.answered["e3"] == 0) {
		s.Errorf("the route never moved: %v", t.answered)
	}
	// The last word counts.
	svc.update(fixed, to[2], rest)
	s.dial(svc.at).get("/1", e[3])
}

func draining(s *scene) {
	e := s.https(4)
	c := s.cluster(mesh.RoundRobin, e...)
	other := s.cluster(mesh.RoundRobin, e[0])
	svc := s.serve(s.split("/other", share{other, 1}), s.split("/", share{c, 1}))
	t := s.during(svc, load{conns: 16, perConn: 30, next: func(r *rand.Rand) (request, []*server) {
		if r.IntN(4) == 0 {
			return request{path: "/other"}, e[:1]
		}
		return request{path: "/", do: do{Size: r.IntN(20_000)}}, e
	}}, func() {
		for round := range many(4, 40) {
			i := 1 + round%3
			time.Sleep(150 * time.Millisecond)
			svc.replace(withHealth(c, i, mesh.Draining))
			s.settled(e[i])
			accepted := e[i].accepted()
			time.Sleep(150 * time.Millisecond)
			if n := e[i].accepted() - accepted; n != 0 {
				s.Errorf("%s is draining and got %d new connections", e[i].name, n)
			}
			svc.replace(c)
		}
	})
	s.fail(t)
}

// settled waits until what was decided before has arrived: a server gets no connection for a while.
func (s *scene) settled(e *server) {
	s.Helper()
	last, since := e.accepted(), time.Now()
	eventually(s.T, "new connections of "+e.name, func() time.Duration {
		if n := e.accepted(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since)
	}, func(quiet time.Duration) bool { return quiet > 50*time.Millisecond })
}

// comeAndGo publishes other endpoints of a cluster all the time.
func comeAndGo(s *scene) {
	e := s.https(6)
	c := s.cluster(mesh.Random, e...)
	svc := s.serve(s.to("/other", e[0]), s.split("/", share{c, 1}))
	t := s.during(svc, load{conns: 16, perConn: 50, next: func(r *rand.Rand) (request, []*server) {
		if r.IntN(4) == 0 {
			return request{path: "/other"}, e[:1]
		}
		return request{path: "/", do: do{Size: r.IntN(5000)}}, e
	}}, func() {
		r := rand.New(rand.NewPCG(seed, 2))
		for range many(40, 1000) {
			some := *c
			some.Localities = []mesh.Locality{{}}
			for _, e := range c.Localities[0].Endpoints {
				if r.IntN(2) == 0 {
					some.Localities[0].Endpoints = append(some.Localities[0].Endpoints, e)
				}
			}
			if len(some.Localities[0].Endpoints) == 0 {
				continue
			}
			svc.replace(&some)
			time.Sleep(20 * time.Millisecond)
		}
	})
	s.fail(t)
}

// bulk moves 100 MB each way, through the guess and through another leg.
func bulk(s *scene) {
	svc, e := s.numbered(2)
	n := many(20<<20, 100<<20)
	up := body(n, 1)
	c := s.dial(svc.at)
	for _, i := range []int{0, 1, 0, 1} {
		path := fmt.Sprintf("/%d", i)
		c.ask(request{path: path, do: do{Size: n, Seed: uint64(i)}}, e[i])
		c.ask(request{method: "POST", path: path, body: up}, e[i])
		if i == 1 {
			q := request{method: "POST", path: path, body: up, chunks: []int{1, 1 << 20, 3 << 20}, header: []string{"Expect: 100-continue"}, do: do{Size: n, Chunked: true}}
			c.write(q.head())
			c.expect("HTTP/1.1 100 Continue\r\n\r\n")
			c.write(q.payload())
			c.check(q, e[i])
		}
	}
}

// TestSmallTables: what the tables hold is used again, whatever endpoints come and go.
func TestSmallTables(t *testing.T) {
	b := newBedWith(t, tcx, true)
	for i := range many(4, 12) {
		t.Run(fmt.Sprintf("servers %d", i), func(t *testing.T) {
			s := newScene(t, b, i%2 == 1, i%4 > 1)
			svc, e := s.numbered(3) // at ports that no other had
			s.fail(s.run(svc, load{conns: 8, requests: many(1500, 10_000), perConn: 4, next: mixed(e, 3000)}))
			s.wantClosed(e...)
		})
	}
	t.Run("helper dead", func(t *testing.T) { helperDead(t, b) })
	b.wantIdle(t)
}

// TestHelperGone: what is pinned serves on when nobody holds it open, through a restart, and after it.
func TestHelperGone(t *testing.T) {
	b := newBed(t, tcx)
	s := newScene(t, b, false, false)
	svc, e := s.numbered(3)
	two, rest := s.to("/2", e[2]), s.to("/", e[0])
	next := mixed(e, 20_000)
	tl := s.during(svc, load{conns: 8, perConn: 50, next: func(r *rand.Rand) (request, []*server) {
		q, want := next(r)
		if want[0] == e[1] {
			want = e[1:]
		}
		return q, want
	}}, func() {
		for range 2 {
			time.Sleep(100 * time.Millisecond)
			b.publishing.Lock()
			if err := b.rt.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(200 * time.Millisecond)
			b.load()
			b.publishing.Unlock()
			if len(b.rt.Replaced) != 0 {
				t.Errorf("the same programs were replaced: %v", b.rt.Replaced)
			}
			s.publish(func() {})
		}
		svc.update(s.to("/1", e[2]), two, rest)
	})
	s.fail(tl)
	s.dial(svc.at).get("/1", e[2])
}
