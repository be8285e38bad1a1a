// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// route is a path that a client asks for, and the server that its own scope leads to.
type route struct{ path, want string }

// pace is the shortest time between two requests of a client: the rest of the machine is for what is tested.
const pace = 2 * time.Millisecond

// load are clients that ask until it ends, half of them over one connection for all of their requests. Nothing is tried
// again: each answer counts.
type load struct {
	ctx  context.Context
	stop context.CancelFunc
	all  sync.WaitGroup

	clients []*loader
	mu      sync.Mutex
	wrong   []string
}

// loader is one of the clients.
type loader struct {
	pod     *node.Pod
	keep    bool // the connection; else each request has one of its own
	conn    net.Conn
	answers *bufio.Reader
	routes  []route
	asked   atomic.Int64
}

func newLoad(ctx context.Context) *load {
	l := &load{}
	l.ctx, l.stop = context.WithCancel(ctx)
	return l
}

// add makes a pod ask for routes over one connection, and over new ones.
func (l *load) add(p *node.Pod, routes ...route) {
	for _, keep := range []bool{true, false} {
		c := &loader{pod: p, routes: routes, keep: keep}
		l.clients = append(l.clients, c)
		l.all.Go(func() { l.run(c) })
	}
}

func (l *load) run(c *loader) {
	defer func() {
		if c.conn != nil {
			c.conn.Close()
		}
	}()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; l.ctx.Err() == nil; i++ {
		<-tick.C
		r := c.routes[i%len(c.routes)]
		got, err := c.ask(l.ctx, r.path)
		if l.ctx.Err() != nil {
			return // it was broken off
		}
		if err != nil || got != r.want {
			l.mu.Lock()
			l.wrong = append(l.wrong, fmt.Sprintf("%s: %s asks for %s (one connection: %t): %q, %v, want %q",
				time.Now().Format("15:04:05.000"), c.pod.Name, r.path, c.keep, got, err, r.want))
			l.mu.Unlock()
		}
		c.asked.Add(1)
	}
}

// ask makes one request, over the connection that is kept if there is one. An http.Transport would try again what its
// old connection does not answer.
func (c *loader) ask(ctx context.Context, path string) (answer string, err error) {
	if c.conn == nil {
		conn, res, err := c.pod.Conn(ctx, wire.Dial{Network: wire.TCP, Addr: catalogAt, Timeout: 5 * time.Second})
		if err == nil && conn == nil {
			err = errors.New(res.Call + " " + res.Errno)
		}
		if err != nil {
			return "", err
		}
		c.conn, c.answers = conn, bufio.NewReader(conn)
	}
	defer func() {
		if err != nil || !c.keep {
			c.conn.Close()
			c.conn = nil
		}
	}()
	if err := c.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c.conn, "GET "+path+" HTTP/1.1\r\nHost: "+catalogHost+"\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.Status, err
	}
	return string(body), err
}

// more waits until each client has asked n times more.
func (l *load) more(b *bed, n int64) {
	b.Helper()
	from := make([]int64, len(l.clients))
	for i, c := range l.clients {
		from[i] = c.asked.Load()
	}
	b.until(fmt.Sprintf("each client asks %d times more", n), func() error {
		for i, c := range l.clients {
			if got := c.asked.Load() - from[i]; got < n {
				return fmt.Errorf("%s has asked %d times", c.pod.Name, got)
			}
		}
		return nil
	})
}

// end stops it, and tells what was not as it should be.
func (l *load) end(b *bed) {
	b.Helper()
	l.stop()
	l.all.Wait()
	var asked int64
	for _, c := range l.clients {
		asked += c.asked.Load()
	}
	b.Logf("%d requests, %d of them wrong", asked, len(l.wrong))
	for _, w := range l.wrong[:min(len(l.wrong), 20)] {
		b.Error(w)
	}
}
