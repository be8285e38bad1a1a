// SPDX-License-Identifier: Apache-2.0

// Command bench measures what Kmesh costs: the same work over the same kind of pods, direct with nothing attached,
// through Kmesh with everything attached, and through HAProxy on both sides, in turn.
//
// Invariant: it reports what it saw. Every request succeeded, or there is no report; what is attached is checked, not
// assumed; a round in which direct did not agree with itself is refused and counted; a number comes with its spread.
// Nothing is left behind, also when it is interrupted.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"kmesh/test/bench/load"
	"kmesh/test/node"
)

// settings of a run.
type settings struct {
	Rounds   int           `json:"rounds"`
	Repeats  int           `json:"repeats"` // of refused rounds, at most, for each workload
	Noise    float64       `json:"noise"`   // the coefficient of variation above which a round is refused
	Duration time.Duration `json:"duration_ns"`
	Adds     int           `json:"adds"`
	Connects int           `json:"connects"`
	Pin      string        `json:"pin"`
	Cold     bool          `json:"cold,omitempty"` // no warm-up before the rounds
	Run      string        `json:"run,omitempty"`
}

var modes = map[string]settings{
	// Many short rounds rather than few long ones: what else runs on the machine comes and goes within seconds.
	"quick": {Rounds: 8, Repeats: 3, Noise: 0.15, Duration: time.Second, Adds: 100, Connects: 5000, Pin: pinOne},
	"full":  {Rounds: 12, Repeats: 5, Noise: 0.15, Duration: 3 * time.Second, Adds: 500, Connects: 20000, Pin: pinOne},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "load" { // inside a pod
		if err := load.Main(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// Caught for the whole of the run: a second interrupt does not end the clean-up, a closed pipe not the bench.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, errLeft):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted; nothing was left behind")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errLeft = errors.New("the clean-up failed")

func run(ctx context.Context, args []string) error {
	mode := os.Getenv("BENCH")
	if mode == "" {
		mode = "quick"
	}
	s, ok := modes[mode]
	if !ok {
		return fmt.Errorf("BENCH=%s: want quick or full", mode)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	bin := fs.String("bin", "", "`folder` of kmesh-cni and kmesh-helper; empty: build them")
	out := fs.String("o", "bin/bench.json", "`file` for the result; the table goes beside it, as .md")
	table := fs.String("table", "", "another `file` for the table, to be kept")
	fs.IntVar(&s.Rounds, "rounds", s.Rounds, "rounds wanted for each workload")
	fs.IntVar(&s.Repeats, "repeats", s.Repeats, "refused rounds that are repeated, at most, for each workload")
	fs.Float64Var(&s.Noise, "noise", s.Noise, "coefficient of variation of direct above which a round is refused")
	fs.DurationVar(&s.Duration, "duration", s.Duration, "of a measurement; wrk takes whole seconds")
	fs.IntVar(&s.Adds, "adds", s.Adds, "CNI ADDs of each kind")
	fs.IntVar(&s.Connects, "connects", s.Connects, "connect() calls in a measurement")
	fs.StringVar(&s.Pin, "pin", s.Pin, "where processes run: none (anywhere), halves (clients' pods on one half of the processors, servers' on the other), one (all on one)")
	fs.BoolVar(&s.Cold, "cold", s.Cold, "no warm-up before the rounds: whoever wants to know whether it works, not how fast")
	fs.StringVar(&s.Run, "run", "", "only the workloads whose key matches this `regexp`; adds is CNI ADD, packets what packets cost")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if s.Rounds < 1 || s.Repeats < 0 || s.Adds < 1 || s.Connects < 1 || s.Duration < time.Millisecond {
		return errors.New("rounds, adds and connects must be at least 1, duration at least 1ms, repeats not negative")
	}
	chosen, err := regexp.Compile(s.Run)
	if err != nil {
		return fmt.Errorf("run: %w", err)
	}
	r, err := measureAll(ctx, s, chosen.MatchString, *bin)
	if err != nil {
		return err
	}
	r.Command = "BENCH=" + mode + " " + strings.Join(os.Args, " ")
	return r.save(*out, *table)
}

// measureAll makes the node, measures, and takes everything down again.
func measureAll(ctx context.Context, s settings, chosen func(key string) bool, bin string) (r report, err error) {
	r = report{Version: version(ctx), Began: time.Now(), Settings: s}
	if r.Machine, err = thisMachine(ctx); err != nil {
		return r, err
	}
	progress("making the node (the first time, its CNI plugins are built, and fortio)")
	n, err := node.New(ctx, node.Options{BinDir: bin})
	if err != nil {
		return r, err
	}
	defer func() {
		left, cerr := n.Close(context.WithoutCancel(ctx))
		r.CleanUp = left.String()
		if cerr != nil {
			err = errors.Join(err, errLeft, cerr)
		}
	}()
	progress("node %s", n.Dir)
	if bin == "" {
		if bin, err = node.Programs(ctx, "kmesh-cni"); err != nil {
			return r, err
		}
	}
	b, err := newBed(ctx, n, s.Pin)
	if err != nil {
		return r, err
	}
	tool, err := fortioVersion(ctx, b.fortio)
	if err != nil {
		return r, err
	}
	r.Machine.Tools = append(r.Machine.Tools, tool)
	r.CPUMethod, r.Machine.Clients, r.Machine.Servers = b.cpu.method(), b.pin[clientSide], b.pin[serverSide]

	var stolen, measured float64 // microseconds, the second of each processor
	for _, w := range workloads {
		if !chosen(w.Key) {
			continue
		}
		progress("%s", w.What)
		measure := func(ctx context.Context, variant string) (sample, error) {
			began := time.Now()
			got, used, err := b.measure(ctx, w, variant, s)
			stolen += used.stolen
			measured += float64(time.Since(began).Microseconds()) * float64(r.Machine.CPUs)
			return got, err
		}
		warmUp := append([]string{direct}, w.others...) // not counted
		if s.Cold {
			warmUp = nil
		}
		for _, v := range warmUp {
			if _, err := measure(ctx, v); err != nil {
				return r, fmt.Errorf("%s: %s: %w", w.What, v, err)
			}
		}
		rounds, err := interleave(ctx, plan{s.Rounds, s.Repeats, s.Noise}, direct, w.others, measure)
		if err != nil {
			return r, fmt.Errorf("%s: %w", w.What, err)
		}
		o := outcomeOf(w, rounds)
		r.Workloads = append(r.Workloads, o)
		if o.Accepted == 0 {
			progress("  too noisy: all %d rounds were refused", o.Refused)
			continue
		}
		said := []string{"  " + direct + " " + figure(o.Variants[direct].Rate) + " " + w.Unit}
		for _, v := range w.others {
			said = append(said, title(w, v)+" "+ratio(o.Ratios[v].Rate))
		}
		progress("%s; %d rounds, %d refused", strings.Join(said, "; "), o.Accepted, o.Refused)
	}
	if chosen("packets") {
		progress("what packets cost")
		if r.Packets, r.ClockNS, err = measurePackets(ctx, b, s); err != nil {
			return r, fmt.Errorf("what packets cost: %w", err)
		}
	}
	if chosen("adds") {
		progress("CNI ADD")
		if r.Adds, err = measureAdds(ctx, n, bin, s.Adds); err != nil {
			return r, fmt.Errorf("CNI ADD: %w", err)
		}
	}
	r.Took = time.Since(r.Began).Seconds()
	r.Machine.Stolen = over(stolen, measured)
	r.Table = tableOf(r.Workloads, r.Packets, r.Adds)
	return r, nil
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// version of the tree that is measured; a build outside git has none.
func version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "version unknown"
	}
	return string(bytes.TrimSpace(out))
}

func (r report) save(path, kept string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	table := strings.TrimSuffix(path, filepath.Ext(path)) + ".md"
	for _, to := range []string{table, kept} {
		if to == "" {
			continue
		}
		if err := os.WriteFile(to, []byte(r.markdown()), 0o644); err != nil {
			return err
		}
	}
	fmt.Print(r.markdown())
	progress("\n%s, %s; %s", path, table, r.CleanUp)
	return nil
}
