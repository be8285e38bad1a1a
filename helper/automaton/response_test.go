// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"fmt"
	"strings"
	"testing"

	"kmesh/helper/automaton"
	"kmesh/helper/head"
)

const fine = "HTTP/1.1 200 OK\r\n"

var responses = []string{
	"", "ICY", "HTTP/1.2", "HTTP/2", "HTTP/1.1\t", "HTTP/1.1 099", "HTTP/1.1 600", "HTTP/1.1 20 ", "HTTP/1.1 2000", "HTTP/1.1 200 \x00",
	"HTTP/1.1 200 OK\n", "HTTP/1.1 200\n", "HTTP/1.1 200 OK\rO", "HTTP/1.1 200 \r\n\r\n", "HTTP/1.0 200\r\n\r\n", "HTTP/1.1 200 \xc3\xa4\tb  c\r\n\r\n",
	"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
	fine + "\r\n", fine + "\n", fine + "\rx", fine + "A: b\r\n c", fine + "A :", fine + "(", fine + "A: \x01", fine + "Host: ,\r\nHost:\r\n\r\n",
	fine + "Content-Length: 5\r\n\r\n", fine + "Content-Length: 1\r\nContent-Length:", fine + "Content-Length: 1,", fine + "Content-Length: 9223372036854775808\r\n",
	fine + "Transfer-Encoding: chunked\r\n\r\n", fine + "Transfer-Encoding: chunked\r\nTransfer-Encoding:", fine + "Transfer-Encoding: gzip", fine + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
	"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", fine + "Connection: x, Close\r\n\r\n",
	"HTTP/1.1 101 x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
	fine + "Server: " + strings.Repeat("x-", 100) + "\r\nDate: Mon\r\n\r\nbody",
}

type answer struct {
	outcome   string
	at        int
	status    int
	length    int64
	chunked   bool
	keepAlive bool
}

func wantedAnswer(b []byte) answer {
	r, out := head.ParseResponse(b, "GET")
	a := answer{outcome: out.Kind.String(), at: out.At}
	if out.Kind == head.Pin {
		a.outcome += " " + out.Rule
	}
	if out.Kind == head.Route {
		a.status, a.keepAlive = r.Status, r.KeepAlive
		a.length, a.chunked = r.ContentLength, r.Chunked
	}
	return a
}

// gotAnswer leaves out the length of what has no body, as the reference does.
func gotAnswer(m *automaton.Machine) answer {
	a := answer{outcome: m.Kind().String()}
	if m.Kind() == automaton.Incomplete {
		return a
	}
	a.at = int(m.Position)
	if r := m.Rule(); r != nil {
		a.outcome += " " + r.ID
	}
	if m.Kind() == automaton.Route {
		a.status, a.keepAlive = m.Status(), m.KeepAlive()
		a.length, a.chunked = m.ContentLength(), m.Chunked()
		if a.status < 200 || a.status == 204 || a.status == 304 {
			a.length, a.chunked = -1, false
		}
	}
	return a
}

func runResponse(b []byte, cuts ...int) answer {
	m := automaton.NewMachine(automaton.Response())
	from := 0
	for _, at := range append(cuts, len(b)) {
		m.Feed(b[from:at])
		from = at
	}
	return gotAnswer(m)
}

// TestResponse feeds each response in every way to both machines.
func TestResponse(t *testing.T) {
	k := newKernel(t)
	p := automaton.Response()
	at := k.load(p)
	for _, h := range corpus(t, responses, "../head/testdata/fuzz/FuzzResponse") {
		b := []byte(h)
		if len(b) > 400 {
			continue
		}
		for cut := range len(b) + 1 {
			want, beginning := wantedAnswer(b), wantedAnswer(b[:cut])
			for way, have := range map[string][2]answer{
				"Go":           {runResponse(b, cut), want},
				"Go, by bytes": {runResponse(b, every(b)...), want},
				"Go, first":    {runResponse(b[:cut]), beginning},
				"kernel":       {gotAnswer(k.run(p, at, b, cut)), want},
				"kernel first": {gotAnswer(k.run(p, at, b[:cut])), beginning},
			} {
				if have[0] != have[1] {
					t.Errorf("%.100q, %s, cut at %d:\nhave %+v\nwant %+v", b, way, cut, have[0], have[1])
				}
			}
		}
	}
}

// TestLongResponse: a response is not held, it comes in pieces of any number.
func TestLongResponse(t *testing.T) {
	k := newKernel(t)
	p := automaton.Response()
	at := k.load(p)
	var b []byte
	b = append(b, fine...)
	for i := range 3000 {
		b = fmt.Appendf(b, "X-%d: %d\r\n", i, i*i)
	}
	b = append(b, "Content-Length: 77\r\n\r\n"...)
	want := wantedAnswer(b)
	if have := runResponse(b); have != want {
		t.Errorf("Go: have %+v, want %+v", have, want)
	}
	for _, size := range []int{100, 1448, automaton.MaxHead} {
		piece := k.Piece(0)
		piece.Program, piece.Fresh = at, 1
		m := automaton.NewMachine(p)
		for from := 0; from < len(b); from += size {
			end := min(from+size, len(b))
			copy(piece.Bytes[:], b[from:end])
			piece.First, piece.End = uint32(from), uint32(end)
			m = k.runPiece(p)
			piece.Fresh = 0
		}
		if have := gotAnswer(m); have != want {
			t.Errorf("kernel, pieces of %d: have %+v, want %+v", size, have, want)
		}
	}
}
