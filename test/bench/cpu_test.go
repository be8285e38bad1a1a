// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMachineUsage(t *testing.T) {
	for _, tc := range []struct {
		name, stat                 string
		busy, irq, softirq, stolen float64
		good                       bool
	}{
		{"all", "cpu  100 20 3 999 50 4 5 6 7 8\ncpu0 1 1 1 1\n", 132e4, 4e4, 5e4, 6e4, true},
		{"short", "cpu  1 2 3 4\n", 0, 0, 0, 0, false},
		{"no number", "cpu  a b c d e f g h\n", 0, 0, 0, 0, false},
		{"another", "intr 1 2 3 4 5 6 7 8 9\n", 0, 0, 0, 0, false},
		{"empty", "", 0, 0, 0, 0, false},
	} {
		busy, irq, softirq, stolen, err := machineUsage([]byte(tc.stat))
		if (err == nil) != tc.good || err == nil && (busy != tc.busy || irq != tc.irq || softirq != tc.softirq || stolen != tc.stolen) {
			t.Errorf("%s: %v %v %v %v %v", tc.name, busy, irq, softirq, stolen, err)
		}
	}
}

func TestThreadUsage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  float64
		good  bool
	}{
		{"schedstat", map[string]string{"schedstat": "5000 1 2\n", "stat": "1 (x) S"}, 5, true},
		{"stat", map[string]string{"stat": "14 (a b) c) S 2 0 0 0 -1 69238848 0 0 0 0 3 4 0 0 20\n"}, 7e4, true},
		{"short", map[string]string{"stat": "14 (x) S 2\n"}, 0, false},
		{"neither", nil, 0, false},
	} {
		dir := t.TempDir()
		for name, text := range tc.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := threadUsage(dir); got != tc.want || (err == nil) != tc.good {
			t.Errorf("%s: %v, %v", tc.name, got, err)
		}
	}
}

// What a process uses is found where the accountant looks, whichever kernel this is.
func TestAccountantReads(t *testing.T) {
	a, err := newAccountant()
	if err != nil {
		t.Fatal(err)
	}
	if !a.irqApart && len(a.ksoftirqd) == 0 {
		t.Error("no ksoftirqd was found")
	}
	before, err := a.read()
	if err != nil {
		t.Fatal(err)
	}
	if before.busy <= 0 {
		t.Errorf("the machine never worked: %+v", before)
	}
	if _, err := a.read(t.TempDir()); err == nil {
		t.Error("a folder that is no cgroup was read")
	}
}
