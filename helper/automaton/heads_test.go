// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

const plain = "GET / HTTP/1.1\r\nHost: a\r\n"

// heads have at least one case for each rule, and what lies near it.
var heads = []string{
	"", "\x16\x03\x01", "\x16\x04", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * HTTP/1.1\r\n", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n",
	"SSH-2.0-x\r\n", "\x00", "CONNECT a:80 HTTP/1.1\r\n\r\n", "connect / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\nGET", "\nGET", " GET", "\tGET", "\vGET",
	"GET\t/", "GET\v/", "GET  /", "GET \t/", "GET\r\n", "GET\rx", "GET\n", "G\x80", "G(T / HTTP/1.1\r\n\r\n",
	"GET \r\n", "GET \rx", "GET \x01", "GET x HTTP/1.1\r\n", "GET x  HTTP/", "GET x HTTX", "GET x\x01", "GET x\r", "GET ftp://a/ HTTP/1.1\r\n", "GET f+1.-://", "GET 1a://x HTTP/", "GET a:/b HTTP/", "GET a:b://c HTTP/",
	"GET http:/a HTTP/", "GET HTTPS://a/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET httpx://a", "GET httpss://a", "GET htp://a", "GET h://a", "GET http//a HTTP/",
	"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a/?x=b HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a/ HTTP/1.1\r\nHost: A\r\n\r\n",
	"GET http://a/ HTTP/1.0\r\n\r\n", "GET http://a@b/ HTTP/1.1\r\n", "GET http:///", "GET http://a:/", "GET http://a:123456/", "GET http://[::1]:80/p HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET http://ab/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET * HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS *x", "OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.0\r\n\r\n",
	"GET /a#b", "GET /?a#b", "GET /\x01", "GET /?\t", "GET /\r\n", "GET /\n", "GET /a\x7f", "GET /\x80\xff HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.1\n", "GET / HTTP/1.1\rx", "GET / HTTP/1.1 \r\n", "GET / HTTP/2.0\r\n", "GET / HTTP/1.2\r\n", "GET / HTTP/0.9\r\n", "GET / HTTP/x", "GET / HTTP/1,", "GET / http/1.1\r\n", "GET /  HTTP/1.1\r\n", "GET / HTTP/1.10\r\n",
	"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n folded: x\r\n\r\n",
	plain + "\r\n", plain + "\n", plain + "\rx", plain + " x", plain + "\tx", plain + "A : b\r\n", plain + "A\t:", plain + ": b\r\n", plain + "A\x01", plain + "A(", plain + "A\r\n", plain + "A\xff",
	plain + "A: b\n", plain + "A: b\rc", plain + "A: \x00", plain + "A: \x7f", plain + "A: b\tc \t\r\n\r\n", plain + "A:\r\n\r\n", plain + "A_b: \x80\xff\r\n\r\n",
	plain + "Host: a\r\n", "GET / HTTP/1.1\r\nhOsT:a\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n", "GET / HTTP/1.1\r\nHost: \t\r\n", "GET / HTTP/1.1\r\nHost: a,b\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n", "GET / HTTP/1.1\r\nHost: a \t\r\n\r\n", "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "GET / HTTP/1.1\r\nHost: a:\r\n", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "GET / HTTP/1.1\r\nHost: a:123456\r\n", "GET / HTTP/1.1\r\nHost: a\n", "GET / HTTP/1.1\r\nHost: a\x01", "GET / HTTP/1.1\r\nHost: [\r\n", "GET / HTTP/1.1\r\nHost: []\r\n", "GET / HTTP/1.1\r\nHost: a_B-9.c\r\n\r\n", "GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n",
	plain + "Content-Length: 5\r\n\r\n", plain + "Content-Length: 5 \t\r\n\r\n", plain + "Content-Length:5 5\r\n", plain + "Content-Length: 5, 5\r\n", plain + "Content-Length: +5", plain + "Content-Length: -5", plain + "Content-Length: \r\n", plain + "Content-Length: 0x5", plain + "Content-Length: 5\r\nContent-Length: 5\r\n",
	plain + "Content-Length: 9223372036854775807\r\n\r\n", plain + "Content-Length: 9223372036854775808\r\n", plain + "Content-Length: 0000000000000000005\r\n\r\n", plain + "Content-Length: 00000000000000000005\r\n",
	plain + "Transfer-Encoding: chunked\r\n\r\n", plain + "Transfer-Encoding:   CHUNKED\r\n\r\n", plain + "Transfer-Encoding:\tchunked\r\n", plain + "Transfer-Encoding: chunked \r\n", plain + "Transfer-Encoding: xchunked", plain + "Transfer-Encoding: gzip, chunked", plain + "Transfer-Encoding: chunked, chunked", plain + "Transfer-Encoding: \r\n", plain + "Transfer-Encoding: chunke\r\n", plain + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", plain + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", plain + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", plain + "Transfer-Encoding: \n", plain + "Transfer-Encoding: \"chunked\"",
	"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
	plain + "Expect: 100-continue\r\n\r\n", plain + "Expect: 100-Continue\r\nExpect: x\r\n\r\n", plain + "Expect: x\r\nExpect: 100-continue\r\n\r\n", plain + "Expect: x,100-continue\r\n\r\n", plain + "Expect: 100-continue,\r\nExpect:x\r\n\r\n",
	plain + "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", plain + "Connection: close\r\n\r\n", plain + "Connection: a, Close ,b\r\n\r\n", plain + "Connection: x\r\nConnection: close\r\n\r\n", plain + "Connection: closed\r\n\r\n", plain + "Connection: keep-alive, close\r\n\r\n", plain + "Connection: clo\r\nConnection: se\r\n\r\n",
	plain + "X-A: b\r\nX-A: c\r\n\r\n", plain + "X-A: b \r\nX-A:\t c\t\r\nX-A:\r\n\r\n", plain + "X-A: a  b\r\n\r\n", plain + "X-A:\r\nX-A:\r\n\r\n", plain + "X-A: \xc3\xa4\r\n\r\n", plain + "X-A: \xc3\r\nX-A: \xa4\r\n\r\n", plain + "X-A: \xc3 \xa4\r\n\r\n",
	"GET /?a=1&a=2&b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?a&a=1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?&&=x&a==?1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?ab=1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x?? HTTP/1.1\r\nHost: a\r\n\r\n", "GET /? HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /api/v1/users/profile HTTP/1.1\r\nHost: a\r\n\r\n", "GET /api/v1/users/profilx HTTP/1.1\r\nHost: a\r\n\r\n", "GET /api/v1/users/pro?file HTTP/1.1\r\nHost: a\r\n\r\n",
}

// longHeads are around the limits.
func longHeads() []string {
	lines := func(n int) string { return plain + strings.Repeat("A: b\r\n", n) + "\r\n" }
	size := func(n int) string {
		return plain + "A: " + strings.Repeat("b", n-len(plain)-len("A: \r\n\r\n")) + "\r\n\r\n"
	}
	return []string{lines(98), lines(99), lines(100), lines(101), size(8191), size(8192), size(8193), size(9000),
		"GET /" + strings.Repeat("a", 8190), "GET /?" + strings.Repeat("x=y&", 2000) + " HTTP/1.1\r\nHost: a\r\n\r\n",
		plain + strings.Repeat("A", 100) + strings.Repeat("-", 70) + ": " + strings.Repeat("\t b", 300) + "\r\n\r\n",
		plain + "A: " + strings.Repeat("\xc3\xa4", 300) + "\r\nX-A: " + strings.Repeat("a-", 300) + "\r\n\r\n"}
}

// corpus adds what fuzzing has found to the cases.
func corpus(t testing.TB, cases []string, dirs ...string) []string {
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(string(text), "\n") {
				quoted, ok := strings.CutPrefix(line, "[]byte(")
				if !ok {
					continue
				}
				b, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				cases = append(cases, b)
			}
		}
	}
	return cases
}

