// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmesh/netns/failpoint"
	"kmesh/test/node"
)

// What only a binary with fail-points holds: the variable, names of points, a function.
var traces = []string{failpoint.Variable, "attach to cgroup", "rename record", "kmesh/netns/failpoint.Here"}

// The binaries as `make build` makes them have no fail-point. That the variable does nothing to them is shown in F04.
func TestShippedBinariesHaveNoFailpoints(t *testing.T) {
	if out, err := exec.Command("make", "-C", "../..", "build").CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	binaries, err := filepath.Glob("../../bin/kmesh*")
	if err != nil || len(binaries) < 3 {
		t.Fatalf("make build made %q, %v", binaries, err)
	}
	for _, path := range binaries {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range traces {
			if bytes.Contains(data, []byte(trace)) {
				t.Errorf("%s holds %q", filepath.Base(path), trace)
			}
		}
		info, err := buildinfo.Read(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range info.Settings {
			if s.Key == "-tags" && strings.Contains(s.Value, "failpoint") {
				t.Errorf("%s is built with tags %s", filepath.Base(path), s.Value)
			}
		}
	}
}

// The same looks find all of that in a binary that has them.
func TestTaggedBinaryHasFailpoints(t *testing.T) {
	dir, err := node.Tagged(t.Context(), "failpoint", "kmesh-cni")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "kmesh-cni"))
	if err != nil {
		t.Fatal(err)
	}
	for _, trace := range traces {
		if !bytes.Contains(data, []byte(trace)) {
			t.Errorf("it does not hold %q: what the other test looks for proves nothing", trace)
		}
	}
}
