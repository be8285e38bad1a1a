// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/l7/gate"
	"kmesh/test/node"
)

// together is all of it in one run: loss and reordering each way, switches of endpoint, timestamps, and packets of many
// segments. That each was in play is counted: loss, disorder, super-packets and timestamps by the gate, outside of the
// pod; that the disorder was seen by the receivers' TCP; switches by the program.
func together(s *scene, share float64, n int) {
	s.offload()
	// Two endpoints of each cluster: a request outlives one that seems dead by chance.
	e := s.https(6)
	var routes []*mesh.Route
	pairs := map[*server][]*server{}
	for i, path := range []string{"/0", "/1", "/2"} {
		pair := []*server{e[i], e[i+3]}
		pairs[e[i]] = pair
		routes = append(routes, s.to(path, pair...))
	}
	svc := s.serve(append(routes, s.to("/", e[0], e[3]))...)

	counted := func(d gate.Direction, p gate.Payload) (rules []*gate.Active) {
		for _, e := range e {
			rules = append(rules, s.rule(gate.Rule{Direction: d, Action: gate.Count, Payload: p, Port: e.port}))
		}
		return rules
	}
	seen := map[string][]*gate.Active{
		"super-packets up":     counted(gate.Up, gate.Super),
		"super-packets down":   counted(gate.Down, gate.Super),
		"timestamps up":        counted(gate.Up, gate.Stamped),
		"timestamps down":      counted(gate.Down, gate.Stamped),
		"packets lost":         s.bad(gate.Drop, share, e),
		"packets out of order": s.bad(gate.Swap, 0.02, e),
	}
	events := s.bed.events(s.T)
	late := s.late(e)

	next := mixed(e[:3], 300_000)
	l := load{conns: 16, requests: n, perConn: 10, patient: 40 * time.Second, status503: share > 0.02,
		next: func(r *rand.Rand) (request, []*server) {
			q, want := next(r)
			return q, pairs[want[0]]
		},
		opened: func(c *conn) {
			if !negotiatedTimestamps(c.TCPConn) {
				s.Error("a connection without timestamps")
			}
		},
	}
	// In a short load chance may leave one of them out: it goes on until each was there.
	for range 10 {
		s.fail(s.run(svc, l))
		missing := s.missing(seen)
		if s.late(e) == late {
			missing = append(missing, "segments out of order at a receiver")
		}
		now := s.bed.events(s.T)
		if s.mode != direct && now[switchParked] == events[switchParked] && now[switchNew] == events[switchNew] {
			missing = append(missing, "switches of the endpoint")
		}
		if len(missing) == 0 {
			return
		}
		if s.Logf("not seen yet: %q", missing); s.Failed() {
			return
		}
	}
	s.Error("not all of it was in play")
}

// offload turns it on for the scene where the bed has it off: packets of many segments come of it.
func (s *scene) offload() {
	s.Helper()
	if s.mode != clsact {
		return
	}
	for _, p := range slices.Concat(s.clients, s.pods) {
		if err := setOffload(p, 1); err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() {
			if err := setOffload(p, 0); err != nil {
				s.Error(err)
			}
		})
	}
}

// missing names what no rule has acted on.
func (s *scene) missing(seen map[string][]*gate.Active) (names []string) {
	s.Helper()
	for _, what := range slices.Sorted(maps.Keys(seen)) {
		var acted uint64
		for _, r := range seen[what] {
			acted += s.acted(r)
		}
		if s.Logf("%s: %d", what, acted); acted == 0 {
			names = append(names, what)
		}
	}
	return names
}

// Events that the tests ask for (bpf.Event).
const (
	confirmed    = 1
	rebound      = 2
	switchParked = 3
	switchNew    = 4
	holdFull     = 20
)

// late is how many segments came to the client and to the servers before what they follow.
func (s *scene) late(e []*server) (n uint64) {
	s.Helper()
	pods := []*node.Pod{s.clients[0]}
	for _, e := range e {
		pods = append(pods, e.pod)
	}
	for _, p := range pods {
		c, err := counterOf(p, "netstat", "TcpExt", "TCPOFOQueue")
		if err != nil {
			s.Fatal(err)
		}
		n += c
	}
	return n
}

func negotiatedTimestamps(c *net.TCPConn) bool {
	var info *unix.TCPInfo
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	}
	const timestamps = 1 // TCPI_OPT_TIMESTAMPS
	return err == nil && info != nil && info.Options&timestamps != 0
}

// logEvents logs what the program counted since before, by name.
func (s *scene) logEvents(before []uint64) {
	s.Helper()
	for i, n := range s.bed.events(s.T) {
		if n != before[i] {
			s.Logf("event %v: %d", bpf.Event(i), n-before[i])
		}
	}
}
