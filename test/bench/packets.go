// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/test/bench/load"
)

// packets is what the kernel says that a TC program takes for a packet of some traffic (BPF_ENABLE_STATS).
type packets struct {
	What    string `json:"what"`
	Program string `json:"program"`
	// NS is without the clock's own part, which is what a program of one instruction takes by the same clock.
	NS spread `json:"ns"`
	// Each is packets for one of what the client counted: a request, an exchange, a MB.
	Each spread `json:"packets_each"`
	Unit string `json:"unit"`
}

// traffic of one enrolled pod, to a server that has no programs.
type traffic struct {
	what, unit string
	variant    string
	per        float64 // of what is counted, to the unit
	switches   bool
	client     func(*bed, *variant, settings) []string
}

var allTraffic = []traffic{
	{"foreign: 1 byte to and fro, no service's address", "exchange", direct, 1, false, own("echo", load.EchoPort)},
	{"keep-alive, 1 connection", "request", beside, 1, false, wrk(1)},
	{"keep-alive, 16 connections", "request", beside, 1, false, wrk(16)},
	{"every request another of 3 endpoints, 1 connection", "request", beside, 1, true, rotating(1)},
	{"connection per request, 8 at a time", "request", beside, 1, false, wrk(8, "-H", "Connection: close")},
	{"bulk GET", "MB", beside, 1e6, false, own("get", load.PagePort)},
}

// passed is what one program did during one measurement.
type passed struct {
	ns, each float64
}

// measurePackets runs all traffic in turn, as often as there are rounds. clock is what was taken off, in ns.
func measurePackets(ctx context.Context, b *bed, s settings) (all []packets, clock float64, err error) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, 0, fmt.Errorf("statistics of programs: %w", err)
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	progs := make([]*ebpf.Program, len(bpf.TCHooks))
	for i, h := range bpf.TCHooks {
		if progs[i], err = ebpf.LoadPinnedProgram(bpf.ProgPath(b.n.BPFFS, h.Name), nil); err != nil {
			return nil, 0, err
		}
		defer progs[i].Close()
	}
	var clocks []float64
	seen := make([][][]passed, len(allTraffic)) // by traffic, program, round
	for range s.Rounds {
		own, err := clockCost()
		if err != nil {
			return nil, 0, fmt.Errorf("the clock's own cost: %w", err)
		}
		clocks = append(clocks, own)
		for i, tr := range allTraffic {
			got, err := b.pass(ctx, tr, progs, s)
			if err != nil {
				return nil, 0, fmt.Errorf("%s: %w", tr.what, err)
			}
			seen[i] = append(seen[i], got)
		}
	}
	clock = spreadOf(clocks).Median
	for i, tr := range allTraffic {
		for j, h := range bpf.TCHooks {
			var ns, each []float64
			for _, round := range seen[i] {
				ns, each = append(ns, max(0, round[j].ns-clock)), append(each, round[j].each)
			}
			all = append(all, packets{tr.what, h.Name, spreadOf(ns), spreadOf(each), tr.unit})
		}
	}
	return all, clock, nil
}

// pass measures traffic once.
func (b *bed) pass(ctx context.Context, tr traffic, progs []*ebpf.Program, s settings) ([]passed, error) {
	// From the enrolled client's pod, wherever it goes.
	v := *b.variants[tr.variant]
	v.client = b.variants[kmesh].client
	before, err := runs(progs)
	if err != nil {
		return nil, err
	}
	was, err := b.events()
	if err != nil {
		return nil, err
	}
	out, err := b.output(ctx, v.client, tr.client(b, &v, s))
	if err != nil {
		return nil, err
	}
	after, err := runs(progs)
	if err != nil {
		return nil, err
	}
	c, err := parse(out)
	if err != nil {
		return nil, err
	}
	is, err := b.events()
	if err == nil {
		err = is.minus(was).check(tr.variant, tr.switches, c.Count)
	}
	if err != nil {
		return nil, err
	}
	got := make([]passed, len(progs))
	for i := range progs {
		n := after[i].RunCount - before[i].RunCount
		if n == 0 {
			return nil, fmt.Errorf("%s saw no packet", bpf.TCHooks[i].Name)
		}
		got[i] = passed{
			ns:   float64((after[i].Runtime - before[i].Runtime).Nanoseconds()) / float64(n),
			each: float64(n) / (float64(c.Count) / tr.per),
		}
	}
	return got, nil
}

func runs(progs []*ebpf.Program) ([]*ebpf.ProgramStats, error) {
	out := make([]*ebpf.ProgramStats, len(progs))
	for i, p := range progs {
		var err error
		if out[i], err = p.Stats(); err != nil {
			return nil, fmt.Errorf("statistics of %s: %w", bpf.TCHooks[i].Name, err)
		}
	}
	return out, nil
}

// clockCost is what the statistics say of a program that does nothing.
func clockCost() (float64, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nothing", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if _, _, err := p.Benchmark(make([]byte, 64), 200_000, nil); err != nil {
		return 0, err
	}
	st, err := p.Stats()
	if err == nil && st.RunCount == 0 {
		err = errors.New("no run was counted")
	}
	if err != nil {
		return 0, err
	}
	return float64(st.Runtime.Nanoseconds()) / float64(st.RunCount), nil
}
