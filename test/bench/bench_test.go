// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/test/node"
)

// program builds the bench.
func program(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the bench: %v\n%s", err, out)
	}
	return bin
}

// checkGone looks for the node that the bench said it made.
func checkGone(t *testing.T, said string) {
	t.Helper()
	found := regexp.MustCompile(node.Base + `/([0-9a-f]+)`).FindStringSubmatch(said)
	if found == nil {
		t.Fatalf("the bench did not say where its node is:\n%s", said)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/kmesh-test-" + found[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(found[0]); err == nil {
		left = append(left, found[0])
	}
	if len(left) > 0 {
		t.Errorf("the bench left %v behind", left)
	}
}

// The whole of it, as short as wrk lets it be. What the numbers are is no matter; that all of them are there is.
func TestBench(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, kept := filepath.Join(t.TempDir(), "sub", "result.json"), filepath.Join(t.TempDir(), "kept.md")
	cmd := exec.CommandContext(ctx, program(t), "-cold", "-duration", "1s", "-rounds", "1", "-repeats", "0", "-noise", "1000", "-adds", "2", "-connects", "50", "-o", out, "-table", kept)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var table, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &table, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("the bench: %v\n%s", err, said.String())
	}
	t.Logf("%s%s", said.String(), table.String())
	checkGone(t, said.String())

	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(r.CleanUp, "all gone") {
		t.Errorf("the clean-up: %q", r.CleanUp)
	}
	if len(r.Workloads) != len(workloads) {
		t.Fatalf("%d workloads, want %d", len(r.Workloads), len(workloads))
	}
	for i, o := range r.Workloads {
		w := workloads[i]
		if o.Key != w.Key || o.Accepted != 1 || len(o.Variants) != 1+len(w.others) || len(o.Ratios) != len(w.others) {
			t.Errorf("workload %s: %+v", w.Key, o)
		}
		for _, v := range append([]string{direct}, w.others...) {
			f := o.Variants[v]
			if f.Rate.Median <= 0 || f.CPU.Median <= 0 || w.Key != "bulk" && w.Key != "get" && (f.P50.Median <= 0 || f.P99.Median < f.P50.Median) {
				t.Errorf("%s, %s: %+v", w.Key, v, f)
			}
		}
	}
	if a := r.Adds; a.N != 2 || a.Start.P50 <= 0 || a.Plain.P99 <= 0 || a.Enrolled.P50 <= a.Start.P50 {
		t.Errorf("CNI ADD: %+v", a)
	}
	if len(r.Packets) != len(allTraffic)*len(bpf.TCHooks) || r.ClockNS <= 0 {
		t.Errorf("%d rows of packets, the clock's own part %v ns", len(r.Packets), r.ClockNS)
	}
	for _, p := range r.Packets {
		if p.NS.N != 1 || p.Each.Median <= 0 {
			t.Errorf("%+v", p)
		}
	}
	// Routed: three of each keep-alive, two of each that switches, connections, three of each of fortio's, pages; a foreign
	// packet in two programs; five of L4; two of the plugin's.
	if len(r.Table) != 3+3+2+2+1+3+3+1+2+5+2 {
		t.Errorf("%d rows", len(r.Table))
	}
	if !strings.Contains(r.Command, "-table "+kept) {
		t.Errorf("the command is told as %q", r.Command)
	}
	for _, path := range []string{strings.TrimSuffix(out, ".json") + ".md", kept} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, table.Bytes()) {
			t.Errorf("the table in %s is another than the one printed", path)
		}
	}
	for _, row := range r.Table {
		verdicts := []verdict{reached, notReached, reached + ", within the spread", notReached + ", within the spread"}
		if !slices.Contains(verdicts, row.Reached) || !strings.Contains(table.String(), "| "+row.What+" |") {
			t.Errorf("row %+v", row)
		}
	}
}

func TestBenchInterrupted(t *testing.T) {
	cmd := exec.Command(program(t), "-o", filepath.Join(t.TempDir(), "result.json"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	var said strings.Builder
	interrupted := false
	for in := bufio.NewScanner(stderr); in.Scan(); {
		said.WriteString(in.Text() + "\n")
		if in.Text() == workloads[0].What { // load is on its way
			interrupted = true
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !interrupted {
		t.Fatalf("the bench never got to its first workload (%v):\n%s", err, said.String())
	}
	if cmd.ProcessState.ExitCode() != 130 || !strings.Contains(said.String(), "interrupted; nothing was left behind") {
		t.Errorf("the bench ended with %v:\n%s", err, said.String())
	}
	checkGone(t, said.String())
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, out string
		good      bool
	}{
		{"wrk", "Running 1s test\n  2 requests\n\n{\"count\":2,\"seconds\":1,\"p50_us\":5,\"p99_us\":6,\"connect\":0,\"read\":0,\"write\":0,\"status\":0,\"timeout\":0}\n", true},
		{"our own", "{\"count\":2,\"seconds\":1}\n", true},
		{"an error", "{\"count\":2,\"seconds\":1,\"read\":1}", false},
		{"a wrong status", "{\"count\":2,\"seconds\":1,\"status\":1}", false},
		{"nothing counted", "{\"count\":0,\"seconds\":1}", false},
		{"no time", "{\"count\":1,\"seconds\":0}", false},
		{"no JSON", "unable to connect\n", false},
		{"nothing", "", false},
	} {
		if _, err := parse([]byte(tc.out)); (err == nil) != tc.good {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestPlacement(t *testing.T) {
	all, err := placement(pinNone)
	if err != nil || all != [2]string{} {
		t.Errorf("none: %q, %v", all, err)
	}
	one, err := placement(pinOne)
	if err != nil || one[clientSide] == "" || one[clientSide] != one[serverSide] {
		t.Errorf("one: %q, %v", one, err)
	}
	halves, err := placement(pinHalves)
	if err != nil || halves[clientSide] == "" || halves[serverSide] == "" {
		t.Errorf("halves: %q, %v", halves, err)
	}
	if _, err := placement("both"); err == nil {
		t.Error("both was taken")
	}
}

func TestWrongSettings(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-repeats", "-1"}, {"-adds", "0"}, {"-connects", "0"}, {"-duration", "0"}, {"-run", "("}, {"-dance"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	t.Setenv("BENCH", "slow")
	if err := run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "quick or full") {
		t.Errorf("BENCH=slow: %v", err)
	}
}
