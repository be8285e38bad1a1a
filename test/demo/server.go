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
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"kmesh/test/node"
)

const httpPort = 8000

// Headers by which a server says who it is, and whom it saw.
const (
	headerServer = "X-Server"
	headerPeer   = "X-Peer"
)

// serve is the whole life of an HTTP server in a pod (the demo's own program, started again): it listens, says so, and
// ends as servers do that are restarted with care. On SIGTERM it takes no more connections, ends those that are idle
// and finishes what it has begun.
func serve(name string) error {
	// IPv4 only, so that its sockets are all in one table (sockets.go).
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", httpPort))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerServer, name)
		w.Header().Set(headerPeer, r.RemoteAddr)
		_, _ = io.WriteString(w, "hello from "+name+"\n")
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	fmt.Println("ready")
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

// server is an HTTP server in a pod.
type server struct {
	*node.Process
	pod *node.Pod
}

func (e *server) at() netip.AddrPort { return netip.AddrPortFrom(e.pod.IP4, httpPort) }

// start begins the server's process, the first or the next, and waits until it listens.
func (e *server) start(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, "-serve", e.pod.Name)
	cmd.Stdout = w
	e.Process, err = e.pod.StartCmd(cmd)
	w.Close()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(5 * time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = r.SetReadDeadline(deadline)
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		return fmt.Errorf("the HTTP server of %s is not ready: %w", e.pod.Name, err)
	}
	return nil
}

// stop asks the server to end, and waits for it. It is an error if it does not, or not well.
func (e *server) stop(ctx context.Context) error {
	if err := e.Process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	select {
	case <-e.Done():
	case <-ctx.Done():
		return fmt.Errorf("the HTTP server of %s goes on after SIGTERM: %w", e.pod.Name, context.Cause(ctx))
	}
	if err := e.Wait(); err != nil {
		return errors.Join(fmt.Errorf("the HTTP server of %s ended badly", e.pod.Name), err)
	}
	return nil
}
