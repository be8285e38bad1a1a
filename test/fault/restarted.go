// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"time"
)

// restarted: the container runtime is killed and started again under running pods. The node with a real containerd is
// test/containerd's; its test tells the figures.
func restarted(t *trial) {
	const prefix = "figures of the restarts: "
	cmd := exec.CommandContext(t.ctx, "go", "test", "-count=1", "-v", "-run", "^TestRestartedRuntime$", "kmesh/test/containerd")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	runtimes := 0
	for line := range strings.Lines(out.String()) {
		_, told, ok := strings.Cut(line, prefix)
		if !ok {
			continue
		}
		var f struct {
			Runtime                            string
			Restarts, Pods, Unenrolled, Broken int
			Took                               []time.Duration
		}
		t.must(json.Unmarshal([]byte(told), &f))
		runtimes++
		t.count(f.Restarts)
		t.res.broken += f.Broken
		t.res.unenrolled += f.Unenrolled
		t.res.took = append(t.res.took, f.Took...)
		t.note("%s: killed %d times, %d pods", f.Runtime, f.Restarts, f.Pods)
	}
	if err != nil {
		t.note("%s", tail(out.String()))
	}
	t.claim("the same links after each restart, new pods governed, nothing left after all of it", err == nil && runtimes == 2, "%d runtimes, %v", runtimes, err)
	t.note("systemd's daemon-reload: not on this machine, which has none; a cgroup that is made anew is F18's")
	t.note("restart of the kubelet: in `make e2e`, on a node with one")
}

// tail is the end of an output, without what containerd says of itself.
func tail(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "level=") {
			lines = append(lines, strings.TrimRight(line, "\n"))
		}
	}
	return strings.Join(lines[max(0, len(lines)-20):], "\n    ")
}
