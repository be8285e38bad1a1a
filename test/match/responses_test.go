// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"kmesh/helper/automaton"
	"kmesh/helper/head"
)

// response makes a response's head of pieces that are mostly right.
func (g *Generator) response() []byte {
	mostly := func(n int, usual string, strange ...string) string {
		if g.r.IntN(n) > 0 {
			return usual
		}
		return pick(g, strange...)
	}
	eol := func() string { return mostly(60, "\r\n", "\n", "\r", "\r\n ") }
	text := mostly(20, "HTTP/1.1", "HTTP/1.0", "HTTP/1.0", "HTTP/1.0", "HTTP/1.2", "http/1.1", "ICY") + mostly(60, " ", "  ", "\t", "") +
		pick(g, "200", "200", "204", "304", "404", "503", "101", "100", "103", mostly(2, "599", "600", "099", "20", "2000", "2a0")) +
		mostly(10, pick(g, " OK", " Not Found", "", " ", " \xc3\xa4\t"), "\t", " \x00", " \x7f", "x") + eol()
	for range g.r.IntN(5) {
		name := pick(g, "x", "Content-Length", "Content-Length", "Transfer-Encoding", "Transfer-Encoding", "Connection", "Host", "Upgrade", "Expect", "content-lengths", "conn")
		value := pick(g, "", "a", "0", "10", "007", "9223372036854775807", "9223372036854775808", "chunked", "Chunked", "close", "keep-alive", "a ,close", "a b", "-1", "\xff")
		switch {
		case g.oneIn(4):
		case name == "Content-Length":
			value = pick(g, "0", "5", "10")
		case name == "Transfer-Encoding":
			value = "chunked"
		case name == "Connection":
			value = pick(g, "close", "Keep-Alive", "close, keep-alive", "closed")
		}
		text += g.recase(name) + mostly(60, ":", " :", "") + pick(g, " ", " ", "", "\t") + value + mostly(20, "", " ", "\t") + eol()
	}
	text += eol()
	if g.oneIn(20) {
		return g.damage([]byte(text))
	}
	return []byte(text)
}

// TestResponses: the reference and the automaton decide alike about responses.
func TestResponses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := NewGenerator(seed)
	grammar := automaton.Response()
	k := newKernel(t)
	place := k.load(grammar)
	outcomes := map[string]int{}
	for range 100_000 {
		b := g.response()
		want, out := head.ParseResponse(b, "GET")
		outcomes[strings.TrimSpace(fmt.Sprint(out.Kind, " ", out.Rule))]++
		cuts := g.r.Uint64() & g.r.Uint64()
		for _, cuts := range []uint64{0, cuts, ^uint64(0)} {
			if got := tableResponse(feed(grammar, b, cuts)); got != referenceResponse(want, out) {
				t.Fatalf("%q, cut at the bits of %#x:\n Go        %s\n reference %s", b, cuts, got, referenceResponse(want, out))
			}
		}
		for _, cuts := range []uint64{0, cuts} {
			m, err := k.feed(grammar, place, b, cuts)
			if err != nil {
				t.Fatal(err)
			}
			if got := tableResponse(m); got != referenceResponse(want, out) {
				t.Fatalf("%q, cut at the bits of %#x:\n kernel    %s\n reference %s", b, cuts, got, referenceResponse(want, out))
			}
		}
	}
	for _, rule := range []string{"route", "pin switching", "pin bare-lf", "pin status-line", "pin te-with-content-length", "pin te-in-1.0", "pin repeated-content-length", "incomplete"} {
		if outcomes[rule] < 100 {
			t.Errorf("%s: %d times", rule, outcomes[rule])
		}
	}
	t.Logf("%v", outcomes)
}

func referenceResponse(r head.Response, out head.Outcome) string {
	if out.Kind != head.Route {
		return fmt.Sprint(out.Kind, " ", out.Rule, " ", out.At)
	}
	s := fmt.Sprint("route ", out.At, " ", r.Status, " ", r.KeepAlive)
	if !r.NoBody && !r.Interim {
		s += fmt.Sprint(" ", r.ContentLength, " ", r.Chunked)
	}
	return s
}

func tableResponse(m *automaton.Machine) string {
	switch m.Kind() {
	case automaton.Incomplete:
		return "incomplete  0"
	case automaton.Pin:
		return fmt.Sprint("pin ", m.Rule().ID, " ", m.Position)
	case automaton.Route:
		s := fmt.Sprint("route ", m.Position, " ", m.Status(), " ", m.KeepAlive())
		if status := m.Status(); status >= 200 && status != 204 && status != 304 {
			s += fmt.Sprint(" ", m.ContentLength(), " ", m.Chunked())
		}
		return s
	default:
		return fmt.Sprint("?", m.Kind())
	}
}
