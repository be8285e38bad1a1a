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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"kmesh/bpf"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// patience is how long anything may take before it counts as not happening.
const patience = 2 * time.Minute

// bed is a node with a helper that follows a server, and pods.
type bed struct {
	opts   options
	node   *node.Node
	world  world
	server *server
	helper *node.Helper
	args   []string
	watch  *watcher
	api    *apiServer  // nil with one scope
	pods   []*node.Pod // the clients, one for each view
	client *node.Pod   // the first of them
	moved  int         // changes of the moving service after reconnects
	web    []net.Listener
}

// build makes the node and its web server; nothing of Kmesh runs yet.
func build(ctx context.Context, o options) (_ *bed, err error) {
	// Built before anything is timed.
	if _, err := node.Programs(ctx, "kmesh-helper", "agent"); err != nil {
		return nil, err
	}
	b := &bed{opts: o}
	if b.node, err = node.New(ctx, node.Options{}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	pod, err := b.node.AddPod(ctx, node.PodSpec{Name: "web"})
	if err != nil {
		return nil, err
	}
	b.world = world{services: o.services, server: pod.IP4}
	for k := range perService {
		port := strconv.Itoa(basePort + k)
		var l net.Listener
		if err := pod.Do(func() (err error) {
			l, err = net.Listen("tcp4", ":"+port)
			return err
		}); err != nil {
			return nil, err
		}
		b.web = append(b.web, l)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, port) })}
		go func() { _ = srv.Serve(l) }()
	}
	return b, nil
}

// close ends all, and says what was left behind.
func (b *bed) close() error {
	if b.watch != nil {
		b.watch.close()
	}
	if b.api != nil {
		b.api.http.Close()
	}
	if b.server != nil && b.server.grpc != nil {
		b.server.grpc.Stop()
	}
	for _, l := range b.web {
		l.Close()
	}
	report, err := b.node.Close(context.Background())
	if err != nil {
		return err
	}
	if len(report.Left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(report.Left, "; "))
	}
	return nil
}

// launch starts the helper, and returns when it was started.
func (b *bed) launch(ctx context.Context) (began time.Time, err error) {
	began = time.Now()
	b.helper, err = b.node.LaunchHelper(ctx, b.args...)
	return began, err
}

// ready waits until the helper says that it is ready.
func (b *bed) ready(ctx context.Context) error {
	return until(ctx, "the helper is ready", time.Millisecond, func() error {
		select {
		case <-b.helper.Done():
			return fmt.Errorf("%w: %w", errOver, b.helper.Wait())
		default:
		}
		_, err := b.node.Get(ctx, "/readyz")
		return err
	})
}

// errOver ends until: it will not come.
var errOver = errors.New("the helper has ended")

// until polls until f is satisfied.
func until(ctx context.Context, what string, every time.Duration, f func() error) error {
	for began := time.Now(); ; {
		err := f()
		if err == nil {
			return nil
		}
		if time.Since(began) > patience || errors.Is(err, errOver) {
			return fmt.Errorf("%s: not after %s: %w", what, time.Since(began).Round(time.Millisecond), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(every):
		}
	}
}

// live waits for a first configuration in the maps, and opens the watcher.
func (b *bed) live(ctx context.Context) (at time.Time, err error) {
	err = until(ctx, "a configuration in the maps", look, func() error {
		st, err := bpf.ReadState(b.node.BPFFS)
		if err == nil && st.Phase != bpf.PhaseLive {
			err = fmt.Errorf("the state is %s", st.Phase)
		}
		select {
		case <-b.helper.Done():
			err = fmt.Errorf("%w: %w", errOver, b.helper.Wait())
		default:
		}
		at = time.Now()
		return err
	})
	if err != nil {
		return at, err
	}
	b.watch, err = watch(b.node.BPFFS)
	return at, err
}

// complaints are the errors that the helper has logged, the newest last.
func (b *bed) complaints() string {
	text, err := os.ReadFile(b.helper.LogPath)
	if err != nil {
		return err.Error()
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "level=ERROR") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	if len(out) == 0 {
		return "it logged no error"
	}
	return fmt.Sprintf("it logged %d errors, the last: %s", len(out), out[len(out)-1])
}

// usage is what the helper uses.
type usage struct {
	rss, own, peak int64         // bytes; own is without the maps that are in its memory, and without its program
	cpu, waited    time.Duration // of its threads; waited is for a CPU that others had
}

func (b *bed) usage() (u usage, err error) {
	pid := b.helper.Process.Process.Pid
	status := fmt.Sprintf("/proc/%d/status", pid)
	if u.rss, err = numberIn(status, "VmRSS:"); err != nil {
		return u, err
	}
	if u.peak, err = numberIn(status, "VmHWM:"); err != nil {
		return u, err
	}
	if u.own, err = numberIn(status, "RssAnon:"); err != nil {
		return u, err
	}
	u.rss, u.own, u.peak = u.rss<<10, u.own<<10, u.peak<<10
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return u, err
	}
	for _, t := range tasks {
		var cpu, waited time.Duration
		text, err := os.ReadFile(t)
		if err != nil {
			continue // a thread that has just ended
		}
		if _, err := fmt.Sscan(string(text), &cpu, &waited); err != nil {
			return u, fmt.Errorf("%s: %q: %w", t, text, err)
		}
		u.cpu, u.waited = u.cpu+cpu, u.waited+waited
	}
	return u, nil
}

// ask sends a request of the client pod to a service over a new connection, and returns what was answered.
func (b *bed) ask(ctx context.Context, from *node.Pod, service int, path string) (status int, body string, err error) {
	at := netip.AddrPortFrom(vipOf(service), 80)
	c, res, err := from.Conn(ctx, wire.Dial{Network: wire.TCP, Addr: at.String(), Timeout: 3 * time.Second})
	if err != nil {
		return 0, "", err
	}
	if c == nil {
		return 0, "", fmt.Errorf("connect to %s: %s", at, res.Errno)
	}
	defer c.Close()
	return exchange(c, bufio.NewReader(c), service, path)
}

// exchange sends one request over a connection.
func exchange(c net.Conn, r *bufio.Reader, service int, path string) (status int, body string, err error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, "", err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, hostOf(service)); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// traffic is a client that goes on: a request over a connection that is kept, and one over a new one, in turn.
type traffic struct {
	stop func()
	done sync.WaitGroup
	sent int
	errs []error
}

func (b *bed) traffic(ctx context.Context) *traffic {
	ctx, cancel := context.WithCancel(ctx)
	t := &traffic{stop: cancel}
	t.done.Go(func() {
		kept, _, err := b.client.Conn(ctx, wire.Dial{Network: wire.TCP, Addr: netip.AddrPortFrom(vipOf(steady), 80).String(), Timeout: 3 * time.Second})
		if err != nil || kept == nil {
			t.errs = append(t.errs, fmt.Errorf("connect: %w", err))
			return
		}
		defer kept.Close()
		r := bufio.NewReader(kept)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var status int
			var err error
			if n%2 == 0 {
				status, _, err = exchange(kept, r, steady, "/")
			} else {
				status, _, err = b.ask(context.WithoutCancel(ctx), b.client, steady, "/")
			}
			t.sent++
			if err != nil || status != http.StatusOK {
				t.errs = append(t.errs, fmt.Errorf("request %d: status %d: %w", n, status, err))
				if len(t.errs) > 10 {
					return
				}
			}
		}
	})
	return t
}

// end stops it, and returns how many requests it sent and which failed.
func (t *traffic) end() (int, []error) {
	t.stop()
	t.done.Wait()
	return t.sent, t.errs
}