// everything is a virtual host with conditions of every kind.
func everything() *mesh.VirtualHost {
	header := func(name string, kind mesh.StringKind, value string) mesh.HeaderMatch {
		return mesh.HeaderMatch{Name: name, Match: mesh.StringMatch{Kind: kind, Value: value}}
	}
	invert := func(h mesh.HeaderMatch) mesh.HeaderMatch { h.Invert = true; return h }
	any := mesh.PathMatch{Kind: mesh.PathPrefix, Value: "/"}
	vh := &mesh.VirtualHost{Name: "everything"}
	for _, m := range []mesh.RouteMatch{
		{Path: mesh.PathMatch{Kind: mesh.PathExact, Value: "/api/v1/users/profile"}},
		{Path: mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: "/api/v1"}},
		{Path: mesh.PathMatch{Kind: mesh.PathRegex, Value: ".*/users/.*"}},
		{Path: any, Headers: []mesh.HeaderMatch{header("x-a", mesh.StringExact, "b,c")}},
		{Path: any, Headers: []mesh.HeaderMatch{header("x-a", mesh.StringContains, " ")}},
		{Path: any, Headers: []mesh.HeaderMatch{header("x-a", mesh.StringRegex, ".*ä.*")}},
		{Path: any, Headers: []mesh.HeaderMatch{header("x-a", mesh.StringRegex, ".?")}},
		{Path: any, Headers: []mesh.HeaderMatch{invert(header("x-a", mesh.StringContains, "b")), {Name: "x-a", Kind: mesh.HeaderPresent}}},
		{Path: any, Headers: []mesh.HeaderMatch{header("x-a", mesh.StringSuffix, ",")}},
		{Path: any, Headers: []mesh.HeaderMatch{header("connection", mesh.StringRegex, "(?i)close")}},
		{Path: any, Headers: []mesh.HeaderMatch{{Name: "content-length", Kind: mesh.HeaderRange, Start: 1, End: 100}}},
		{Path: any, Headers: []mesh.HeaderMatch{header("host", mesh.StringPrefix, "a"), header(":method", mesh.StringExact, "GET")}},
		{Path: any, Headers: []mesh.HeaderMatch{header("expect", mesh.StringContains, "x,100")}},
		{Path: any, Query: []mesh.QueryMatch{{Name: "a", Match: mesh.StringMatch{Kind: mesh.StringExact, Value: "1"}}}},
		{Path: any, Query: []mesh.QueryMatch{{Name: "b", Present: true}}},
		{Path: any, Query: []mesh.QueryMatch{{Name: "a", Match: mesh.StringMatch{Kind: mesh.StringContains, Value: "?"}}, {Name: ""}}},
		{Path: any},
	} {
		vh.Routes = append(vh.Routes, &mesh.Route{Name: fmt.Sprint(len(vh.Routes)), Match: m})
	}
	return vh
}

