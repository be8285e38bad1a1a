// SPDX-License-Identifier: Apache-2.0

package match

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/head"
)

// framingLine makes a line that says something of the body, or nearly so.
func (g *Generator) framingLine() string {
	number := func() string {
		return pick(g, "0", "007", "5", "+5", "-1", "0x5", "5,5", "5 5", "", "12345678901", "123456789012", "1234567890123", "999999999999", "000000000007",
			"9223372036854775807", "9223372036854775808", strconv.FormatUint(g.r.Uint64()>>g.r.IntN(64), 10))
	}
	name, value := "Content-Length", ""
	switch g.r.IntN(3) {
	case 0:
		value = number()
	case 1:
		name, value = "Transfer-Encoding", pick(g, "chunked", "chunked", "Chunked", "chunke", "chunkedx", "gzip, chunked", "identity", "")
	default:
		name, value = "Connection", pick(g, "close", "close", "Close", "clos", "closed", "close, a", "close-", "keep-alive", "keep-alive", "Keep-Alive", "keep-alivf", "keep-alive-", "keep-aliv", "keep-ali", "upgrade", "")
	}
	if g.oneIn(3) {
		name = g.recase(name)
	}
	switch g.r.IntN(4) {
	case 0: // another name, one byte away
		i := g.r.IntN(len(name))
		name = name[:i] + pick(g, "", "-", ".", "0", "a", "Z", "_", "\r", " ", string([]byte{name[i] ^ 0x80}), string([]byte{name[i] ^ 1<<g.r.IntN(7)})) + name[i+g.r.IntN(2):]
	case 1:
		name = pick(g, "X", "", "-", "a-", " ") + name + pick(g, "", "s", "-", " ", "\t")
	}
	between, behind := ": ", ""
	if g.oneIn(6) {
		between, behind = pick(g, ":", ":", ":  ", ":\t", ": \t", ":: ", " : ", "::"), pick(g, "", " ", "\t", "\r", "\xff", "\x7f")
	}
	return name + between + value + behind + "\r\n"
}

// tamper spoils a response that was good, or says something else in it.
func (g *Generator) tamper(b []byte) []byte {
	lines := strings.SplitAfter(strings.TrimSuffix(string(b), "\r\n"), "\r\n")
	if n := len(lines); lines[n-1] == "" && n > 1 {
		lines = lines[:n-1]
	}
	insert := func(line string) {
		at := g.r.IntN(len(lines)) + 1
		lines = append(lines[:at], append([]string{line}, lines[at:]...)...)
	}
	join := func() []byte { return []byte(strings.Join(lines, "") + "\r\n") }
	switch g.r.IntN(9) {
	case 0:
		return g.damage(b)
	case 1:
		insert(pick(g, lines...))
	case 2: // to the longest head that is read, and beyond
		if n := bpf.PlainBytes - 3 + g.r.IntN(7) - len(b) - len("y: \r\n"); n > 0 {
			insert("y: " + strings.Repeat("b", n) + "\r\n")
		}
	case 3: // many fields
		for n := 20 + g.r.IntN(100); n > 0 && len(join()) < bpf.PlainBytes-8; n-- {
			insert(pick(g, "x:\r\n", "xy: \r\n", "a-b-c-d-e: fghij\r\n"))
		}
	case 4:
		lines[0] = pick(g, "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/2.1") + pick(g, " ", " ", "\t", "  ") +
			pick(g, "100", "101", "199", "200", "204", "299", "304", "599", "600", "099", "2a0", "20:", "2000", "20") + pick(g, " OK", " ", "", "\t", " \xc3\xa4", " a:b", " a\tb") + "\r\n"
	default:
		for range 1 + g.r.IntN(2) {
			insert(g.framingLine())
		}
	}
	return join()
}

