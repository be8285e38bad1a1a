// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"time"
)

// Rows about what is not HTTP/1, and about endpoints that end connections.

// pinned fails unless a connection was counted as pinned for a reason, on top of n before.
func (s *scene) pinned(event int, before uint64) {
	s.Helper()
	if s.mode != direct && s.bed.events(s.T)[event] <= before {
		s.Errorf("event %d was not counted", event)
	}
}

const (
	pinTLS    = 5
	pinH2     = 6
	pinOpaque = 7
)

func init() {
	add(guessed|plain, "not HTTP", func(s *scene) {
		e, other := s.raw(0, echo), s.http(1)
		svc := s.serve(s.to("/b", other), s.to("/", e))
		before := s.bed.events(s.T)
		for _, text := range []string{
			"PING\r\n",
			"*1\r\n$4\r\nPING\r\n",
			"get x\r\n",
			"hello world, how are you\r\n",
			"GET x\r\n",
			"\x00\x00\x00\x08\x04\xd2\x16\x2f",
			"\x00",
			"\xff\xfe" + body(200_000, 1),
		} {
			c := s.dial(svc.at)
			c.write(text)
			c.expect("e0:" + text)
			for _, more := range []string{"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", body(10_000, 2)} {
				c.write(more)
				c.expect(more)
			}
			if err := c.CloseWrite(); err != nil {
				s.Fatal(err)
			}
			c.expectEnd()
		}
		s.pinned(pinOpaque, before[pinOpaque])
		s.wantServed([]*server{other}, 0)
	})
	add(guessed|plain, "not HTTP, and not known to be so", func(s *scene) {
		e := s.raw(0, echo)
		svc := s.serve(s.to("/", e))
		for _, text := range []string{"A", "GET", strings.Repeat("A", 300)} {
			c := s.dial(svc.at)
			c.write(text) // may be a method yet, but the client waits for an answer to it
			c.expect("e0:" + text)
		}
	})
	add(guessed|plain, "not HTTP, one byte first", func(s *scene) {
		e := s.raw(0, echo)
		svc := s.serve(s.to("/", e))
		for _, first := range []string{"A", "GET", "PING", "\x16", "PRI"} {
			c := s.dial(svc.at)
			c.write(first) // may be a method yet, or a version of TLS
			time.Sleep(pause)
			c.write("\x01\x02\x03")
			var got []byte
			for want := "e0:" + first + "\x01\x02\x03"; len(got) < len(want); {
				b := make([]byte, 100)
				_ = c.SetReadDeadline(time.Now().Add(patience))
				n, err := c.r.Read(b)
				if got = append(got, b[:n]...); err != nil || string(got) != want[:len(got)] {
					s.Fatalf("read %q (%v), want %q", got, err, want)
				}
			}
		}
	})
	add(local, "not HTTP", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/", e))
		for _, text := range []string{"PING\r\n", "\x16\x03\x01\x02\x00", http2Preface} {
			c := s.dial(svc.at)
			c.write(text)
			c.expectBroken()
		}
		s.wantServed([]*server{e}, 0)
	})
	add(guessed|plain, "the server speaks first", func(s *scene) {
		e := s.raw(0, func(c *net.TCPConn, e *server) {
			_, _ = io.WriteString(c, "220 "+e.name+" ready\r\n")
			_, _ = io.Copy(c, struct{ io.Reader }{c})
		})
		svc := s.serve(s.to("/b", s.http(1)), s.to("/", e))
		c := s.dial(svc.at)
		c.expect("220 e0 ready\r\n")
		for _, text := range []string{"EHLO me\r\n", "GET /b HTTP/1.1\r\nHost: a\r\n\r\n", body(50_000, 1)} {
			c.write(text)
			c.expect(text)
		}
	})
	add(guessed|plain, "TLS", func(s *scene) {
		cert := certificate(s)
		e := s.raw(0, func(c *net.TCPConn, e *server) {
			t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			_, _ = io.Copy(t, struct{ io.Reader }{t})
		})
		svc := s.serve(s.to("/b", s.http(1)), s.to("/", e))
		before := s.bed.events(s.T)
		t := tls.Client(s.dial(svc.at), &tls.Config{InsecureSkipVerify: true})
		_ = t.SetDeadline(time.Now().Add(patience))
		for _, text := range []string{"hello", body(200_000, 1)} {
			go func() { _, _ = io.WriteString(t, text) }()
			got := make([]byte, len(text))
			if n, err := io.ReadFull(t, got); err != nil || string(got) != text {
				s.Fatalf("%d of %d bytes came back: %v", n, len(text), err)
			}
		}
		s.pinned(pinTLS, before[pinTLS])
	})
	add(guessed|plain, "HTTP/2 with prior knowledge", func(s *scene) {
		e := s.http(0)
		svc := s.serve(s.to("/b", s.http(1)), s.to("/", e))
		before := s.bed.events(s.T)
		tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
			return s.dial(svc.at).TCPConn, nil
		}}
		tr.Protocols.SetUnencryptedHTTP2(true)
		defer tr.CloseIdleConnections()
		for _, path := range []string{"/", "/b", "/b"} {
			req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, "http://the-host"+path, strings.NewReader(body(100_000, 1)))
			if err != nil {
				s.Fatal(err)
			}
			req.Header.Set("X-Do", do{Size: 100_000, Seed: 1}.String())
			res, err := tr.RoundTrip(req)
			if err != nil {
				s.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || res.ProtoMajor != 2 || res.Header.Get("X-Server") != e.name || string(got) != body(100_000, 1) {
				s.Errorf("%s: %s, %q, %d bytes, %v", path, res.Proto, res.Header.Get("X-Server"), len(got), err)
			}
		}
		s.pinned(pinH2, before[pinH2])
	})
	for _, reset := range []bool{false, true} {
		how := map[bool]string{false: "FIN", true: "RST"}[reset]
		add(routed, "an endpoint ends a parked leg, by "+how, func(s *scene) {
			svc, e := s.abcd()
			c := s.dial(svc.at)
			for range 3 {
				c.get("/", e[0])
				c.get("/b", e[1])
				s.ended(e[0], reset)
			}
			c.get("/", e[0])
		})
		add(routed, "an endpoint ends the current idle leg, by "+how, func(s *scene) {
			svc, e := s.abcd()
			for _, path := range []string{"/", "/b"} {
				i := map[string]int{"/": 0, "/b": 1}[path]
				c := s.dial(svc.at)
				for range 3 {
					c.get(path, e[i])
					s.ended(e[i], reset)
					c.expectQuiet(20 * time.Millisecond)
				}
				c.get(path, e[i])
				s.ended(e[i], reset)
				c.get("/c", e[2])
			}
		})
	}
	add(routed, "every leg is ended", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		for range 3 {
			for i, path := range []string{"/", "/b", "/c", "/d"} {
				c.get(path, e[i])
			}
			for _, e := range e {
				s.ended(e, false)
			}
		}
	})
	add(routed, "more than four endpoints", func(s *scene) {
		e := s.https(6)
		svc := s.serve(s.to("/1", e[1]), s.to("/2", e[2]), s.to("/3", e[3]), s.to("/4", e[4]), s.to("/5", e[5]), s.to("/", e[0]))
		c := s.dial(svc.at)
		for i := range 30 {
			path := fmt.Sprintf("/%d", i*7%6)
			c.ask(request{path: path, body: body(100*i, 1), do: do{Size: 200 * i}}, e[i*7%6])
		}
		c.Close()
		s.wantClosed(e...)
	})
	add(routed, "an endpoint ends the connection under a pipelined request", func(s *scene) {
		svc, e := s.abcd()
		c := s.dial(svc.at)
		one, two := request{path: "/", do: do{Close: true, Size: 1000}}, request{path: "/b"}
		c.write(one.String() + two.String())
		c.check(one, e[0])
		// The client was told that the connection ends: the second request was not answered, and it knows.
		c.expectEnd()
	})
}

const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// ended ends the idle connections of a server. Before, the client's delayed ACK of the last response (40 ms) is awaited:
// as long as a response may yet be lost, its connection has not ended well.
func (s *scene) ended(e *server, reset bool) {
	s.Helper()
	time.Sleep(60 * time.Millisecond)
	eventually(s.T, "idle connections of "+e.name, func() int { return e.closeIdle(reset) }, func(n int) bool { return n > 0 })
}

func certificate(s *scene) tls.Certificate {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
