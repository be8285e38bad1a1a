// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// counted is a listener that counts the connections that it gives out, and those that
// are still open.
type counted struct {
	net.Listener
	accepted, open atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	l.open.Add(1)
	return &countedConn{Conn: conn, open: &l.open}, nil
}

type countedConn struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// countedStage is a stage whose connections are counted.
func countedStage(t *testing.T) (*stage, *counted) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &counted{Listener: ln}
	return stageOn(t, l), l
}

// TestPoolShares: the Servers of a pool have one connection, and streams of their own;
// one that ends leaves the others alone, the last takes the connection with it.
func TestPoolShares(t *testing.T) {
	st, l := countedStage(t)
	pool, err := NewPool(PoolOptions{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	begin := func(id string) (k *deltaTalk, s *Server, r *recorder, end func()) {
		t.Helper()
		s = client(t, Delta, func(o *ServerOptions) {
			o.Pool, o.Node, o.Headers = pool, &corev3.Node{Id: id}, map[string]string{"who": id}
		}, st.addr)
		r = &recorder{}
		end = run(t, s, r)
		k = enter(t, st.delta)
		if got := k.next().GetNode().GetId(); got != id || !slices.Equal(k.head.Get("who"), []string{id}) {
			t.Fatalf("node %q, head %v, want those of %q", got, k.head, id)
		}
		return k, s, r, end
	}
	ka, _, ra, endA := begin("a")
	kb, b, rb, endB := begin("b")
	ka.say(deltaSay(t, ClusterType, "1", edsCluster("of-a")))
	kb.say(deltaSay(t, ClusterType, "1", edsCluster("of-b")))
	eventually(t, "each has its own", func() bool { return ra.get("Cluster") == "of-a" && rb.get("Cluster") == "of-b" })
	if n := l.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}

	endA()
	select {
	case <-ka.raw.(interface{ Context() context.Context }).Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not see the end of its stream")
	}
	kb.say(deltaSay(t, ClusterType, "2", edsCluster("more-of-b")))
	eventually(t, "the other goes on", func() bool { return rb.get("Cluster") == "more-of-b,of-b" })
	if !b.Status().Connected || l.open.Load() != 1 || l.accepted.Load() != 1 {
		t.Errorf("status %+v, %d open of %d", b.Status(), l.open.Load(), l.accepted.Load())
	}
	// One that joins later takes the same.
	kc, _, rc, endC := begin("c")
	kc.say(deltaSay(t, ClusterType, "1", edsCluster("of-c")))
	eventually(t, "the third", func() bool { return rc.get("Cluster") == "of-c" })
	if n := l.accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}

	endB()
	endC()
	eventually(t, "closed after the last", func() bool { return l.open.Load() == 0 })
	pool.mu.Lock()
	left := len(pool.conns)
	pool.mu.Unlock()
	if left != 0 {
		t.Errorf("the pool still has %d connections", left)
	}
	// And anew.
	_, _, _, endD := begin("d")
	if n := l.accepted.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	endD()
	eventually(t, "closed again", func() bool { return l.open.Load() == 0 })
	noneLeft(t)
}

// TestWithoutPool: Servers that are given none share nothing.
func TestWithoutPool(t *testing.T) {
	st, l := countedStage(t)
	for range 2 {
		run(t, client(t, Delta, nil, st.addr), &recorder{})
		enter(t, st.delta)
	}
	if n := l.accepted.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestPoolOptions: what a pool cannot use is refused as a Server refuses it; files are
// read when the first Server of it runs.
func TestPoolOptions(t *testing.T) {
	ca := newAuthority(t, "ca")
	dir := secrets{t, t.TempDir()}
	roots := dir.write("roots.pem", ca.pem)
	tests := map[string]struct {
		opts   PoolOptions
		option string
		parts  []string
	}{
		"token in clear": {PoolOptions{TokenFile: "x"}, "TokenFile", []string{"plain text"}},
		"no roots":       {PoolOptions{TLS: &TLS{}}, "TLS.RootsFile", []string{"is empty"}},
		"roots missing":  {PoolOptions{TLS: &TLS{RootsFile: dir.path("none")}}, "TLS.RootsFile", []string{"no such file"}},
		"token missing":  {PoolOptions{TLS: &TLS{RootsFile: roots}, TokenFile: dir.path("none")}, "TokenFile", []string{dir.path("none")}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			pool, err := NewPool(tc.opts)
			if err == nil {
				s := client(t, Delta, func(o *ServerOptions) { o.Pool = pool }, "127.0.0.1:1", "127.0.0.1:2")
				err = s.Run(t.Context(), &recorder{})
			}
			var bad *OptionError
			if !errors.As(err, &bad) || bad.Option != tc.option || !contains(err.Error(), tc.parts...) {
				t.Errorf("error %v, want option %s with %q", err, tc.option, tc.parts)
			}
		})
	}
}

// TestCertificateFunction: the client's certificate is asked for at every handshake;
// while there is none the handshake fails, also with a server that wants none, and the
// status says why.
func TestCertificateFunction(t *testing.T) {
	for name, asks := range map[string]bool{"the server asks for it": true, "the server does not": false} {
		t.Run(name, func(t *testing.T) {
			ca, clients := newAuthority(t, "ca"), newAuthority(t, "clients")
			dir := secrets{t, t.TempDir()}
			roots := dir.write("roots.pem", ca.pem)
			g := &guarded{}
			if asks {
				g.swap(ca, "control.example", clients)
			} else {
				g.swap(ca, "control.example", nil)
			}
			g.serve(t, "")

			var mu sync.Mutex
			var pair *tls.Certificate
			reason := errors.New("no pod of shop is here")
			asked := 0
			set := func(name string) {
				cert, key := clients.issue(name)
				p, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				defer mu.Unlock()
				pair, reason = &p, nil
			}
			pool, err := NewPool(PoolOptions{BackoffBase: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond, Logger: quiet(),
				TLS: &TLS{RootsFile: roots, ServerName: "control.example", Certificate: func() (*tls.Certificate, error) {
					mu.Lock()
					defer mu.Unlock()
					asked++
					return pair, reason
				}}})
			if err != nil {
				t.Fatal(err)
			}
			s := client(t, Delta, func(o *ServerOptions) { o.Pool = pool }, g.addr)
			r := &recorder{}
			run(t, s, r)
			eventually(t, "the status says why", func() bool { return contains(problem(s), "not connected", "no pod of shop is here") })
			mu.Lock()
			reason = nil
			mu.Unlock()
			eventually(t, "nothing is no certificate", func() bool { return contains(problem(s), "not connected", "there is none") })

			set("alice")
			enter(t, g.delta).say(deltaSay(t, ClusterType, "1", edsCluster("a")))
			eventually(t, "serves", func() bool { return r.get("Cluster") == "a" })
			mu.Lock()
			before := asked
			mu.Unlock()
			set("amy")
			g.grpc.Stop()
			g.serve(t, g.addr)
			enter(t, g.delta).say(deltaSay(t, ClusterType, "2", edsCluster("b")))
			eventually(t, "serves again", func() bool { return r.get("Cluster") == "a,b" })
			mu.Lock()
			defer mu.Unlock()
			if asked <= before {
				t.Errorf("asked %d times, %d before the second connection", asked, before)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if asks && !slices.Equal(slices.Compact(g.peers), []string{"alice", "amy"}) || !asks && len(g.peers) != 0 {
				t.Errorf("the server has seen %q", g.peers)
			}
		})
	}
}
