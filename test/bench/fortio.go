// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"kmesh/test/node"
)

// fortio is the usual pair: a server on Go's net/http, and the load generator that others tell their numbers by. Its
// client is the one that fortio load has unless it is told otherwise (its own, on Go's sockets), and not net/http's
// (-stdclient): that one costs more, and what is between the two would look cheaper than it is.
const (
	fortioPort = 8089
	// As many bytes as package load's server answers with.
	fortioPath = "/?size=97"
)

// fortioVersion is what the report names, as wrk's and HAProxy's.
func fortioVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return "", fmt.Errorf("fortio version: %w", err)
	}
	return "fortio " + strings.TrimSpace(string(out)), nil
}

// serveFortio starts its server at an address of a pod, and nothing else that it could serve.
func (b *bed) serveFortio(ctx context.Context, p *node.Pod, at netip.Addr) error {
	cmd := b.command(context.WithoutCancel(ctx), serverSide, b.fortio, "server", "-loglevel", "Warning",
		"-http-port", netip.AddrPortFrom(at, fortioPort).String(),
		"-grpc-port", "disabled", "-redirect-port", "disabled", "-tcp-port", "disabled", "-udp-port", "disabled",
		"-ui-path", "", "-echo-debug-path", "")
	return b.background(ctx, p, cmd, at, []uint16{fortioPort}, "")
}

// fortio asks as fast as it is answered, over connections that are kept.
func fortio(connections int) func(*bed, *variant, settings) []string {
	return func(b *bed, v *variant, s settings) []string {
		return []string{
			b.fortio, "load", "-loglevel", "Warning", "-qps", "0", "-c", strconv.Itoa(connections), "-t", s.Duration.String(), "-timeout", "10s",
			"-p", "50,99", "-r", "0.000001", "-json", "-", "http://" + netip.AddrPortFrom(v.at, fortioPort).String() + fortioPath,
		}
	}
}

// parseFortio reads the JSON of fortio load. A connection that was not kept is an error too: each goroutine has one.
func parseFortio(out []byte) (counted, error) {
	type histogram struct {
		Count       uint64
		Percentiles []struct{ Percentile, Value float64 }
	}
	var f struct {
		ActualDuration          time.Duration
		NumThreads, SocketCount int
		RetCodes                map[string]uint64
		DurationHistogram       histogram
		ErrorsDurationHistogram histogram
	}
	var c counted
	if err := json.Unmarshal(out, &f); err != nil {
		return c, fmt.Errorf("what fortio printed, %q: %w", out, err)
	}
	const ok = "200"
	all := f.DurationHistogram
	switch {
	case f.ErrorsDurationHistogram.Count > 0 || len(f.RetCodes) != 1 || f.RetCodes[ok] != all.Count:
		return c, fmt.Errorf("of %d requests, by status: %v; %d errors", all.Count, f.RetCodes, f.ErrorsDurationHistogram.Count)
	case all.Count == 0 || f.ActualDuration <= 0:
		return c, fmt.Errorf("fortio counted nothing: %s", out)
	case f.SocketCount != f.NumThreads:
		return c, fmt.Errorf("fortio made %d connections and should have kept %d", f.SocketCount, f.NumThreads)
	}
	c.Count, c.Seconds = all.Count, f.ActualDuration.Seconds()
	for _, p := range all.Percentiles {
		switch us := p.Value * 1e6; p.Percentile {
		case 50:
			c.P50 = us
		case 99:
			c.P99 = us
		}
	}
	if c.P50 <= 0 || c.P99 < c.P50 {
		return c, fmt.Errorf("fortio's percentiles: %v", all.Percentiles)
	}
	return c, nil
}
