// SPDX-License-Identifier: Apache-2.0

package head

import (
	"reflect"
	"strings"
	"testing"
)

// sample is a head and what is decided about it. The rule's ID is the name, up to
// " / " if a rule has several.
type sample struct {
	name string
	in   string
	want Outcome // At 0: at the last byte of in
}

func reject(status int) Outcome    { return Outcome{Kind: Reject, Status: status} }
func pin(reason Reason) Outcome    { return Outcome{Kind: Pin, Reason: reason} }
func (o Outcome) at(n int) Outcome { o.At = n; return o }

// id is the rule that the sample is about.
func (s sample) id() string {
	id, _, _ := strings.Cut(s.name, " / ")
	return id
}

// expect is the outcome in full.
func (s sample) expect() Outcome {
	want := s.want
	if want.At == 0 {
		want.At = len(s.in)
	}
	if want.Kind == Reject || want.Kind == Pin {
		want.Rule = s.id()
	}
	return want
}

const (
	line = "GET /a HTTP/1.1\r\n"
	host = line + "Host: a\r\n"
)

var route = Outcome{Kind: Route}

// requests has a sample for every rule about a request's head. Each ends at the byte
// that decides.
var requests = []sample{
	{"tls", "\x16\x03", pin(TLS)},
	{"h2", "PRI * HTTP/2", pin(H2)},
	{"opaque / first byte", "\x00", pin(Opaque)},
	{"opaque / first byte above ASCII", "\xe4", pin(Opaque)},
	{"opaque / 16 but no TLS", "\x16\x04", pin(Opaque)},
	{"opaque / AMQP", "AMQP\x00", pin(Opaque)},
	{"opaque / SSH", "SSH-2.0-OpenSSH_9.6\r\n", pin(Opaque)},
	{"opaque / LF after a word", "PING\n", pin(Opaque)},
	{"opaque / Redis", "*1\r\n", pin(Opaque)},
	{"opaque / memcached", "get key\r", pin(Opaque)},
	{"opaque / memcached set", "set key 0", pin(Opaque)},
	{"opaque / SMTP", "EHLO a.b\r", pin(Opaque)},
	{"opaque / PROXY", "PROXY TCP4 1", pin(Opaque)},
	{"opaque / no target", "GET \r\n", pin(Opaque)},
	{"opaque / LF for target", "GET \n", pin(Opaque)},
	{"opaque / almost a version", "get key HTTQ", pin(Opaque)},
	{"opaque / spaces", "get key  key", pin(Opaque).at(10)},
	{"opaque / NUL in a word", "get ke\x00", pin(Opaque)},
	{"connect", "CONNECT ", pin(Connect)},
	{"leading-blank / CR", "\r", reject(400)},
	{"leading-blank / LF", "\n", reject(400)},
	{"leading-blank / SP", " ", reject(400)},
	{"leading-blank / HTAB", "\t", reject(400)},
	{"leading-blank / VT", "\v", reject(400)},
	{"leading-blank / FF", "\f", reject(400)},

	{"request-line-blank / two spaces", "GET  ", reject(400)},
	{"request-line-blank / HTAB", "GET\t", reject(400)},
	{"request-line-blank / VT", "GET\v", reject(400)},
	{"request-line-blank / FF", "GET\f", reject(400)},
	{"request-line-blank / HTAB before target", "GET \t", reject(400)},
	{"target-form / relative", "GET a HTTP/", reject(400)},
	{"target-form / authority", "GET a:80 HTTP/", reject(400)},
	{"target-form / other scheme", "GET ftp://", reject(400)},
	{"target-form / like http", "GET hTtp1+.-://", reject(400)},
	{"target-form / no scheme", "GET 1a:// HTTP/", reject(400)},
	{"target-form / no slashes", "GET http:/a HTTP/", reject(400)},
	{"target-form / spaces", "GET a   HTTP/", reject(400)},
	{"target-form / query", "GET ?a HTTP/", reject(400)},
	{"target-form / bytes above ASCII", "GET \xff\xfe HTTP/", reject(400)},
	{"target-byte / 0.9", "GET /\r", reject(400)},
	{"target-byte / 0.9 with LF", "GET /\n", reject(400)},
	{"target-byte / NUL", "GET /\x00", reject(400)},
	{"target-byte / HTAB", "GET /a\t", reject(400)},
	{"target-byte / DEL in the query", "GET /a?\x7f", reject(400)},
	{"fragment / path", "GET /a#", reject(400)},
	{"fragment / query", "GET /a?b#", reject(400)},
	{"target-authority / empty", "GET http:///", reject(400)},
	{"target-authority / empty at SP", "GET http:// ", reject(400)},
	{"target-authority / user information", "GET http://u@", reject(400)},
	{"target-authority / port without digits", "GET http://a:/", reject(400)},
	{"target-authority / long port", "GET http://a:123456", reject(400)},
	{"target-authority / open bracket", "GET http://[::1/", reject(400)},
	{"target-authority / HTAB", "GET https://a\t", reject(400)},
	{"star-target / GET", "GET *", reject(400)},
	{"star-target / more", "OPTIONS *a", reject(400)},
	{"star-target / query", "OPTIONS *?", reject(400)},
	{"star-target / preface of 1.1", "PRI * HTTP/1", reject(400)},
	{"options-star", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", route},
	{"absolute-form", "GET HTTP://a:80/b?c HTTP/1.1\r\nhost:a:80 \r\n\r\n", route},
	{"absolute-form / no path", "GET https://a HTTP/1.1\r\nHost: a\r\n\r\n", route},
	{"absolute-form / only a query", "GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", route},
	{"path-not-canonical", "GET //a/./b/../%2e%2F\\%00%41\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", route},
	{"version / two spaces", "GET /  ", reject(400)},
	{"version / lower case", "GET / h", reject(400)},
	{"version / short", "GET / HTTP/1\r", reject(400)},
	{"version / no digit", "GET / HTTP/x", reject(400)},
	{"version / no digit, minor", "GET / HTTP/1.x", reject(400)},
	{"version / long", "GET / HTTP/1.10", reject(400)},
	{"version / SP after it", "GET / HTTP/1.1 ", reject(400)},
	{"version-unsupported / 0.9", "GET / HTTP/0", reject(505)},
	{"version-unsupported / 1.2", "GET / HTTP/1.2", reject(505)},
	{"version-unsupported / 2", "GET / HTTP/2", reject(505)},
	{"version-unsupported / preface of another target", "PRI / HTTP/2", reject(505)},

	{"bare-lf / request line", "GET / HTTP/1.1\n", reject(400)},
	{"bare-lf / field", line + "Host: a\n", reject(400)},
	{"bare-lf / empty line", host + "\n", reject(400)},
	{"bare-lf / before the rule of the field", line + "Content-Length: \n", reject(400)},
	{"bare-cr / method", "GET\r/", reject(400)},
	{"bare-cr / method, CR", "GET\r\r", reject(400)},
	{"bare-cr / before target", "GET \r/", reject(400)},
	{"bare-cr / request line", "GET / HTTP/1.1\rH", reject(400)},
	{"bare-cr / value", host + "A: b\rc", reject(400)},
	{"bare-cr / empty line", host + "\rH", reject(400)},
	{"obs-fold", host + "A: b\r\n ", reject(400)},
	{"obs-fold / HTAB", host + "A: b\r\n\t", reject(400)},
	{"obs-fold / first line", line + " ", reject(400)},
	{"blank-before-colon", line + "Host ", reject(400)},
	{"blank-before-colon / HTAB", line + "Host\t", reject(400)},
	{"field-name / empty", host + ":", reject(400)},
	{"field-name / no token", host + "A(", reject(400)},
	{"field-name / above ASCII", host + "\xc3", reject(400)},
	{"field-name / NUL", host + "A\x00", reject(400)},
	{"field-name / no colon", host + "A\r", reject(400)},
	{"field-name / no colon, LF", host + "A\n", reject(400)},
	{"field-value-byte / NUL", host + "A: b\x00", reject(400)},
	{"field-value-byte / DEL", host + "A: b\x7f", reject(400)},
	{"field-value-byte / VT", host + "A:\v", reject(400)},
	{"field-value-byte / before the rule of the field", host + "Content-Length:\x00", reject(400)},
	{"underscore", host + "A_b: c\r\nContent_Length: x\r\nTransfer_Encoding: y\r\n\r\n", route},
	{"too-many-fields", host + strings.Repeat("A:\r\n", 99) + "A", reject(431)},
	{"head-too-long / value", host + "A: " + strings.Repeat("b", MaxHead-len(host)-2), reject(431)},
	{"head-too-long / method", strings.Repeat("A", MaxHead+1), reject(431)},
	{"head-too-long / target", "GET /" + strings.Repeat("a", MaxHead-4), reject(431)},
	{"head-too-long / before other rules", host + "A: " + strings.Repeat("b", MaxHead-len(host)-3) + "\n", reject(431)},

	{"host-missing", line + "\r\n", reject(400)},
	{"host-missing / absolute form in 1.0", "GET http://a/ HTTP/1.0\r\n\r\n", reject(400)},
	{"repeated-host", host + "hOST:", reject(400)},
	{"host / empty", line + "Host:\r", reject(400)},
	{"host / blank", line + "Host: \t \r", reject(400)},
	{"host / list", line + "Host: a,", reject(400)},
	{"host / two", line + "Host: a b", reject(400)},
	{"host / escape", line + "Host: %", reject(400)},
	{"host / user information", line + "Host: u@", reject(400)},
	{"host / path", line + "Host: a/", reject(400)},
	{"host / above ASCII", line + "Host: \xc3", reject(400)},
	{"host / no digit in the port", line + "Host: a:\r", reject(400)},
	{"host / blank in the port", line + "Host: a: ", reject(400)},
	{"host / letter in the port", line + "Host: a:8x", reject(400)},
	{"host / long port", line + "Host: a:123456", reject(400)},
	{"host / empty brackets", line + "Host: []", reject(400)},
	{"host / after brackets", line + "Host: [::1]a", reject(400)},
	{"host / zone", line + "Host: [fe80::1%", reject(400)},
	{"host-differs", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", reject(400)},
	{"host-differs / in case", "GET http://A/ HTTP/1.1\r\nHost: a\r\n\r\n", reject(400)},
	{"host-differs / in port", "GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", reject(400)},

	{"repeated-content-length", host + "Content-Length: 1\r\ncontent-length:", reject(400)},
	{"content-length / list", host + "Content-Length: 1,", reject(400)},
	{"content-length / two", host + "Content-Length: 1 1", reject(400)},
	{"content-length / plus", host + "Content-Length: +", reject(400)},
	{"content-length / minus", host + "Content-Length: -", reject(400)},
	{"content-length / hex", host + "Content-Length: 0x", reject(400)},
	{"content-length / empty", host + "Content-Length: \r", reject(400)},
	{"content-length / 2^63", host + "Content-Length: 9223372036854775808", reject(400)},
	{"content-length / 20 digits", host + "Content-Length: 00000000000000000001", reject(400)},
	{"te-with-content-length", host + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", reject(400)},
	{"te-with-content-length / other order", host + "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", reject(400)},
	{"transfer-encoding / identity", host + "Transfer-Encoding: i", reject(400)},
	{"transfer-encoding / gzip, chunked", host + "Transfer-Encoding: g", reject(400)},
	{"transfer-encoding / chunked, gzip", host + "Transfer-Encoding: chunked,", reject(400)},
	{"transfer-encoding / xchunked", host + "Transfer-Encoding: x", reject(400)},
	{"transfer-encoding / chunkedx", host + "Transfer-Encoding: chunkedx", reject(400)},
	{"transfer-encoding / HTAB", host + "Transfer-Encoding:\t", reject(400)},
	{"transfer-encoding / quotes", host + "Transfer-Encoding: \"", reject(400)},
	{"transfer-encoding / SP after it", host + "Transfer-Encoding: chunked ", reject(400)},
	{"transfer-encoding / empty", host + "Transfer-Encoding: \r", reject(400)},
	{"repeated-transfer-encoding", host + "Transfer-Encoding: chunked\r\ntransfer-encoding:", reject(400)},
	{"te-in-1.0", "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", reject(400)},

	{"expect-continue", host + "Expect: 100-Continue\r\n\r\n", route},
	{"upgrade", host + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", route},

	// No rule, but a limit that is just kept.
	{" / the longest head", host + "A: " + strings.Repeat("b", MaxHead-len(host)-7) + "\r\n\r\n", route},
	{" / the most fields", host + strings.Repeat("A:\r\n", 99) + "\r\n", route},
	{" / the longest body", host + "Content-Length: 9223372036854775807\t\r\n\r\n", route},
	{" / any method", "get!#$%&'*+-.^_`|~9 / HTTP/1.0\r\n\r\n", route},
}

// decide is a parser reduced to its outcome.
type decide func(b []byte) Outcome

func decideRequest(b []byte) Outcome {
	_, out := ParseRequest(b)
	return out
}

// TestRequestRules: every rule fires, and at its byte.
func TestRequestRules(t *testing.T) {
	checkSamples(t, requests, decideRequest, PartRequest)
}

func checkSamples(t *testing.T, samples []sample, decide decide, part Part) {
	covered := map[string]bool{}
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			if got := decide([]byte(s.in)); got != s.expect() {
				t.Fatalf("%q\n got %v\nwant %v", s.in, got, s.expect())
			}
			if _, ok := ruleByID[s.id()]; !ok && s.id() != "" {
				t.Errorf("no rule %q", s.id())
			}
			oneDecision(t, []byte(s.in), decide, 1)
		})
		covered[s.id()] = true
	}
	for _, rule := range Rules {
		if rule.Part == part && !covered[rule.ID] {
			t.Errorf("rule %s has no sample", rule.ID)
		}
	}
}

// oneDecision checks the invariant: cut anywhere (at every step-th byte, and at the one
// that decides), b is incomplete before the deciding byte, and decided alike from there
// on, whatever follows.
func oneDecision(t *testing.T, b []byte, decide decide, step int) {
	t.Helper()
	whole := decide(b)
	for n := range len(b) + 1 {
		if n%step > 0 && n != whole.At && n != whole.At-1 {
			continue
		}
		got := decide(b[:n])
		switch {
		case whole.Kind == Incomplete || n < whole.At:
			if got != (Outcome{}) {
				t.Fatalf("%q, first %d bytes: %v, want incomplete", b, n, got)
			}
		case got != whole:
			t.Fatalf("%q, first %d bytes: %v, want %v", b, n, got, whole)
		}
	}
	if whole.Kind == Incomplete {
		return
	}
	for _, more := range []string{"\x00", "\r\n\r\n", " ", "a", "GET / HTTP/1.1\r\n\r\n", "\x16\x03", strings.Repeat("a", MaxHead)} {
		if got := decide(append(b[:len(b):len(b)], more...)); got != whole {
			t.Fatalf("%q, then %.20q: %v, want %v", b, more, got, whole)
		}
	}
}

// fuzzStep lets a fuzzer look at long inputs too without losing its time with them.
func fuzzStep(b []byte) int { return 1 + len(b)/128 }

// TestRequest: what a head that is routed says.
func TestRequest(t *testing.T) {
	tests := []struct {
		in   string
		want Request
	}{
		{
			"POST /a/b?c=d?e HTTP/1.1\r\nHost: A.b:80\r\nX:\t y z \t\r\nx:\r\nContent-Length: 007 \r\n\r\nbody",
			Request{
				Method: "POST", Target: "/a/b?c=d?e", Path: "/a/b", Query: "c=d?e", HasQuery: true, Proto: "HTTP/1.1",
				Authority: "A.b:80", Host: "a.b", Port: "80", ContentLength: 7, KeepAlive: true,
				Fields: []Field{{"Host", "A.b:80"}, {"X", "y z"}, {"x", ""}, {"Content-Length", "007"}},
			},
		},
		{
			"GET / HTTP/1.0\r\n\r\n",
			Request{Method: "GET", Target: "/", Path: "/", Proto: "HTTP/1.0", ContentLength: -1},
		},
		{
			"GET /? HTTP/1.0\r\nConnection: x, Keep-Alive\r\n\r\n",
			Request{
				Method: "GET", Target: "/?", Path: "/", HasQuery: true, Proto: "HTTP/1.0", ContentLength: -1, KeepAlive: true,
				Fields: []Field{{"Connection", "x, Keep-Alive"}},
			},
		},
		{
			"GET https://a?b HTTP/1.1\r\nHost: a\r\nConnection: closed\r\nconnection: ,\tCLOSE\t,\r\n\r\n",
			Request{
				Method: "GET", Target: "https://a?b", Path: "/", Query: "b", HasQuery: true, Proto: "HTTP/1.1", Absolute: true,
				Authority: "a", Host: "a", ContentLength: -1,
				Fields: []Field{{"Host", "a"}, {"Connection", "closed"}, {"connection", ",\tCLOSE\t,"}},
			},
		},
		{
			"PUT http://[::1]:8/x HTTP/1.1\r\nHost: [::1]:8\r\nTransfer-Encoding:  Chunked\r\nExpect: 100-continue\r\nUpgrade: w\r\n\r\n",
			Request{
				Method: "PUT", Target: "http://[::1]:8/x", Path: "/x", Proto: "HTTP/1.1", Absolute: true,
				Authority: "[::1]:8", Host: "[::1]", Port: "8", ContentLength: -1, Chunked: true, Expect100: true, Upgrade: true, KeepAlive: true,
				Fields: []Field{{"Host", "[::1]:8"}, {"Transfer-Encoding", "Chunked"}, {"Expect", "100-continue"}, {"Upgrade", "w"}},
			},
		},
		{
			"OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x\r\n\r\n",
			Request{
				Method: "OPTIONS", Target: "*", Path: "*", Proto: "HTTP/1.1", Authority: "a", Host: "a", ContentLength: -1, KeepAlive: true,
				Fields: []Field{{"Host", "a"}, {"Expect", "100-continue, x"}},
			},
		},
	}
	for _, test := range tests {
		got, out := ParseRequest([]byte(test.in))
		test.want.HeadLen = strings.Index(test.in, "\r\n\r\n") + 4
		if out != route.at(test.want.HeadLen) || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: %v\n got %+v\nwant %+v", test.in, out, got, test.want)
		}
	}
}

// FuzzRequest: no input breaks the invariant, and a head that is routed is one that can
// be taken apart and put together again.
func FuzzRequest(f *testing.F) {
	for _, s := range requests {
		f.Add([]byte(s.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		oneDecision(t, b, decideRequest, fuzzStep(b))
		r, out := ParseRequest(b)
		if out.Kind != Route {
			return
		}
		text := r.Method + " " + r.Target + " " + r.Proto + "\r\n"
		for _, field := range r.Fields {
			text += field.Name + ":" + field.Value + "\r\n"
		}
		again, out := ParseRequest([]byte(text + "\r\n"))
		r.HeadLen, again.HeadLen = 0, 0
		if out.Kind != Route || !reflect.DeepEqual(r, again) {
			t.Errorf("%q: %v\n got %+v\nwant %+v", text, out, again, r)
		}
	})
}
