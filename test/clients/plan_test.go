// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kmesh/test/node"
)

// step is a request that a client is to make, and what has to come of it.
type step struct {
	method, path string
	upload       string // name of the content that is sent; empty: none
	server       string // that has to answer
	status       int
	want         string // name of the content that is to come back
}

// lap is requests of all kinds, each to another server than the one before. Uploads to nginx get names that begin with
// unique.
func lap(unique string) []step {
	return []step{
		{"GET", "/nginx/file/small", "", "nginx", 200, "small"},
		{"GET", "/haproxy/file/small", "", "haproxy", 200, "small"},
		{"POST", "/go/echo", "page", "go", 200, "page"},
		{"GET", "/node/file/page", "", "node", 200, "page"},
		{"POST", "/haproxy/echo", "page", "haproxy", 200, "page"},
		{"PUT", "/nginx/put/" + unique, "big", "nginx", 201, ""},
		{"POST", "/node/echo", "small", "node", 200, "small"},
		{"GET", "/go/file/small", "", "go", 200, "small"},
		{"GET", "/nginx/put/" + unique, "", "nginx", 200, "big"},
		{"POST", "/node/echo", "big", "node", 200, "big"},
	}
}

// laps are so many of them.
func laps(unique string, n int) (out []step) {
	for i := range n {
		out = append(out, lap(fmt.Sprintf("%s-%d", unique, i))...)
	}
	return out
}

// answer is what a client says of the response to a step that went well.
func (s step) answer() string {
	return fmt.Sprintf("%d %s %x", s.status, s.server, sha256.Sum256(content[s.want]))
}

// file is the path of a content, "-" for none.
func (b *bed) file(name string) string {
	if name == "" {
		return "-"
	}
	return filepath.Join(b.dir, "file", name)
}

// check fails unless every step had its answer.
func (b *bed) check(steps []step, answers []string) {
	b.Helper()
	if len(answers) != len(steps) {
		b.Errorf("%d answers to %d requests", len(answers), len(steps))
	}
	wrong := 0
	for i, s := range steps[:min(len(steps), len(answers))] {
		if answers[i] != s.answer() {
			if wrong++; wrong <= 5 {
				b.Errorf("request %d, %s %s: %s, want %s", i, s.method, s.path, answers[i], s.answer())
			}
		}
	}
	if wrong > 5 {
		b.Errorf("and %d more", wrong-5)
	}
}

// routed fails unless the kernel counted just these requests, on so many connections, each of which took its steps in
// a row from where the one before left off.
func (b *bed) routed(svc service, got counts, connections ...[]step) {
	b.Helper()
	var switches, first, total uint64
	want := map[int]map[string]uint64{}
	for _, steps := range connections {
		last := svc.guess
		for i, s := range steps {
			if s.server != last {
				switches++
			} else if i == 0 {
				first++
			}
			last = s.server
			if want[s.status] == nil {
				want[s.status] = map[string]uint64{}
			}
			want[s.status][s.server]++
			total++
		}
	}
	for status, clusters := range want {
		equal(b, fmt.Sprintf("requests with status %d by cluster", status), got.clusters(svc, uint16(status)), clusters)
	}
	var all uint64
	for _, n := range got.requests {
		all += n
	}
	if all != total {
		b.Errorf("the kernel counted %d requests, want %d", all, total)
	}
	if n := got.events["flow"]; n != uint64(len(connections)) {
		b.Errorf("%d connections, want %d", n, len(connections))
	}
	if n := got.switches(); n != switches {
		b.Errorf("%d requests went on another leg than the one before, want %d", n, switches)
	}
	if n := got.events["confirmed"]; n != first {
		b.Errorf("%d guesses were right, want %d", n, first)
	}
	equal(b, "pins", got.pins(), nil)
}

// peer is a client that runs in the client's pod and makes a request for each line.
type peer struct {
	b    *bed
	proc *node.Process
	in   io.WriteCloser
	out  *os.File
	r    *bufio.Reader
	errs *bytes.Buffer
}

// start begins a client, which ends with the test at the latest.
func (b *bed) start(args ...string) *peer {
	b.Helper()
	in, inW, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	outR, out, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	c := &peer{b: b, in: inW, out: outR, r: bufio.NewReader(outR), errs: new(bytes.Buffer)}
	cmd := command(context.WithoutCancel(b.ctx), args)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, c.errs
	c.proc, err = b.client.StartCmd(cmd)
	in.Close()
	out.Close()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		inW.Close()
		c.proc.Kill()
		outR.Close()
	})
	return c
}

// ask has a request made, and returns what the client says of it.
func (c *peer) ask(method, url, file string) string {
	c.b.Helper()
	if _, err := fmt.Fprintln(c.in, method, url, file); err != nil {
		c.b.Fatal(err)
	}
	_ = c.out.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := c.r.ReadString('\n')
	if err != nil {
		for _, f := range c.b.rt.LiveFlows() {
			c.b.Logf("%s flow, pin %q: %+v", f.StateName(), f.PinName(), f)
		}
		c.proc.Kill()
		c.b.Fatalf("%s: %s %s: %q, %v; it said %s", c.proc.Args, method, url, line, err, c.errs)
	}
	return strings.TrimSpace(line)
}

// end lets the client end.
func (c *peer) end() {
	c.b.Helper()
	c.in.Close()
	select {
	case <-c.proc.Done():
	case <-time.After(10 * time.Second):
		c.proc.Kill()
		c.b.Errorf("%s does not end", c.proc.Args)
	}
	if err := c.proc.Wait(); err != nil {
		c.b.Errorf("%s: %v: %s", c.proc.Args, err, c.errs)
	}
}

// walk makes a client take steps, one after the other.
func (c *peer) walk(svc service, steps []step) (answers []string) {
	c.b.Helper()
	for _, s := range steps {
		answers = append(answers, c.ask(s.method, svc.url(s.path), c.b.file(s.upload)))
	}
	return answers
}

// run runs a program in the client's pod to its end, and returns what it printed.
func (b *bed) run(args ...string) string {
	b.Helper()
	out, err := b.tryRun(args...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func (b *bed) tryRun(args ...string) (string, error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	cmd := command(ctx, args)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	proc, err := b.client.StartCmd(cmd)
	if err != nil {
		return "", err
	}
	if err := proc.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s%s", args, err, errs.Bytes(), out.Bytes())
	}
	return out.String(), nil
}
