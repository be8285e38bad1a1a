// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"kmesh/test/bench/load"
	"kmesh/test/node"
)

// workload is something that a client does with a server.
type workload struct {
	Key  string `json:"key"`
	What string `json:"what"`
	Unit string `json:"unit"`
	// Work is the unit of work that CPU time is told by, and how much of what is counted makes one.
	Work    string  `json:"work"`
	PerWork float64 `json:"-"`
	PerUnit float64 `json:"-"` // of what is counted, to the rate's unit

	others []string // variants beside direct
	client func(b *bed, v *variant, s settings) []string
	parse  func(out []byte) (counted, error) // what the client printed; nil: parse
	// middle: the rate is the median's, since a mean of what takes microseconds tells of interrupts.
	middle bool
	// switches: the variant l7 has another endpoint for each request than for the one before.
	switches bool
}

var workloads = []workload{
	{
		Key: "keepalive1", What: "keep-alive HTTP, 1 connection", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{kmesh, l7, haproxy}, client: wrk(1),
	},
	{
		Key: "keepalive16", What: "keep-alive HTTP, 16 connections", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{kmesh, l7, haproxy}, client: wrk(16),
	},
	{
		Key: "switch1", What: "every request another of 3 endpoints, 1 connection", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{l7, same, haproxy}, client: rotating(1), switches: true,
	},
	{
		Key: "switch16", What: "every request another of 3 endpoints, 16 connections", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{l7, same, haproxy}, client: rotating(16), switches: true,
	},
	{
		// Time bounds the number, and the server closes first: clients' ports do not run out.
		Key: "close", What: "connection per request, 8 at a time", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{kmesh, l7, haproxy}, client: wrk(8, "-H", "Connection: close"),
	},
	{
		Key: "fortio1", What: "fortio to a Go server: keep-alive HTTP, 1 connection", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{l7, haproxy}, client: fortio(1), parse: parseFortio,
	},
	{
		Key: "fortio8", What: "fortio to a Go server: keep-alive HTTP, 8 connections", Unit: "requests/s", Work: "request", PerWork: 1, PerUnit: 1,
		others: []string{l7, haproxy}, client: fortio(8), parse: parseFortio,
	},
	{
		Key: "echo", What: "L4 request/response, 1 byte, 1 connection", Unit: "exchanges/s", Work: "exchange", PerWork: 1, PerUnit: 1,
		others: []string{kmesh, haproxy}, client: own("echo", load.EchoPort),
	},
	{
		Key: "bulk", What: "bulk, 1 connection", Unit: "Gbit/s", Work: "MB", PerWork: 1e6, PerUnit: 1e9 / 8,
		others: []string{kmesh, haproxy}, client: own("stream", load.SinkPort),
	},
	{
		Key: "get", What: "bulk GET, 1 connection", Unit: "Gbit/s", Work: "MB", PerWork: 1e6, PerUnit: 1e9 / 8,
		others: []string{l7, haproxy}, client: own("get", load.PagePort),
	},
	{
		Key: "connect", What: "connect() alone, to a listener in the same pod", Unit: "/s at the p50", Work: "connect", PerWork: 1, PerUnit: 1,
		others: []string{kmesh, passing}, middle: true,
		client: func(b *bed, v *variant, s settings) []string {
			at := v.at
			if v == b.variants[direct] {
				at = v.client.IP4
			}
			return []string{b.self, "load", "connect", "-to", netip.AddrPortFrom(at, load.ConnectPort).String(), "-n", strconv.Itoa(s.Connects)}
		},
	},
}

// wrk's scripts.
const (
	scriptCount  = "wrk.lua"
	scriptRotate = "rotate.lua"
)

func wrk(connections int, args ...string) func(*bed, *variant, settings) []string {
	return func(b *bed, v *variant, s settings) []string {
		return append(b.wrk(v, s, connections, scriptCount, load.HTTPPort), args...)
	}
}