// junk is what may lie behind the bytes that are there.
func (g *Generator) junk(b []byte, cut int) []byte {
	switch g.r.IntN(3) {
	case 0:
		return b[cut:]
	case 1:
		return nil // what was there before
	}
	return []byte(pick(g, "\r\n\r\n\r\n\r\n", "\n\r\n\r\n\r\n", "\r\n\r", "12345\r\n\r\n", "ed\r\n\r\n", ": 7\r\n\r\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n",
		"\r\nContent-Length: 7\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", "\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
}

// plainTry is one piece given to plain.h, and what it may say of it.
type plainTry struct {
	b    []byte
	end  int
	want string // if it says anything; "": it must not
}

// plainRunner collects tries, and runs them when there are enough.
type plainRunner struct {
	k     *kernel
	tries []plainTry
	taken int // of which something was said
}

func newPlainRunner(t testing.TB) *plainRunner {
	p := &plainRunner{k: newKernel(t)}
	for i := range bpf.MaxPieces {
		piece := p.k.runner.Piece(i)
		copy(piece.Bytes[:], bytes.Repeat([]byte("\r\n\r\n"), len(piece.Bytes)/4))
	}
	return p
}

// wantPlain is what the reference says of a response, and the length of its head. What
// fields say about a body that cannot be is not left out.
func wantPlain(b []byte) (string, int) {
	r, out := head.ParseResponse(b, "GET")
	if out.Kind != head.Route || r.Interim {
		return "", 0
	}
	length, chunked := r.ContentLength, r.Chunked
	if r.NoBody {
		with := bytes.Clone(b)
		copy(with[len("HTTP/1.1 "):], "200")
		r, _ := head.ParseResponse(with, "GET")
		length, chunked = r.ContentLength, r.Chunked
	}
	return fmt.Sprint(r.HeadLen, " ", r.Status, " ", length, " ", chunked, " ", !r.KeepAlive), r.HeadLen
}

func saidPlain(r *bpf.PlainResult) string {
	length := int64(-1)
	if r.Plain.HasLength != 0 {
		length = int64(r.Plain.Body)
	}
	return fmt.Sprint(r.Len, " ", r.Plain.Status, " ", length, " ", r.Plain.Chunked != 0, " ", r.Plain.Close != 0)
}

// add puts the first end bytes of b, with junk behind them, in the next piece.
func (p *plainRunner) add(b []byte, end int, junk []byte, want string, headLen int) error {
	if end < headLen || end > bpf.PlainBytes {
		want = ""
	}
	piece := p.k.runner.Piece(len(p.tries))
	piece.End = uint32(end)
	n := copy(piece.Bytes[:], b[:end])
	copy(piece.Bytes[n:], junk)
	p.tries = append(p.tries, plainTry{b, end, want})
	if len(p.tries) < bpf.MaxPieces {
		return nil
	}
	return p.run()
}

func (p *plainRunner) run() error {
	n := len(p.tries)
	if n == 0 {
		return nil
	}
	_, results, err := p.k.runner.RunPlain(n, n)
	if err != nil {
		return err
	}
	for i, try := range p.tries {
		if results[i].Len == 0 {
			continue
		}
		p.taken++
		if said := saidPlain(&results[i]); said != try.want {
			return fmt.Errorf("%d bytes of %q, in a buffer of %q:\n plain     %s\n reference %q",
				try.end, try.b, p.k.runner.Piece(i).Bytes[:try.end+32], said, try.want)
		}
	}
	p.tries = p.tries[:0]
	return nil
}

// TestPlainBytes: as TestPlain, with every byte of a few heads replaced by every other,
// and every byte put before it.
func TestPlainBytes(t *testing.T) {
	p := newPlainRunner(t)
	g := NewGenerator(1)
	try := func(b []byte) {
		want, n := wantPlain(b)
		if err := p.add(b, len(b), g.junk(b, len(b)), want, n); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: 123456789012\r\n\r\n",
		"HTTP/1.1 404 \r\nTransfer-Encoding: chunked\r\nDate: b\r\n\r\n",
		"HTTP/1.1 200 a b\r\ncontent-length: 5\r\nconnection: close\r\n\r\n",
		"HTTP/1.1 503 a\r\ncontent-length:5\r\nConnection: Keep-Alive\r\n\r\n",
		"HTTP/1.1 304 a\r\ntransfer-encoding: Chunked\r\nConnection: keep-alive\r\n\r\n",
	} {
		for at := range len(s) {
			for c := range 256 {
				put := s[:at] + string([]byte{byte(c)})
				try([]byte(put + s[at+1:]))
				try([]byte(put + s[at:]))
			}
			try([]byte(s[:at] + s[at+1:]))
		}
	}
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	if p.taken < 10_000 {
		t.Errorf("only %d were taken", p.taken)
	}
}

// TestPlain: what plain.h says of a response is what the reference says, and of most
// responses of real servers it says something.
func TestPlain(t *testing.T) {
	heads := 100_000
	if os.Getenv("KMESH_L7") == "full" {
		heads = 3_000_000
	}
	seed := rand.Uint64()
	if s := os.Getenv("KMESH_L7_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal("KMESH_L7_SEED: ", err)
		}
	}
	t.Logf("seed %d (KMESH_L7_SEED repeats it)", seed)
	g := NewGenerator(seed)
	p := newPlainRunner(t)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// As servers send them: they fit, and nearly all of them are taken.
	fit, tried, routed := 0, 0, 0
	for range heads / 3 {
		b := g.Served(40)
		want, n := wantPlain(b)
		if want == "" {
			t.Fatalf("%q is not good", b)
		}
		if len(b) <= bpf.PlainBytes {
			fit++
		}
		try(p.add(b, len(b), g.junk(b, len(b)), want, n))
		tried++
	}
	try(p.run())
	served := p.taken
	if float64(served) < 0.95*float64(fit) || fit < heads/6 {
		t.Errorf("of %d heads of servers, of which %d are short enough, %d were taken", heads/3, fit, served)
	}
	for i := range heads - heads/3 {
		b := g.Served(pick(g, 5, 10, 20, 40))
		if i%4 == 0 {
			b = g.response()
		} else {
			for range 1 + g.r.IntN(2) {
				if len(b) > 0 {
					b = g.tamper(b)
				}
			}
		}
		want, n := wantPlain(b)
		if want != "" {
			routed++
		}
		try(p.add(b, len(b), g.junk(b, len(b)), want, n))
		at := g.r.IntN(len(b) + 1)
		try(p.add(b, at, g.junk(b, at), want, n))
		tried += 2
		if g.oneIn(4) { // and what follows it, as the programs give it
			more := append(b[:len(b):len(b)], pick(g, "\r\n", "\n", "a", "HTTP/1.1 200 OK\r\n\r\n", "{\"a\": 1}", strings.Repeat("x", 900))...)
			want, n := wantPlain(more) // the head may have gone on
			try(p.add(more, min(len(more), bpf.PlainBytes), nil, want, n))
			tried++
		}
		if i%100 == 0 {
			for at := range len(b) {
				try(p.add(b, at, g.junk(b, at), want, n))
			}
			tried += len(b)
		}
	}
	try(p.run())
	others := p.taken - served
	t.Logf("%d heads of servers: %d short enough, %d taken; %d others: %d good, %d times taken; %d tries", heads/3, fit, served, heads-heads/3, routed, others, tried)
	if others < heads/20 {
		t.Errorf("of the others %d were taken", others)
	}
}
