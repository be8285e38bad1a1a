// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// conn is a client's kept-alive connection: a pod's socket.
type conn struct {
	*net.TCPConn
	r *bufio.Reader
}

// connect connects from a pod.
func connect(ctx context.Context, from *node.Pod, to netip.AddrPort) (*conn, error) {
	c, res, err := from.Conn(ctx, wire.Dial{Network: wire.TCP, Addr: to.String()})
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, fmt.Errorf("%s connects to %s: %s", from.Name, to, res.Errno)
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// request is a GET.
type request struct {
	host, path string
	header     string // a whole line; empty: none
}

func (q request) String() string {
	header := q.header
	if header != "" {
		header += "\r\n"
	}
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", q.path, q.host, header)
}

// get makes a request and reads the whole answer.
func (c *conn) get(q request) (*http.Response, error) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c.TCPConn, q.String()); err != nil {
		return nil, err
	}
	r, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return r, err
}

// sample is one request that was answered.
type sample struct {
	begun, took time.Duration // since the load began
	server      string
}

// load is requests without a pause over kept-alive connections, each as soon as the one before is answered.
type load struct {
	begun   time.Time
	ended   time.Duration
	stop    context.CancelFunc
	working sync.WaitGroup
	running []atomic.Int64 // when each connection's last request was begun, since the load began

	mu      sync.Mutex
	samples []sample
	counts  map[string]int // answered, by server
	failed  []error
	closed  int // connections that did not last
}

// newLoad begins a load.
func newLoad(ctx context.Context, from *node.Pod, to netip.AddrPort, q request, conns int) *load {
	l := &load{begun: time.Now(), counts: map[string]int{}, running: make([]atomic.Int64, conns)}
	ctx, l.stop = context.WithCancel(ctx)
	for i := range conns {
		l.working.Go(func() {
			for ctx.Err() == nil {
				err := l.connection(ctx, from, to, q, &l.running[i])
				l.mu.Lock()
				if err != nil && ctx.Err() == nil {
					l.failed = append(l.failed, err)
				}
				if ctx.Err() == nil {
					l.closed++
				}
				enough := len(l.failed) > 10
				l.mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	return l
}

// connection makes requests until the load is stopped, a request fails or the connection ends.
func (l *load) connection(ctx context.Context, from *node.Pod, to netip.AddrPort, q request, running *atomic.Int64) error {
	c, err := connect(ctx, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		begun := time.Since(l.begun)
		running.Store(int64(begun))
		r, err := c.get(q)
		if err != nil {
			return err
		}
		by := r.Header.Get(headerServer)
		if r.StatusCode != http.StatusOK || by == "" {
			return fmt.Errorf("status %d of %q", r.StatusCode, by)
		}
		l.mu.Lock()
		l.samples = append(l.samples, sample{begun, time.Since(l.begun) - begun, by})
		l.counts[by]++
		l.mu.Unlock()
		if r.Close {
			return nil
		}
	}
	return nil
}

// end stops the load and waits for it.
func (l *load) end() {
	l.stop()
	l.working.Wait()
	l.ended = time.Since(l.begun)
}

// of is the number of answers of a server so far.
func (l *load) of(server string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[server]
}

// settled waits until all requests that were begun before this moment are answered.
func (l *load) settled(ctx context.Context) error {
	moment := time.Since(l.begun)
	return until(ctx, "waiting for the answers to earlier requests", func() (bool, error) {
		for i := range l.running {
			if time.Duration(l.running[i].Load()) < moment {
				return false, nil
			}
		}
		return true, nil
	})
}

// more waits for another answer of a server.
func (l *load) more(ctx context.Context, server string) error {
	before := l.of(server)
	return until(ctx, "waiting for an answer of "+server, func() (bool, error) { return l.of(server) > before, nil })
}

// error is what failed so far.
func (l *load) error() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.failed...)
}

// until polls.
func until(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := ok(); yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// between counts the requests that a server answered and that were begun in a span of time.
func (l *load) between(server string, from, to time.Duration) (n int) {
	for _, one := range l.samples {
		if one.server == server && one.begun > from && one.begun < to {
			n++
		}
	}
	return n
}

// shares is what a version has of the answers in the course of the load, in so many steps. Of the requests that were
// begun after a moment, it says how many there were, and how many went elsewhere.
func (l *load) shares(version string, steps int, moment time.Duration) (shares []float64, after, stray int) {
	shares = make([]float64, steps)
	all := make([]float64, steps)
	for _, one := range l.samples {
		i := min(int(int64(one.begun)*int64(steps)/int64(l.ended)), steps-1)
		its := strings.HasPrefix(one.server, version)
		all[i]++
		if its {
			shares[i]++
		}
		if one.begun > moment {
			after++
			if !its {
				stray++
			}
		}
	}
	for i := range shares {
		shares[i] /= all[i] // 0/0 is NaN: nothing was answered
	}
	return shares, after, stray
}

// String is the load in a few words.
func (l *load) String() string {
	took := make([]time.Duration, 0, len(l.samples))
	for _, s := range l.samples {
		took = append(took, s.took)
	}
	slices.Sort(took)
	at := func(share float64) time.Duration {
		if len(took) == 0 {
			return 0
		}
		return took[min(len(took)-1, int(share*float64(len(took))))].Round(10 * time.Microsecond)
	}
	text := fmt.Sprintf("%d requests in %s, half of them within %s, 99 %% within %s, the slowest %s",
		len(l.samples), l.ended.Round(10*time.Millisecond), at(0.5), at(0.99), at(1))
	for i, err := range l.failed {
		if i == 3 {
			break
		}
		text += fmt.Sprintf("; failed: %v", err)
	}
	return text
}