func rotating(connections int) func(*bed, *variant, settings) []string {
	return func(b *bed, v *variant, s settings) []string {
		return b.wrk(v, s, connections, scriptRotate, load.SwitchPort)
	}
}

// wrk takes options behind the address too.
func (b *bed) wrk(v *variant, s settings, connections int, script string, port uint16) []string {
	return []string{
		"wrk", "http://" + netip.AddrPortFrom(v.at, port).String() + "/", "-t", "1", "-c", strconv.Itoa(connections), "--timeout", "10s",
		"-d", fmt.Sprintf("%ds", int(max(s.Duration, time.Second)/time.Second)), "-s", filepath.Join(b.scripts, script),
	}
}

func own(command string, port uint16) func(*bed, *variant, settings) []string {
	return func(b *bed, v *variant, s settings) []string {
		return []string{b.self, "load", command, "-to", netip.AddrPortFrom(v.at, port).String(), "-duration", s.Duration.String()}
	}
}

// counted is what a client printed: package load's, or wrk.lua's.
type counted struct {
	load.Result
	Connect, Read, Write, Status, Timeout int
}

// measure runs a workload once. Anything that did not succeed is an error: a fast answer is none if it is wrong.
func (b *bed) measure(ctx context.Context, w workload, name string, s settings) (sample, usage, error) {
	v := b.variants[name]
	cgroups := []string{v.client.CgroupPath}
	if v.server != v.client {
		cgroups = append(cgroups, v.server.CgroupPath)
	}
	was, err := b.events()
	if err != nil {
		return sample{}, usage{}, err
	}
	before, err := b.cpu.read(cgroups...)
	if err != nil {
		return sample{}, usage{}, err
	}
	out, err := b.output(ctx, v.client, w.client(b, v, s))
	if err != nil {
		return sample{}, usage{}, err
	}
	after, err := b.cpu.read(cgroups...)
	if err != nil {
		return sample{}, usage{}, err
	}
	read := parse
	if w.parse != nil {
		read = w.parse
	}
	c, err := read(out)
	if err != nil {
		return sample{}, usage{}, err
	}
	is, err := b.events()
	if err == nil {
		err = is.minus(was).check(name, w.switches, c.Count)
	}
	if err != nil {
		return sample{}, usage{}, err
	}
	used := after.minus(before)
	got := sample{
		Rate: float64(c.Count) / c.Seconds / w.PerUnit, P50: c.P50, P99: c.P99,
		CPU: (used.pods + used.kernel) / (float64(c.Count) / w.PerWork),
	}
	if w.middle {
		got.Rate = 1e6 / c.P50 / w.PerUnit
	}
	if used.busy > 0 {
		got.Soft = used.softirq / used.busy
	}
	return got, used, nil
}

// output runs a client in its pod.
func (b *bed) output(ctx context.Context, p *node.Pod, args []string) ([]byte, error) {
	cmd := b.command(ctx, clientSide, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	proc, err := p.StartCmd(cmd)
	if err != nil {
		return nil, err
	}
	if err := proc.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", args, errors.Join(err, context.Cause(ctx)), errs.Bytes(), out.Bytes())
	}
	return out.Bytes(), nil
}

// parse reads the last line of what a client printed.
func parse(out []byte) (counted, error) {
	var c counted
	out = bytes.TrimSpace(out)
	line := out[bytes.LastIndexByte(out, '\n')+1:]
	if err := json.Unmarshal(line, &c); err != nil {
		return c, fmt.Errorf("the client's last line %q: %w", line, err)
	}
	if n := c.Connect + c.Read + c.Write + c.Status + c.Timeout; n > 0 {
		return c, fmt.Errorf("%d requests failed (connect %d, read %d, write %d, status %d, timeout %d)", n, c.Connect, c.Read, c.Write, c.Status, c.Timeout)
	}
	if c.Count == 0 || c.Seconds <= 0 {
		return c, fmt.Errorf("the client counted nothing: %s", line)
	}
	return c, nil
}
