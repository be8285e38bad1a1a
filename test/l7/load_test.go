// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is many verified requests over many connections.
type load struct {
	conns    int
	requests int           // in all; 0: until stop
	stop     chan struct{} // nil: never
	perConn  int           // after so many, another connection; 0: never
	// next makes a request and says who may answer it.
	next func(r *rand.Rand) (request, []*server)
	// tell, when it is not 0: log the request that takes longer, and then the next longer one, with its packets.
	tell *atomic.Int64
	// patient: an answer may take so long; default patience.
	patient time.Duration
	// opened, if there is one, sees each new connection.
	opened func(c *conn)
	// status503 says that a 503 of the program's own is no error, but counted.
	status503 bool
}

func (l load) slowest() int64 {
	if l.tell == nil {
		return 0
	}
	return l.tell.Load()
}

// tally is what a load saw.
type tally struct {
	mu       sync.Mutex
	done     int
	opened   int
	answered map[string]int // by server
	errors   []error
	slow     []time.Duration // the latency of each request
	local503 int
	took     time.Duration
}

func (t *tally) String() string {
	slices.Sort(t.slow)
	q := func(p float64) time.Duration {
		if len(t.slow) == 0 {
			return 0
		}
		return t.slow[min(len(t.slow)-1, int(p*float64(len(t.slow))))].Round(10 * time.Microsecond)
	}
	return fmt.Sprintf("%d requests over %d connections in %v: %d errors, %d times 503, p50 %v p99 %v max %v, %v",
		t.done, t.opened, t.took.Round(time.Millisecond), len(t.errors), t.local503, q(0.5), q(0.99), q(1), t.answered)
}

// run makes the load from the first client towards a service.
func (s *scene) run(svc *service, l load) *tally {
	s.Helper()
	t := &tally{answered: map[string]int{}}
	var left atomic.Int64
	left.Store(int64(l.requests))
	start := time.Now()
	var wg sync.WaitGroup
	for i := range l.conns {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				if more, err := s.connection(svc, l, r, &left, t); err != nil {
					t.mu.Lock()
					t.errors = append(t.errors, err)
					n := len(t.errors)
					t.mu.Unlock()
					if at, ok := errors.AsType[*connError](err); ok && n <= 2 {
						s.Log(err)
						s.explainPort(at.port)
					}
					enough := n > 50
					if enough {
						return
					}
				} else if !more {
					return
				}
			}
		})
	}
	wg.Wait()
	t.took = time.Since(start)
	return t
}

// connection makes the requests of one connection, one after the other; more is false when none are left to make.
func (s *scene) connection(svc *service, l load, r *rand.Rand, left *atomic.Int64, t *tally) (more bool, err error) {
	var c *conn
	for n := 0; l.perConn == 0 || n < l.perConn; n++ {
		select {
		case <-l.stop:
			return false, nil
		default:
		}
		if l.requests > 0 && left.Add(-1) < 0 {
			return false, nil
		}
		start := time.Now()
		if c == nil {
			if c, err = s.quietDial(svc); err != nil {
				return true, err
			}
			defer c.Close()
			t.mu.Lock()
			t.opened++
			t.mu.Unlock()
			if l.opened != nil {
				l.opened(c)
			}
		}
		q, want := l.next(r)
		rep, err := c.exchange(q, max(l.patient, patience))
		if err != nil {
			return true, c.failed(fmt.Errorf("%s, request %d, a body of %d, asking for %d: %w", q.path, n, len(q.body), q.do.Size, err))
		}
		if l.status503 && rep.StatusCode == http.StatusServiceUnavailable && rep.server() == "" {
			t.mu.Lock()
			t.local503++
			t.mu.Unlock()
			continue
		}
		names := []string{rep.server()}
		if s.mode != direct {
			names = nil
			for _, e := range want {
				names = append(names, e.name)
			}
		}
		if err := q.faults(rep, names...); err != nil {
			return true, c.failed(fmt.Errorf("request %d: %w", n, err))
		}
		t.mu.Lock()
		t.done++
		t.answered[rep.server()]++
		took := time.Since(start)
		t.slow = append(t.slow, took)
		t.mu.Unlock()
		if slowest := l.slowest(); took > time.Duration(slowest) && slowest > 0 && l.tell.CompareAndSwap(slowest, int64(took)) {
			s.Logf("slow: %v, %s, request %d, a body of %d, asking for %d", took, q.path, n, len(q.body), q.do.Size)
			s.explainPort(c.LocalAddr().(*net.TCPAddr).AddrPort().Port())
		}
		if rep.Close {
			return true, nil
		}
	}
	return true, nil
}

// connError is an error of a connection from one port.
type connError struct {
	port uint16
	error
}

func (e *connError) Error() string { return fmt.Sprintf("from port %d: %v", e.port, e.error) }
func (e *connError) Unwrap() error { return e.error }

func (c *conn) failed(err error) error {
	return &connError{c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), err}
}

// quietDial is dial for a goroutine that may not end the test.
func (s *scene) quietDial(svc *service) (*conn, error) {
	c, res, err := s.clients[0].Conn(s.ctx, tcpTo(svc.at))
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, errors.New("connect: " + res.Errno)
	}
	return &conn{s, c, bufio.NewReader(c)}, nil
}

// exchange writes a request and reads the response.
func (c *conn) exchange(q request, limit time.Duration) (*reply, error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c.TCPConn, q.String()); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	return readReply(c.r, q.method)
}

// fail reports a load's errors.
func (s *scene) fail(t *tally) {
	s.Helper()
	s.Logf("seed %#x: %v", seed, t)
	for i, err := range t.errors {
		if i == 8 {
			s.Errorf("and %d more errors", len(t.errors)-i)
			break
		}
		s.Errorf("%v", err)
	}
	if t.done == 0 {
		s.Error("nothing was answered")
	}
}
