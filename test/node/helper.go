// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// MetricsAddr is where the node's helper serves /metrics and /readyz, in the node's network namespace (Node.Get).
const MetricsAddr = "127.0.0.1:15020"

const (
	readyLimit = 15 * time.Second
	// stopLimit is the helper's promise: SIGTERM ends it within 2 s.
	stopLimit = 2 * time.Second
)

// Helper is a running kmesh-helper.
type Helper struct {
	*Process
	ReadyLine string        // what it printed when it was ready
	ReadyIn   time.Duration // from its start
	LogPath   string        // its standard error, whole

	n *Node
}

// Socket is the helper's unix socket for kmeshctl.
func (n *Node) Socket() string { return filepath.Join(n.RunDir, "helper.sock") }

// StartHelper runs kmesh-helper on the node with "run", the node's folders and args (such as "--xds-dir", dir), and
// waits until it has printed its line and /readyz says 200. It is in the node's network namespace, where its metrics
// port and an xDS server that a test opens with Do and Listen are private.
func (n *Node) StartHelper(ctx context.Context, args ...string) (*Helper, error) {
	h, err := n.startHelper(ctx, args)
	if err != nil {
		return nil, fmt.Errorf("starting the helper: %w", err)
	}
	return h, nil
}

func (n *Node) startHelper(ctx context.Context, args []string) (*Helper, error) {
	began := time.Now()
	h, out, err := n.launchHelper(ctx, args)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	if err := h.waitReady(ctx, out); err != nil {
		h.Kill9()
		return nil, fmt.Errorf("%w; its log ends:\n%s", err, h.logTail())
	}
	h.ReadyIn = time.Since(began)
	n.record(n.BPFFS)
	return h, nil
}

// LaunchHelper is StartHelper that does not wait: for helpers that are killed before they are ready, or never will be.
func (n *Node) LaunchHelper(ctx context.Context, args ...string) (*Helper, error) {
	h, out, err := n.launchHelper(ctx, args)
	if err != nil {
		return nil, fmt.Errorf("starting the helper: %w", err)
	}
	go func() { // its line is for nobody, but must not end it
		_, _ = io.Copy(io.Discard, out)
		out.Close()
	}()
	return h, nil
}

func (n *Node) launchHelper(ctx context.Context, args []string) (_ *Helper, stdout *os.File, err error) {
	bin, err := n.program(ctx, "kmesh-helper")
	if err != nil {
		return nil, nil, err
	}
	all := append([]string{"run", "--bpffs", n.BPFFS, "--run-dir", n.RunDir, "--state-dir", n.StateDir}, args...)
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--metrics") }) {
		all = append(all, "--metrics", MetricsAddr)
	}
	log, err := os.CreateTemp(n.logDir(), "helper-")
	if err != nil {
		return nil, nil, err
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(bin, all...)
	cmd.Stderr = log
	if n.opts.Log != nil {
		cmd.Stderr = io.MultiWriter(log, n.opts.Log)
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout = w
	proc, err := start(cmd, n.NetnsPath, filepath.Join(n.CgroupRoot, "helper"))
	w.Close()
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	h := &Helper{Process: proc, LogPath: log.Name(), n: n}
	n.mu.Lock()
	n.helper = h
	n.ranHelper = true
	n.mu.Unlock()
	return h, out, nil
}

func (h *Helper) waitReady(ctx context.Context, out *os.File) error {
	line := make(chan string, 1)
	go func() {
		l, _ := bufio.NewReader(out).ReadString('\n')
		line <- strings.TrimSpace(l)
	}()
	select {
	case h.ReadyLine = <-line:
		if h.ReadyLine == "" {
			return errors.New("it ended its output without being ready")
		}
	case <-h.Done():
		return fmt.Errorf("it ended before it was ready: %w", errors.Join(h.Wait(), io.ErrUnexpectedEOF))
	case <-ctx.Done():
		_ = out.SetReadDeadline(time.Now())
		return fmt.Errorf("it printed no line within %s: %w", readyLimit, ctx.Err())
	}
	var last string
	if !poll(ctx, readyLimit, func() bool {
		body, err := h.n.Get(ctx, "/readyz")
		if err != nil {
			last = err.Error()
		} else {
			last = body
		}
		return err == nil
	}) {
		return fmt.Errorf("it printed %q but /readyz disagrees: %s", h.ReadyLine, last)
	}
	return nil
}

func (h *Helper) logTail() string {
	b, err := os.ReadFile(h.LogPath)
	if err != nil {
		return err.Error()
	}
	const most = 4096
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

// Kill9 kills the helper, and waits until it is dead.
func (h *Helper) Kill9() {
	h.n.record(h.n.BPFFS)
	h.Kill()
	h.forget()
}

// Stop asks the helper to stop. It is an error when that takes longer than it may, or its exit status is not 0.
func (h *Helper) Stop(ctx context.Context) error {
	defer h.forget()
	h.n.record(h.n.BPFFS)
	if err := h.Process.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping the helper: %w", err)
	}
	select {
	case <-h.Done():
	case <-ctx.Done():
		h.Kill()
		return fmt.Errorf("stopping the helper: %w", context.Cause(ctx))
	case <-time.After(stopLimit):
		h.Kill()
		return fmt.Errorf("stopping the helper: SIGTERM did not end it within %s; its log ends:\n%s", stopLimit, h.logTail())
	}
	if err := h.Wait(); err != nil {
		return fmt.Errorf("stopping the helper: %w; its log ends:\n%s", err, h.logTail())
	}
	return nil
}

func (h *Helper) forget() {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.helper == h {
		h.n.helper = nil
	}
}

func (n *Node) currentHelper() *Helper {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.helper
}

// Get asks the helper's HTTP port. An answer other than 200 is an error.
func (n *Node) Get(ctx context.Context, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: n.DialContext}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+MetricsAddr+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// DialContext connects from the node's network namespace, by IP address.
func (n *Node) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() error {
		// No name to look up and one address only, so Dial makes the socket on this very thread.
		var err error
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Kmeshctl runs kmeshctl against the node's helper and returns its standard output.
func (n *Node) Kmeshctl(ctx context.Context, args ...string) ([]byte, error) {
	bin, err := n.program(ctx, "kmeshctl")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, bin, append([]string{"--socket", n.Socket()}, args...)...).Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			err = fmt.Errorf("%w: %s", err, ee.Stderr)
		}
		return out, fmt.Errorf("kmeshctl %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// uninstall runs kmesh-helper uninstall where a helper ever ran.
func (n *Node) uninstall(ctx context.Context) error {
	n.mu.Lock()
	ran := n.ranHelper
	n.mu.Unlock()
	if !ran {
		return nil
	}
	return n.Uninstall(ctx)
}

// Uninstall removes kmesh from the node on purpose, as an administrator does: pods go on, ungoverned.
func (n *Node) Uninstall(ctx context.Context) error {
	n.record(n.BPFFS)
	bin, err := n.program(ctx, "kmesh-helper")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, bin, "uninstall", "--bpffs", n.BPFFS, "--run-dir", n.RunDir, "--state-dir", n.StateDir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as all else: not interrupted from the terminal
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kmesh-helper uninstall: %w: %s", err, out)
	}
	return nil
}
