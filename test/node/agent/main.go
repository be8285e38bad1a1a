// SPDX-License-Identifier: Apache-2.0

// Command agent is the process inside a test's pod: it opens sockets and serves as it is told on stdin (package wire)
// and answers on stdout, until stdin ends.
//
// Invariant: it makes the very system calls that it reports, on blocking sockets, with nothing between: what
// getpeername(2) says to it is what it says to any program in this pod.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"kmesh/test/node/wire"
)

func main() {
	a := &agent{out: json.NewEncoder(os.Stdout), open: map[uint64]closer{}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var req wire.Request
		if err := json.Unmarshal(in.Bytes(), &req); err != nil {
			fmt.Fprintf(os.Stderr, "agent: cannot read request: %v\n", err)
			os.Exit(2)
		}
		// Each on its own: a long DialN does not hold up an Exchange.
		go a.serve(req)
	}
}

type closer interface{ close() }

type agent struct {
	mu   sync.Mutex
	out  *json.Encoder
	last uint64
	open map[uint64]closer
}

func (a *agent) serve(req wire.Request) {
	ans := wire.Answer{ID: req.ID}
	var err error
	switch {
	case req.Listen != nil:
		ans.Result, err = a.listen(*req.Listen)
	case req.Dial != nil:
		ans.Result, err = a.dial(*req.Dial)
	case req.DialN != nil:
		ans.Counts, err = dialN(*req.DialN)
	case req.Churn != nil:
		ans.Churned, err = churn(*req.Churn)
	case req.Exchange != nil:
		ans.Result, err = a.exchange(*req.Exchange)
	case req.Connect != nil:
		ans.Result, err = a.reconnect(*req.Connect)
	case req.Close != nil:
		ans.Result, err = a.closeHandle(*req.Close)
	default:
		err = fmt.Errorf("empty request")
	}
	if err != nil {
		ans.Error = err.Error()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.out.Encode(ans); err != nil {
		os.Exit(1) // nobody reads any more
	}
}

func (a *agent) keep(c closer) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	a.open[a.last] = c
	return a.last
}

func (a *agent) dial(d wire.Dial) (*wire.Result, error) {
	s, res, err := open(d)
	if err != nil || s == nil {
		return res, err
	}
	if d.HandOver {
		a.mu.Lock()
		a.last++
		res.Handle = a.last
		a.mu.Unlock()
		defer s.close()
		return res, s.handOver(res.Handle)
	}
	if !d.Keep {
		s.close()
		return res, nil
	}
	res.Handle = a.keep(s)
	return res, nil
}

func (a *agent) exchange(e wire.Exchange) (*wire.Result, error) {
	a.mu.Lock()
	s, ok := a.open[e.Handle].(*socket)
	a.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("exchange: no open socket has handle %d", e.Handle)
	}
	return s.again(e)
}

func (a *agent) reconnect(c wire.Connect) (*wire.Result, error) {
	a.mu.Lock()
	s, ok := a.open[c.Handle].(*socket)
	a.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("connect: no open socket has handle %d", c.Handle)
	}
	return s.reconnect(c)
}

func (a *agent) closeHandle(c wire.Close) (*wire.Result, error) {
	a.mu.Lock()
	s, ok := a.open[c.Handle]
	delete(a.open, c.Handle)
	a.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("close: nothing has handle %d", c.Handle)
	}
	s.close()
	return &wire.Result{}, nil
}

func dialN(d wire.DialN) (*wire.Counts, error) {
	n, par := d.N, max(d.Parallel, 1)
	if n <= 0 {
		return nil, fmt.Errorf("dialN: n is %d, want at least 1", n)
	}
	counts := &wire.Counts{Servers: map[string]int{}, Peers: map[string]int{}, Errnos: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	todo := make(chan struct{}, n)
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	for range par {
		wg.Go(func() {
			for range todo {
				s, res, err := open(d.Dial)
				if s != nil {
					s.close()
				}
				mu.Lock()
				if err != nil {
					failed = err
					mu.Unlock()
					return
				}
				counts.Done++
				if res.Errno != "" {
					counts.Errnos[res.Call+" "+res.Errno]++
				} else {
					counts.Servers[res.Server]++
				}
				if res.Peer != "" {
					counts.Peers[res.Peer]++
				}
				mu.Unlock()
				pause(d.Pause)
			}
		})
	}
	wg.Wait()
	return counts, failed
}
