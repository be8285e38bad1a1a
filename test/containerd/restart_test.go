// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

// figures is what the fault matrix reads of a test's output, behind figuresPrefix.
type figures struct {
	Runtime    string          `json:"runtime"`
	Restarts   int             `json:"restarts"`
	Pods       int             `json:"pods"`
	Broken     int             `json:"broken"`     // pods that did not opt in and were not left alone
	Unenrolled int             `json:"unenrolled"` // pods that opted in and were not governed, or by other links than before
	Took       []time.Duration `json:"took"`       // until the runtime was ready again
}

const figuresPrefix = "figures of the restarts: "

// A runtime that is killed and started again, with pods running: their links are the same, new pods are enrolled, and
// the end of old ones takes all away.
func TestRestartedRuntime(t *testing.T) {
	for _, f := range flavours {
		t.Run(f.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			m := start(t, f)
			dir := filepath.Join(m.n.Dir, "xds")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(xds), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := m.n.StartHelper(ctx, "--xds-dir", dir); err != nil {
				t.Fatal(err)
			}
			fig := figures{Runtime: f.name}
			var in, out []*sandbox
			pair := func() {
				uid1, uid2 := node.NewUID(), node.NewUID()
				in = append(in, m.runSandbox(ctx, t, fmt.Sprintf("in%d", len(in)), uid1, "kubepods/besteffort/pod"+uid1, node.Enrolled()))
				out = append(out, m.runSandbox(ctx, t, fmt.Sprintf("out%d", len(out)), uid2, "kubepods/burstable/pod"+uid2, nil))
				fig.Pods += 2
			}
			pair()
			for range 3 {
				links := make([]map[string]uint32, len(in))
				for i, s := range in {
					links[i] = s.links(ctx, t)
				}
				began := time.Now()
				m.killRuntime(t)
				m.waitReady(ctx, t, f, m.proc)
				fig.Restarts++
				fig.Took = append(fig.Took, time.Since(began))
				for i, s := range in {
					if now := s.links(ctx, t); !maps.Equal(now, links[i]) || len(now) == 0 {
						fig.Unenrolled++
						t.Errorf("pod %s has the links %v, and had %v before the runtime's restart", s.config.Metadata.Name, now, links[i])
					}
					s.checkGoverned(ctx, t)
				}
				for _, s := range out {
					if on, err := node.Attached(s.cgroup); err != nil || len(on) > 0 || s.enrolled(ctx, t) != nil {
						fig.Broken++
						t.Errorf("pod %s, which did not opt in, has programs on its cgroup: %v, %v", s.config.Metadata.Name, on, err)
					}
				}
				pair()
				in[len(in)-1].checkGoverned(ctx, t)
				out[len(out)-1].checkUntouched(ctx, t)
			}
			for _, s := range append(in, out...) {
				s.stop(ctx, t)
				s.checkUntouched(ctx, t)
				s.remove(ctx, t)
				s.removeCgroup(t)
			}
			line, err := json.Marshal(fig)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s%s", figuresPrefix, line)
		})
	}
}

// links are the ids of a sandbox's links by hook.
func (s *sandbox) links(ctx context.Context, t *testing.T) map[string]uint32 {
	t.Helper()
	ids := map[string]uint32{}
	if p := s.enrolled(ctx, t); p != nil {
		for _, l := range p.Links {
			ids[l.Hook] = l.ID
		}
	}
	return ids
}

// killRuntime kills containerd, and nothing else of its namespaces, and waits until its init has started another.
func (m *machine) killRuntime(t *testing.T) {
	t.Helper()
	was := m.runtimePID(t)
	if was == 0 {
		t.Fatal("containerd does not run")
	}
	if err := unix.Kill(was, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if now := m.runtimePID(t); now != was && now != 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd was not started again within 10 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// runtimePID is the child of the first process that is no shim.
func (m *machine) runtimePID(t *testing.T) int {
	t.Helper()
	// Of each of its threads: a child is that one's which has started it.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", m.proc.Process.Pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("containerd's init is gone: %v", err)
	}
	var children []string
	for _, list := range lists {
		of, err := os.ReadFile(list)
		if err == nil { // the thread may have ended
			children = append(children, strings.Fields(string(of))...)
		}
	}
	for _, field := range children {
		comm, err := os.ReadFile(filepath.Join("/proc", field, "comm"))
		if err == nil && strings.TrimSpace(string(comm)) == "containerd" {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}