// TestHeads feeds each head in every way, to both machines: whole, byte by byte, cut
// at every byte; and what is decided about every beginning of it is the reference's.
func TestHeads(t *testing.T) {
	k := newKernel(t)
	vh := everything()
	p, err := automaton.Compile(vh, automaton.Budget{})
	if err != nil {
		t.Fatal(err)
	}
	at := k.load(p)
	var matcher explain.Matcher
	fired := map[string]bool{}
	check := func(b []byte, want verdict, way string, have verdict) {
		t.Helper()
		if have != want {
			t.Errorf("%.100q, %s:\nhave %+v\nwant %+v", b, way, have, want)
		}
	}
	cases := corpus(t, heads, "../head/testdata/fuzz/FuzzRequest", "../head/testdata/fuzz/FuzzNetHTTP")
	for _, h := range cases {
		b := []byte(h)
		if len(b) > 400 {
			continue
		}
		want := wanted(&matcher, vh, b)
		if _, out := head.ParseRequest(b); out.Rule != "" {
			fired[out.Rule] = true
		}
		check(b, want, "Go, byte by byte", runBytes(p, b))
		check(b, want, "kernel, byte by byte", got(k.run(p, at, b, every(b)...), b))
		for cut := range len(b) + 1 {
			check(b, want, fmt.Sprintf("Go, cut at %d", cut), run(p, b, cut))
			check(b, want, fmt.Sprintf("kernel, cut at %d", cut), got(k.run(p, at, b, cut), b))
			beginning := wanted(&matcher, vh, b[:cut])
			check(b, beginning, fmt.Sprintf("Go, first %d", cut), run(p, b[:cut]))
			check(b, beginning, fmt.Sprintf("kernel, first %d", cut), got(k.run(p, at, b[:cut]), b))
		}
	}
	for _, h := range longHeads() {
		b := []byte(h)
		want := wanted(&matcher, vh, b)
		if _, out := head.ParseRequest(b); out.Rule != "" {
			fired[out.Rule] = true
		}
		check(b, want, "Go", run(p, b))
		check(b, want, "Go, byte by byte", runBytes(p, b))
		// More than a head may have is not held: the kernel sees one byte of it.
		held := b[:min(len(b), automaton.MaxHead+1)]
		for _, cut := range []int{0, 1, 37, 100, len(held) / 2, len(held) - 1} {
			check(b, want, fmt.Sprintf("kernel, cut at %d", cut), got(k.run(p, at, held, cut), b))
		}
	}
	for _, r := range head.Rules {
		if r.Part == head.PartRequest && r.Action != head.Route && !fired[r.ID] {
			t.Errorf("no case for rule %s", r.ID)
		}
	}
}

