// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"

	"kmesh/test/node/wire"
)

// agent is our end of the process inside a pod that package wire describes.
type agent struct {
	proc  *Process
	in    io.WriteCloser
	socks *handover

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan wire.Answer
	dead    error
}

// Dial makes a connection, or a UDP exchange, from the pod. A system call that fails is no error: see Result.Errno.
func (p *Pod) Dial(ctx context.Context, d wire.Dial) (wire.Result, error) {
	return result(p.ask(ctx, wire.Request{Dial: &d}))
}

// DialN makes many, and counts.
func (p *Pod) DialN(ctx context.Context, d wire.DialN) (wire.Counts, error) {
	ans, err := p.ask(ctx, wire.Request{DialN: &d})
	if err != nil || ans.Counts == nil {
		return wire.Counts{}, err
	}
	return *ans.Counts, nil
}

// Churn makes many short connections as fast as they go.
func (p *Pod) Churn(ctx context.Context, c wire.Churn) (wire.Churned, error) {
	ans, err := p.ask(ctx, wire.Request{Churn: &c})
	if err != nil || ans.Churned == nil {
		return wire.Churned{}, err
	}
	return *ans.Churned, nil
}

// Exchange makes another exchange over a socket that Dial kept.
func (p *Pod) Exchange(ctx context.Context, e wire.Exchange) (wire.Result, error) {
	return result(p.ask(ctx, wire.Request{Exchange: &e}))
}

// Reconnect connects a UDP socket that Dial kept elsewhere, or disconnects it.
func (p *Pod) Reconnect(ctx context.Context, c wire.Connect) (wire.Result, error) {
	return result(p.ask(ctx, wire.Request{Connect: &c}))
}

// Hangup closes a socket that Dial kept, or a listener with the connections it accepted.
func (p *Pod) Hangup(ctx context.Context, handle uint64) error {
	_, err := p.ask(ctx, wire.Request{Close: &wire.Close{Handle: handle}})
	return err
}

// Listen starts a server in the pod. The handle is for Hangup.
func (p *Pod) Listen(ctx context.Context, l wire.Listen) (at netip.AddrPort, handle uint64, err error) {
	res, err := result(p.ask(ctx, wire.Request{Listen: &l}))
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	at, err = netip.ParseAddrPort(res.Local)
	return at, res.Handle, err
}

func result(ans wire.Answer, err error) (wire.Result, error) {
	if err != nil || ans.Result == nil {
		return wire.Result{}, err
	}
	return *ans.Result, nil
}

// ask starts the pod's agent if need be, and asks it.
func (p *Pod) ask(ctx context.Context, req wire.Request) (wire.Answer, error) {
	a, err := p.running(ctx)
	if err != nil {
		return wire.Answer{}, err
	}
	ans, err := a.ask(ctx, req)
	if err != nil {
		err = fmt.Errorf("pod %s: %w", p.Name, err)
	}
	return ans, err
}

func (p *Pod) running(ctx context.Context) (*agent, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.agent != nil {
		return p.agent, nil
	}
	dir, err := Programs(ctx, "agent")
	if err != nil {
		return nil, err
	}
	// Not bound to ctx: it serves later requests too, and ends with the pod.
	cmd := exec.Command(dir + "/agent")
	cmd.Stderr = p.n.opts.Log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe, whose reading end Wait closes before the last answers are read.
	out, w, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	cmd.Stdout = w
	socks, theirs, err := newHandover()
	if err != nil {
		in.Close()
		out.Close()
		w.Close()
		return nil, err
	}
	cmd.ExtraFiles = []*os.File{theirs} // wire.Handed
	proc, err := p.StartCmd(cmd)
	w.Close()
	theirs.Close()
	if err != nil {
		in.Close()
		out.Close()
		socks.close()
		return nil, err
	}
	a := &agent{proc: proc, in: in, socks: socks, waiting: map[uint64]chan wire.Answer{}}
	go a.read(out)
	p.agent = a
	return a, nil
}

func (a *agent) read(out *os.File) {
	defer out.Close()
	dec := json.NewDecoder(bufio.NewReader(out))
	for {
		var ans wire.Answer
		if err := dec.Decode(&ans); err != nil {
			a.mu.Lock()
			a.dead = fmt.Errorf("the pod's agent has ended: %w", err)
			for _, ch := range a.waiting {
				close(ch)
			}
			a.waiting = nil
			a.mu.Unlock()
			return
		}
		a.mu.Lock()
		ch := a.waiting[ans.ID]
		delete(a.waiting, ans.ID)
		a.mu.Unlock()
		if ch != nil {
			ch <- ans
		}
	}
}

func (a *agent) ask(ctx context.Context, req wire.Request) (wire.Answer, error) {
	ch := make(chan wire.Answer, 1)
	a.mu.Lock()
	if a.dead != nil {
		a.mu.Unlock()
		return wire.Answer{}, a.dead
	}
	a.last++
	req.ID = a.last
	a.waiting[req.ID] = ch
	line, err := json.Marshal(req)
	if err == nil {
		_, err = a.in.Write(append(line, '\n'))
	}
	if err != nil {
		delete(a.waiting, req.ID)
	}
	a.mu.Unlock()
	if err != nil {
		return wire.Answer{}, fmt.Errorf("asking the pod's agent: %w", err)
	}
	select {
	case ans, ok := <-ch:
		switch {
		case !ok:
			a.mu.Lock()
			defer a.mu.Unlock()
			return ans, a.dead
		case ans.Error != "":
			return ans, errors.New(ans.Error)
		}
		return ans, nil
	case <-ctx.Done():
		a.mu.Lock()
		delete(a.waiting, req.ID)
		a.mu.Unlock()
		return wire.Answer{}, fmt.Errorf("waiting for the pod's agent: %w", context.Cause(ctx))
	}
}

// stop ends the agent: by the end of its input, or by force.
func (a *agent) stop() error {
	a.in.Close()
	defer a.socks.close()
	select {
	case <-a.proc.Done():
		return nil
	case <-time.After(2 * time.Second):
		a.proc.Kill()
		return errors.New("the pod's agent did not end when its input did")
	}
}
