// SPDX-License-Identifier: Apache-2.0

package head

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// How other parsers read what we let through: a peer is one of them. It may refuse a
// head that we route; but if it takes it, then with the same method, target, host and
// body. In what we pin as opaque, which nobody matches, it finds no request at all.

var (
	peerCases = flag.Int("heads", 0, "how many random heads each peer reads (0: the default of the test)")
	peerSeed  = flag.Uint64("heads-seed", 0, "seed of the random heads (0: a new one)")
)

// reading is how a peer reads a request.
type reading struct {
	Method, Target, Host string
	// Body is the length of the body that it took; -1 if the body was cut short.
	Body int
}

// sentinel follows the head and its body: a peer that keeps the connection reads it as
// the second request, and nothing of it as part of the first.
const sentinel = "GET /sentinel HTTP/1.1\r\nHost: sentinel\r\nConnection: close\r\n\r\n"

var sentinelReading = reading{Method: "GET", Target: "/sentinel", Host: "sentinel"}

// exchange is what is sent to a peer for a head, and how it has to be read.
type exchange struct {
	pinned  bool
	request Request
	send    []byte
	// cut: the peer may wait for more.
	cut  bool
	want reading
}

// newExchange completes a head that is routed with its body and the sentinel.
func newExchange(b []byte) (exchange, bool) {
	r, out := ParseRequest(b)
	if out.Kind == Pin && out.Reason == Opaque {
		return exchange{pinned: true, cut: true, send: append(b[:len(b):len(b)], sentinel...)}, true
	}
	if out.Kind != Route {
		return exchange{}, false
	}
	e := exchange{request: r}
	e.want = reading{Method: r.Method, Target: r.Target, Host: r.Authority}
	body := ""
	switch {
	case r.Chunked:
		body, e.want.Body = "5;a=b\r\nhello\r\n0\r\n\r\n", 5
	case r.ContentLength > 1000:
		// Cannot be sent. The sentinel must be taken for the body's beginning.
		e.want.Body, e.cut = -1, true
	case r.ContentLength > 0:
		body, e.want.Body = strings.Repeat("b", int(r.ContentLength)), int(r.ContentLength)
	}
	e.send = append(append(e.send, b[:r.HeadLen]...), body+sentinel...)
	return e, true
}

// difference says how what a peer read differs from what we read; "" if it does not.
func (e *exchange) difference(got []reading) string {
	switch {
	case len(got) == 0:
		return "" // refused
	case e.pinned:
		return fmt.Sprintf("read as %+v, by us as no request", got)
	case got[0] != e.want:
		return fmt.Sprintf("read as %+v, by us as %+v", got[0], e.want)
	case len(got) > 1 && got[1] != sentinelReading:
		return fmt.Sprintf("what follows it is read as %+v", got[1])
	case len(got) > 2:
		return fmt.Sprintf("followed by %d requests", len(got)-1)
	}
	return ""
}

