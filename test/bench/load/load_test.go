// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	alone()
	m.Run()
}

// serving runs one server at a free port.
func serving(t *testing.T, serve func(...int) error) netip.AddrPort {
	t.Helper()
	// An address that only this test has: the ports are free there.
	at := netip.MustParseAddr("127.0.0.1")
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).AddrPort().Port()
	free.Close()
	l, err := listen(netip.AddrPortFrom(at, port))
	if err != nil {
		t.Fatal(err)
	}
	// It lives as long as the test's process, which is short.
	go func() { _ = serve(l) }()
	return netip.AddrPortFrom(at, port)
}

func TestHTTP(t *testing.T) {
	at := serving(t, serveHTTP)
	for _, tc := range []struct {
		name, sent string
		pieces     int
		responses  int
		ends       bool // by the server
	}{
		{"one", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, 1, false},
		{"cut in two", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, 1, false},
		{"cut everywhere", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1000, 1, false},
		{"three at once", strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3), 1, 3, false},
		{"close", "GET / HTTP/1.1\r\nHost: a\r\nCONNECTION: Close\r\n\r\n", 1, 1, true},
		{"close is no path", "GET /connection:close HTTP/1.1\r\nHost: a\r\n\r\n", 1, 1, false},
		{"second closes", "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n", 1, 2, true},
		{"no end", strings.Repeat("x", maxHead), 1, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := net.Dial("tcp4", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			step := max(1, len(tc.sent)/tc.pieces)
			for rest := []byte(tc.sent); len(rest) > 0; rest = rest[min(step, len(rest)):] {
				if _, err := c.Write(rest[:min(step, len(rest))]); err != nil {
					t.Fatal(err)
				}
			}
			in := bufio.NewReader(c)
			for i := range tc.responses {
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("response %d: %v", i, err)
				}
				text, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK || string(text) != body {
					t.Errorf("response %d: %s %q %v", i, resp.Status, text, err)
				}
				if resp.Close != (tc.ends && i == tc.responses-1) {
					t.Errorf("response %d says close: %t", i, resp.Close)
				}
			}
			if tc.ends {
				if _, err := in.ReadByte(); err != io.EOF {
					t.Errorf("after the last response: %v, want EOF", err)
				}
				return
			}
			// The connection is good for one more.
			if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			if _, err := http.ReadResponse(in, nil); err != nil {
				t.Errorf("one more: %v", err)
			}
		})
	}
}

func run(t *testing.T, args ...string) Result {
	t.Helper()
	var out bytes.Buffer
	if err := Main(args, &out); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	var res Result
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		t.Fatalf("%v printed %q: %v", args, out.Bytes(), err)
	}
	if res.Count == 0 || res.Seconds <= 0 {
		t.Errorf("%v: %+v", args, res)
	}
	return res
}

func TestClients(t *testing.T) {
	echoes, sinks := serving(t, one(each(echo))).String(), serving(t, one(each(sink))).String()
	if res := run(t, "echo", "-to", echoes, "-duration", "20ms"); res.P50 <= 0 || res.P99 < res.P50 {
		t.Errorf("echo: %+v", res)
	}
	run(t, "stream", "-to", sinks, "-duration", "20ms")
	if res := run(t, "get", "-to", serving(t, one(each(pages))).String(), "-duration", "20ms"); res.Count%PageSize != 0 {
		t.Errorf("get: %+v is not of whole pages", res)
	}
	if res := run(t, "connect", "-to", "127.0.0.1:8083", "-n", "50"); res.Count != 50 || res.P50 <= 0 {
		t.Errorf("connect: %+v", res)
	}
}

// A server that loses bytes, or hangs up, is an error and never a number.
func TestClientsDoNotLie(t *testing.T) {
	short := serving(t, one(each(func(fd int) {
		b := make([]byte, 1<<20)
		for {
			n, err := receive(fd, b)
			if err != nil {
				return
			}
			if n == 0 {
				_ = sendCount(fd, 1)
				return
			}
		}
	}))).String()
	hangs := serving(t, one(each(func(int) {}))).String()
	says := func(text string) string {
		return serving(t, one(each(func(fd int) {
			b := make([]byte, maxHead)
			if n, err := receive(fd, b); err == nil && n > 0 {
				_ = send(fd, []byte(text))
			}
		}))).String()
	}
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n", PageSize)
	for _, args := range [][]string{
		{"stream", "-to", short, "-duration", "5ms"},
		{"stream", "-to", hangs, "-duration", "50ms"},
		{"echo", "-to", hangs, "-duration", "5ms"},
		{"get", "-to", hangs, "-duration", "5ms"},
		{"get", "-to", says("HTTP/1.1 503 Service Unavailable\r\n" + length), "-duration", "5ms"},
		{"get", "-to", says("HTTP/1.1 200 OK\r\n" + length + "half"), "-duration", "5ms"},
		{"get", "-to", says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), "-duration", "5ms"},
		{"get", "-to", says("HTTP/1.1 200 OK\r\n\r\n"), "-duration", "5ms"},
		{"echo", "-to", "127.0.0.1:1", "-duration", "5ms"},
		{"connect", "-to", "127.0.0.1:1", "-n", "1"},
		{"echo", "-to", "nowhere"},
		{"serve", "-at", "nowhere"},
		{"dance", "-to", short},
		{},
	} {
		var out bytes.Buffer
		if err := Main(args, &out); err == nil || out.Len() > 0 {
			t.Errorf("%v: no error, printed %q", args, out.Bytes())
		}
	}
}
