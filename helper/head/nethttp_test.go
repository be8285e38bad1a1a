// SPDX-License-Identifier: Apache-2.0

package head

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// FuzzNetHTTP: net/http's parser reads no head that we route otherwise than we do.
func FuzzNetHTTP(f *testing.F) {
	for _, s := range requests {
		f.Add([]byte(s.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, out := ParseRequest(b)
		if out.Kind != Route {
			return
		}
		in := bufio.NewReaderSize(bytes.NewReader(b), len(b)+16)
		peer, err := http.ReadRequest(in)
		if err != nil {
			return // refused
		}
		if _, err := in.Peek(1); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		length := r.ContentLength
		switch {
		case r.Chunked:
			length = -1
		case length < 0:
			length = 0
		}
		if peer.Method != r.Method || peer.RequestURI != r.Target || peer.Host != r.Authority ||
			peer.ContentLength != length || slices.Equal(peer.TransferEncoding, []string{"chunked"}) != r.Chunked {
			t.Errorf("%q\nread as %q %q, host %q, length %d, coding %q\nby us as %+v", b,
				peer.Method, peer.RequestURI, peer.Host, peer.ContentLength, peer.TransferEncoding, r)
		}
		if rest := in.Buffered(); len(b)-rest != r.HeadLen {
			t.Errorf("%q\nread as a head of %d bytes, by us as one of %d", b, len(b)-rest, r.HeadLen)
		}
	})
}

// TestNetHTTPServer: no more does its server, which frames bodies and goes on to the
// next request.
func TestNetHTTPServer(t *testing.T) {
	server := newPipeServer(t)
	all := exchanges(t, 20_000)
	got := make([][]reading, len(all))
	errs := make([]error, len(all))
	var readers sync.WaitGroup
	const most = 64 // at once: the server waits half a second before it closes on some
	for first := range most {
		readers.Go(func() {
			for i := first; i < len(all); i += most {
				got[i], errs[i] = server.read(all[i].send, all[i].cut)
			}
		})
	}
	readers.Wait()
	var took, next int
	for i, e := range all {
		if errs[i] != nil {
			t.Errorf("%q: %v", e.send, errs[i])
		}
		if d := e.difference(got[i]); d != "" {
			t.Errorf("%q: %s", e.send, d)
		}
		took += min(len(got[i]), 1)
		next += max(len(got[i]), 1) - 1
	}
	if took < len(all)/4 || next < len(all)/8 {
		t.Errorf("of %d heads %d were taken, and %d sentinels: too few to say anything", len(all), took, next)
	}
	t.Logf("%d heads, %d taken, %d sentinels", len(all), took, next)
}

// pipeServer is a net/http server for connections inside the process.
type pipeServer struct{ conns chan net.Conn }

func newPipeServer(t *testing.T) *pipeServer {
	s := &pipeServer{conns: make(chan net.Conn)}
	server := &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		MaxHeaderBytes:               math.MaxInt32,
		ErrorLog:                     log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(s) }()
	t.Cleanup(func() {
		close(s.conns)
		<-done
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *pipeServer) Accept() (net.Conn, error) {
	conn, ok := <-s.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (s *pipeServer) Close() error   { return nil }
func (s *pipeServer) Addr() net.Addr { return &net.IPAddr{} }

func (s *pipeServer) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		n = -1
	}
	c := r.Context().Value(connKey{}).(*serverConn)
	c.got = append(c.got, reading{Method: r.Method, Target: r.RequestURI, Host: r.Host, Body: int(n)})
}

// read returns how the server reads the bytes. cut: it may wait for more.
func (s *pipeServer) read(b []byte, cut bool) ([]reading, error) {
	client, conn := net.Pipe()
	defer client.Close()
	if err := client.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	server := &serverConn{Conn: conn, closed: make(chan struct{})}
	s.conns <- server
	go func() {
		if _, err := client.Write(b); err == nil && cut {
			client.Close() // the server waits for the rest
		}
	}()
	_, err := io.Copy(io.Discard, client)
	client.Close()
	<-server.closed
	if cut {
		err = nil
	}
	return server.got, err
}

type connKey struct{}

// serverConn is the server's end, with what the server read from it. What it read is
// complete when it is closed.
type serverConn struct {
	net.Conn
	got    []reading
	once   sync.Once
	closed chan struct{}
}

func (c *serverConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}
