// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// pathServer is a server that answers each request with its path, and ends the connection when the request says so.
func pathServer(c *net.TCPConn, e *server) {
	r := bufio.NewReaderSize(c, 1024)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		path, _, _ := strings.Cut(strings.TrimPrefix(line, "GET "), " ")
		ends := false
		for line != "\r\n" {
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
			ends = ends || line == "Connection: close\r\n"
		}
		connection := ""
		if ends {
			connection = "Connection: close\r\n"
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", connection, len(path), path); err != nil || ends {
			return
		}
	}
}

// churn makes short connections from the second client, whose interface nothing of ours slows, and fails if one does.
func (s *scene) churn(svc *service, n int, serverFirst bool) {
	s.Helper()
	events := s.bed.events(s.T)
	got, err := s.clients[churner].Churn(s.ctx, wire.Churn{Addr: svc.at.String(), N: n, Parallel: 16, Timeout: patience, ServerFirst: serverFirst})
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("server first %v: %d of %d connections in %v, %.0f/s, p50 %v p99 %v max %v", serverFirst, got.Done, n, got.Took.Round(time.Millisecond),
		float64(got.Done)/got.Took.Seconds(), got.P50.Round(10*time.Microsecond), got.P99.Round(10*time.Microsecond), got.Max.Round(10*time.Microsecond))
	s.logEvents(events)
	if now := s.bed.events(s.T); s.rt != nil {
		// One endpoint: each guess is right, and is counted so.
		right, wrong := now[confirmed]-events[confirmed], now[rebound]-events[rebound]
		if s.Logf("%d guesses were right, %d wrong", right, wrong); right != uint64(n) || wrong != 0 {
			s.Errorf("%d guesses of one endpoint were right and %d wrong, want %d and 0", right, wrong, n)
		}
	}
	for fault, k := range got.Errors {
		s.Errorf("%d connections: %s", k, fault)
	}
	if got.Done != n {
		s.Errorf("%d of %d connections were answered", got.Done, n)
	}
}

// churner is the client that makes short connections.
const churner = 1

// reuse lets a pod's own connections use ports that rest in TIME_WAIT for a second, as clients that make many have to:
// where the client closes first, its kernel has no other for the 28,233rd connection of a minute.
func reuse(p *node.Pod) error {
	return p.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0o644) })
}

// closePerRequest: one pod makes a connection for each request to one endpoint, as fast as the machine goes, with tables
// of the default sizes.
func closePerRequest(s *scene) {
	if err := reuse(s.clients[churner]); err != nil {
		s.Fatal(err)
	}
	e := s.raw(0, pathServer)
	svc := s.serve(s.to("/", e))
	n := many(4000, 30_000)
	if full && s.mode == tcx && !s.v6 {
		n = 300_000 // once; the other ways take no other path
	}
	for _, serverFirst := range []bool{true, false} {
		s.churn(svc, n, serverFirst)
	}
	s.wantClosed(e)
	if got := e.accepted(); got < 2*n {
		s.Errorf("the endpoint got %d connections of %d", got, 2*n)
	}
}

// helperDead uses the tables over and over while no process of ours lives that could tidy them: ten times as many
// connections pass as there are flows.
func helperDead(t *testing.T, b *bed) {
	if err := reuse(b.clients[churner]); err != nil {
		t.Fatal(err)
	}
	n := int(b.rt.Map("km_flows").MaxEntries()) * 21 / 4 // twice
	s := newScene(t, b, false, false)
	e := s.raw(0, pathServer)
	svc := s.serve(s.to("/", e))
	before := s.bed.events(t)
	if err := b.rt.Close(); err != nil {
		t.Fatal(err)
	}
	b.rt = nil
	s.churn(svc, n, true)
	s.churn(svc, n, false)
	s.wantClosed(e)
	b.load()
	s.logEvents(before)
}

// TestHelperDead: with tables of the default sizes; small ones are in TestSmallTables.
func TestHelperDead(t *testing.T) {
	if !full {
		t.Skip("330,000 connections: KMESH_L7=full")
	}
	b := newBed(t, tcx)
	helperDead(t, b)
	b.wantIdle(t)
}