// TestHeadMethod: that an answer has no body is known as soon as the method is, so that the
// answer to a HEAD that is refused has none either.
func TestHeadMethod(t *testing.T) {
	k := newKernel(t)
	p, err := automaton.Compile(everything(), automaton.Budget{})
	if err != nil {
		t.Fatal(err)
	}
	at := k.load(p)
	for text, want := range map[string]bool{
		"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n": true, "HEAD /\n": true, "HEAD  /": true, "HEAD * ": true, "HEAD / HTTP/3": true, "HEAD ": true,
		"HEAD": false, "HEAD\t": false, "HEADS /\n": false, "head /\n": false, "GET / HTTP/1.1\r\nHost: a\r\n\r\n": false,
	} {
		b := []byte(text)
		for way, m := range map[string]*automaton.Machine{"Go": fed(p, b), "kernel": k.run(p, at, b)} {
			if has := m.Flags()&automaton.FlagHead != 0; has != want {
				t.Errorf("%q, %s: HEAD %v, want %v", text, way, has, want)
			}
		}
	}
}

func fed(p *automaton.Program, b []byte) *automaton.Machine {
	m := automaton.NewMachine(p)
	m.Feed(b)
	return m
}

// TestRules: the numbered rules are those of package head.
func TestRules(t *testing.T) {
	byID := map[string]head.Rule{}
	for _, r := range head.Rules {
		byID[r.ID] = r
	}
	for _, r := range automaton.Rules[1:] {
		want, ok := byID[r.ID]
		if !ok {
			t.Errorf("package head has no rule %s", r.ID)
			continue
		}
		if r.Kind.String() != want.Action.String() || int(r.Status) != want.Status || r.Reason != want.Reason.String() {
			t.Errorf("rule %s: %+v, package head has %+v", r.ID, r, want)
		}
		delete(byID, r.ID)
	}
	for id, r := range byID {
		if r.Part <= head.PartResponse && r.Action != head.Route {
			t.Errorf("rule %s is not in the machine's table", id)
		}
	}
}

// TestDeterministic: the same virtual host gives the same bytes.
func TestDeterministic(t *testing.T) {
	for _, vh := range []*mesh.VirtualHost{everything(), routesOf(300, mixed), routesOf(50, infix), routesOf(20, uuid)} {
		first, err := automaton.Compile(vh, automaton.Budget{})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			again, err := automaton.Compile(vh, automaton.Budget{})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first.Bytes, again.Bytes) {
				t.Fatalf("virtual host %s: two compilations differ", vh.Name)
			}
		}
	}
}
