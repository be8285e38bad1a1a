// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is the JSON file: all that was measured, what was made of it, and where it was.
type report struct {
	Version  string    `json:"version"` // of the tree, by git
	Command  string    `json:"command"`
	Began    time.Time `json:"began"`
	Took     float64   `json:"took_seconds"`
	Settings settings  `json:"settings"`
	Machine  machine   `json:"machine"`
	// How CPU time is counted.
	CPUMethod string `json:"cpu_method"`

	Workloads []outcome `json:"workloads"`
	Packets   []packets `json:"packets"`
	ClockNS   float64   `json:"clock_ns"` // what Packets are told without
	Adds      adds      `json:"cni_add"`  // N is 0 where it was not chosen
	Table     []row     `json:"table"`
	// What was looked for when everything had been taken down.
	CleanUp string `json:"clean_up"`
}

type machine struct {
	Kernel  string   `json:"kernel"`
	CPU     string   `json:"cpu"`
	CPUs    int      `json:"cpus"`
	Clients string   `json:"clients_cpus,omitempty"` // that clients' pods and servers' run on; empty: all
	Servers string   `json:"servers_cpus,omitempty"`
	Load    string   `json:"load_before"`  // /proc/loadavg
	Stolen  float64  `json:"stolen_share"` // of the processors' time while it was measured
	Tools   []string `json:"tools"`
	Go      string   `json:"go"`
}

// outcome is what a workload's rounds came to. Only accepted rounds count.
type outcome struct {
	workload
	Accepted int                `json:"accepted"`
	Refused  int                `json:"refused"`
	Variants map[string]figures `json:"variants"`
	Ratios   map[string]figures `json:"ratios"` // of the others to direct, in the same round
	Rounds   []round            `json:"rounds"`
}

type figures struct {
	Rate spread `json:"rate"`
	P50  spread `json:"p50_us"`
	P99  spread `json:"p99_us"`
	CPU  spread `json:"cpu_us"`
	Soft spread `json:"softirq_share"`
}

func figuresOf(samples []sample) figures {
	of := func(f func(sample) float64) spread {
		var v []float64
		for _, s := range samples {
			v = append(v, f(s))
		}
		return spreadOf(v)
	}
	return figures{
		of(func(s sample) float64 { return s.Rate }),
		of(func(s sample) float64 { return s.P50 }),
		of(func(s sample) float64 { return s.P99 }),
		of(func(s sample) float64 { return s.CPU }),
		of(func(s sample) float64 { return s.Soft }),
	}
}

func outcomeOf(w workload, rounds []round) outcome {
	o := outcome{workload: w, Rounds: rounds, Variants: map[string]figures{}, Ratios: map[string]figures{}}
	good := accepted(rounds)
	o.Accepted, o.Refused = len(good), len(rounds)-len(good)
	samples, ratios := map[string][]sample{}, map[string][]sample{}
	for _, r := range good {
		ref := r.reference()
		samples[direct] = append(samples[direct], ref)
		for name, s := range r.Others {
			samples[name] = append(samples[name], s)
			ratios[name] = append(ratios[name], sample{
				Rate: over(s.Rate, ref.Rate), P50: over(s.P50, ref.P50), P99: over(s.P99, ref.P99), CPU: over(s.CPU, ref.CPU), Soft: over(s.Soft, ref.Soft),
			})
		}
	}
	for name, s := range samples {
		o.Variants[name] = figuresOf(s)
	}
	for name, s := range ratios {
		o.Ratios[name] = figuresOf(s)
	}
	return o
}

// between is a's figures in ratio to b's, of the same rounds; both are others than the reference.
func (o outcome) between(a, b string) figures {
	var ratios []sample
	for _, r := range accepted(o.Rounds) {
		x, y := r.Others[a], r.Others[b]
		ratios = append(ratios, sample{Rate: over(x.Rate, y.Rate), P50: over(x.P50, y.P50), P99: over(x.P99, y.P99), CPU: over(x.CPU, y.CPU), Soft: over(x.Soft, y.Soft)})
	}
	return figuresOf(ratios)
}

func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func thisMachine(ctx context.Context) (machine, error) {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(info)) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	m.Load = strings.TrimSpace(string(load))
	for _, tool := range []string{"wrk", "haproxy"} {
		// wrk says its version, and then how it is used, with an exit status of 1.
		out, err := exec.CommandContext(ctx, tool, "-v").CombinedOutput()
		if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) {
			return m, fmt.Errorf("%w: run make bench, which installs it", err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		m.Tools = append(m.Tools, strings.TrimSpace(line))
	}
	return m, nil
}