// exchanges are the samples and n random heads, those of them that are routed.
func exchanges(t *testing.T, n int) []exchange {
	if *peerCases > 0 {
		n = *peerCases
	}
	seed := *peerSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d: to repeat, -heads-seed %d -heads %d", seed, seed, n)
	var out []exchange
	for _, s := range requests {
		if e, ok := newExchange([]byte(s.in)); ok {
			out = append(out, e)
		}
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for range n {
		if e, ok := newExchange(randomHead(r)); ok {
			out = append(out, e)
		}
	}
	routed := 0
	for _, e := range out {
		if !e.pinned {
			routed++
		}
	}
	if routed < n/4 || len(out)-routed < n/100 {
		t.Fatalf("only %d of %d random heads are routed, and %d pinned", routed, n, len(out)-routed)
	}
	t.Logf("%d heads are routed, %d pinned", routed, len(out)-routed)
	return out
}

// randomHead is made of pieces that parsers differ about.
func randomHead(r *rand.Rand) []byte {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	// mostly is the usual piece, but one time in n a strange one.
	mostly := func(n int, usual string, strange ...string) string {
		if r.IntN(n) > 0 {
			return usual
		}
		return pick(strange...)
	}
	host := pick("a", "a.b:80", "A.b", "a_b-c.", "[::1]:8080", "1.2.3.4", "0")
	target := pick("/", "/a/b", "/a?b=c", "/?a?b", "//a/../b/.", "/%2e%00%zz", "/\\a", "/a;b=c,d", "/\"<>^`{|}", "/:80", "/a@b", "/http://x/",
		"/\xc3\xa4", "/\xff?\xfe", "/*", "/?", "/a&b=c", "/[a]", "/~!$'()*+", "*")
	if r.IntN(6) == 0 && target != "*" {
		target = pick("http://", "https://", "HTTP://", "http:/", "ftp://", "h2+1.-://", "1a://", "a:", "://") + mostly(8, host, "b", "u@"+host, "", "a:80") + pick(target, "", "?q")
	}
	method := pick("GET", "GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "M-SEARCH", "get", "FOO", "SOURCE", "!#$%&'*+-.^_`|~", "PRI", "QUERY")
	if target == "*" && r.IntN(4) > 0 {
		method = "OPTIONS"
	}
	eol := func() string { return mostly(400, "\r\n", "\n", "\r", "\r\r\n", "\n\r", "\r\n ") }
	proto := mostly(40, pick("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"), "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.01", "HTTP/2.0", "HTTP/1.1 ", "ICE/1.0", "")
	b := mostly(200, "", "\r\n", " ", "\n") + method + mostly(100, " ", "  ", "\t", "") + target + mostly(100, " ", "  ", "\t", "\v") + proto + eol()

	blank := func() string { return mostly(4, " ", "", "\t", "  ", " \t ") }
	after := func() string { return mostly(10, "", " ", "\t", " \t") }
	line := func(name, value string) string {
		return name + mostly(300, ":", " :", "\t:", "::", "", ": :") + blank() + value + after() + eol()
	}
	lines := []string{line(mostly(4, "Host", "host", "HOST", "hOsT"), mostly(12, host, "b", "", "a, b", "a b", "u@a", "a/", "a:b", "a%41"))}
	if r.IntN(3) == 0 {
		lines = append(lines, line(mostly(4, "Content-Length", "content-length", "CONTENT-LENGTH", "Content_Length", "Content-Length2"),
			mostly(3, strconv.Itoa(r.IntN(20)), "007", "0", "+5", "-1", "0x5", "5, 5", "5 5", "5.0", "", "9223372036854775807", "9223372036854775808", "99999999999999999999", "00000000000000000000005", "1_0", "5\x00")))
	}
	if r.IntN(3) == 0 {
		lines = append(lines, line(mostly(4, "Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING", "Transfer_Encoding", "Transfer-Encodings"),
			mostly(3, "chunked", "Chunked", "CHUNKED", "chunked, chunked", "gzip, chunked", "chunked, identity", "identity", "xchunked", "chunkedx", "\"chunked\"", "chunked;q=1", "\x0bchunked", "", ",chunked", "chunked,")))
	}
	for range r.IntN(4) {
		lines = append(lines, line(pick("A", "x-b", "Connection", "Connection", "Upgrade", "Expect", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "a_b", "HTTP2-Settings", "!#$%&'*+-.^_`|~", "Content-Length "),
			pick("", "a", "close", "Close", "keep-alive", "upgrade", "a,close , b", "close, keep-alive", "upgrade, http2-settings", "h2c", "websocket", "100-continue", "chunked", "host", "content-length", "transfer-encoding",
				"a:b", "\"a\tb\"", "\xc3\xa4", "\x00", "a\x7f", "a  b", ",")))
	}
	if r.IntN(20) == 0 {
		lines = append(lines, lines[r.IntN(len(lines))]) // one twice
	}
	if r.IntN(20) == 0 {
		lines = lines[1:] // no Host
	}
	r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	b += strings.Join(lines, "") + eol()
	if r.IntN(20) == 0 { // in the request line, where it is decided whether it is HTTP
		i := r.IntN(max(strings.Index(b, "\n"), 1))
		return []byte(b[:i] + string([]byte{byte(r.IntN(256))}) + b[i+r.IntN(2):])
	}
	if r.IntN(30) == 0 {
		i := r.IntN(len(b))
		b = b[:i] + string([]byte{byte(r.IntN(256))}) + b[i+r.IntN(2):]
	}
	return []byte(b)
}

// corpus are heads that a fuzzer found worth keeping, in the form of its files.
func corpus(t testing.TB, target string) [][]byte {
	dir := "testdata/fuzz/" + target
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("the corpus is missing: %v", err)
	}
	var out [][]byte
	for _, file := range files {
		text, err := os.ReadFile(dir + "/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(text), "\n")
		value, err := strconv.Unquote(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "[]byte("), ")"))
		if err != nil {
			t.Fatalf("%s: %v", file.Name(), err)
		}
		out = append(out, []byte(value))
	}
	return out
}
