// SPDX-License-Identifier: Apache-2.0

package head

import (
	"reflect"
	"strings"
	"testing"
)

const ok = "HTTP/1.1 200 OK\r\n"

// responses: as requests, answers to a GET. A rule that would reject a request pins.
var responses = []sample{
	{"status-line / no HTTP", "ICY", pin(Malformed).at(1)},
	{"status-line / version", "HTTP/1.2", pin(Malformed)},
	{"status-line / version 2", "HTTP/2", pin(Malformed)},
	{"status-line / HTAB", "HTTP/1.1\t", pin(Malformed)},
	{"status-line / 099", "HTTP/1.1 0", pin(Malformed)},
	{"status-line / 600", "HTTP/1.1 6", pin(Malformed)},
	{"status-line / two digits", "HTTP/1.1 20 ", pin(Malformed)},
	{"status-line / four digits", "HTTP/1.1 2000", pin(Malformed)},
	{"status-line / NUL in the reason", "HTTP/1.1 200 \x00", pin(Malformed)},
	{"bare-lf / status line", "HTTP/1.1 200 OK\n", pin(Malformed)},
	{"bare-lf / no reason", "HTTP/1.1 200\n", pin(Malformed)},
	{"bare-cr / status line", "HTTP/1.1 200 OK\rO", pin(Malformed)},
	{"obs-fold", ok + "A: b\r\n ", pin(Malformed)},
	{"blank-before-colon", ok + "A ", pin(Malformed)},
	{"field-name", ok + "(", pin(Malformed)},
	{"field-value-byte", ok + "A: \x01", pin(Malformed)},
	{"repeated-content-length", ok + "Content-Length: 1\r\nContent-Length:", pin(Malformed)},
	{"content-length", ok + "Content-Length: 1,", pin(Malformed)},
	{"repeated-transfer-encoding", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding:", pin(Malformed)},
	{"transfer-encoding", ok + "Transfer-Encoding: g", pin(Malformed)},
	{"te-with-content-length", ok + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", pin(Malformed)},
	{"te-in-1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", pin(Malformed)},
	{"switching", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", pin(Upgraded)},
	{"interim", "HTTP/1.1 100 Continue\r\n\r\n", route},
	{"no-body", "HTTP/1.1 204 No Content\r\n\r\n", route},
	{"until-close", ok + "\r\n", route},

	{" / no reason", "HTTP/1.1 200 \r\n\r\n", route},
	{" / no reason, no SP", "HTTP/1.0 200\r\n\r\n", route},
	{" / reason", "HTTP/1.1 200 \xc3\xa4\tb  c\r\n\r\n", route},
	{" / Host means nothing", ok + "Host: ,\r\nHost:\r\n\r\n", route},
	{" / no limits", ok + strings.Repeat("A:\r\n", 101) + "B: " + strings.Repeat("c", MaxHead) + "\r\n\r\n", route},
}

func decideResponse(b []byte) Outcome {
	_, out := ParseResponse(b, "GET")
	return out
}

func TestResponseRules(t *testing.T) {
	checkSamples(t, responses, decideResponse, PartResponse)
}

// TestResponse: what a response says about its body.
func TestResponse(t *testing.T) {
	length := "Content-Length: 5\r\n"
	tests := []struct {
		method, in string
		want       Response
	}{
		{"GET", ok + length + "\r\n", Response{Status: 200, ContentLength: 5, KeepAlive: true}},
		{"GET", ok + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", Response{Status: 200, ContentLength: -1, Chunked: true}},
		{"GET", ok + "\r\n", Response{Status: 200, ContentLength: -1, UntilClose: true, KeepAlive: true}},
		{"HEAD", ok + length + "\r\n", Response{Status: 200, ContentLength: -1, NoBody: true, KeepAlive: true}},
		{"head", ok + length + "\r\n", Response{Status: 200, ContentLength: 5, KeepAlive: true}},
		{"HEAD", ok + "Transfer-Encoding: chunked\r\n\r\n", Response{Status: 200, ContentLength: -1, NoBody: true, KeepAlive: true}},
		{"GET", "HTTP/1.1 304 Not Modified\r\n" + length + "\r\n", Response{Status: 304, ContentLength: -1, NoBody: true, KeepAlive: true}},
		{"GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Response{Status: 204, ContentLength: -1, NoBody: true, KeepAlive: true}},
		{"GET", "HTTP/1.1 103 Early Hints\r\n" + length + "\r\n", Response{Status: 103, ContentLength: -1, Interim: true, KeepAlive: true}},
		{"GET", "HTTP/1.0 599 x\r\n" + length + "\r\n", Response{Status: 599, ContentLength: 5}},
		{"GET", "HTTP/1.0 200 x\r\nConnection: keep-alive\r\n" + length + "\r\n", Response{Status: 200, ContentLength: 5, KeepAlive: true}},
		{"CONNECT", "HTTP/1.1 407 x\r\n" + length + "\r\n", Response{Status: 407, ContentLength: 5, KeepAlive: true}},
	}
	for _, test := range tests {
		got, out := ParseResponse([]byte(test.in), test.method)
		if out.Kind != Route {
			t.Errorf("%s, %q: %v", test.method, test.in, out)
		}
		test.want.HeadLen, test.want.Proto = len(test.in), test.in[:8]
		got.Fields = nil
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s, %q:\n got %+v\nwant %+v", test.method, test.in, got, test.want)
		}
	}
	connected := pin(Connect)
	connected.Rule, connected.At = "connect", len(ok)+2
	if _, out := ParseResponse([]byte(ok+"\r\n"), "CONNECT"); out != connected {
		t.Errorf("2xx to CONNECT: %v, want %v", out, connected)
	}
}

var chunkLines = []sample{
	{"chunk-size / no digit", "\r", reject(400)},
	{"chunk-size / SP", "5 ", reject(400)},
	{"chunk-size / sign", "-", reject(400)},
	{"chunk-size / not hex", "5g", reject(400)},
	{"chunk-size / 17 digits", "00000000000000001", reject(400)},
	{"chunk-size / 2^63", "8000000000000000", reject(400)},
	{"chunk-size / LF", "5\n", reject(400)},
	{"chunk-extension / 65 bytes", "5;" + strings.Repeat("a", 64), reject(400)},
	{"chunk-extension / LF", "5;a\n", reject(400)},
	{"bare-cr", "5\r5", reject(400)},
	{"bare-cr / extension", "5;a\r5", reject(400)},
	{" / 64 bytes of extension", "fF;" + strings.Repeat("\t", 63) + "\r\n", route},
	{" / the largest", "7fffffffffffffff\r\n", route},
	{" / last", "0\r\n", route},
}

func decideChunkLine(b []byte) Outcome {
	_, _, out := ParseChunkLine(b)
	return out
}

func TestChunkLine(t *testing.T) {
	checkSamples(t, chunkLines, decideChunkLine, PartChunk)
	if size, n, _ := ParseChunkLine([]byte("1fF;a\r\nx")); size != 0x1ff || n != 7 {
		t.Errorf("got size %#x in %d bytes, want 0x1ff in 7", size, n)
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range responses {
		f.Add([]byte(s.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		oneDecision(t, b, decideResponse, fuzzStep(b))
		if out := decideResponse(b); out.Kind == Reject {
			t.Errorf("%q: %v", b, out)
		}
	})
}

func FuzzChunkLine(f *testing.F) {
	for _, s := range chunkLines {
		f.Add([]byte(s.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) { oneDecision(t, b, decideChunkLine, fuzzStep(b)) })
}
