// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
	"kmesh/netns"
)

// holdings is everything that a leak would show in.
type holdings struct {
	programs, maps, fds, namespaces int
	pins, cgroups, records          []string
}

func (e *env) holdings() holdings {
	e.t.Helper()
	var h holdings
	ourMaps := make(map[ebpf.MapID]bool)
	maps, err := os.ReadDir(filepath.Dir(bpf.MapPath(e.bpffs, "x")))
	if err != nil {
		e.t.Fatal(err)
	}
	for _, entry := range maps {
		m, err := ebpf.LoadPinnedMap(bpf.MapPath(e.bpffs, entry.Name()), nil)
		if err != nil {
			e.t.Fatal(err)
		}
		info, err := m.Info()
		m.Close()
		if err != nil {
			e.t.Fatal(err)
		}
		id, _ := info.ID()
		ourMaps[id] = true
	}
	h.maps = len(ourMaps)
	// Programs are ours by the maps they use: other tests may load the same ones beside us.
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			continue
		}
		used, _ := info.MapIDs()
		if slices.ContainsFunc(used, func(m ebpf.MapID) bool { return ourMaps[m] }) {
			h.programs++
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		e.t.Fatal(err)
	}
	h.fds = len(fds)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		e.t.Fatal(err)
	}
	h.namespaces = strings.Count(string(mounts), filepath.Dir(filepath.Dir(e.run)))
	h.pins, h.records = files(e.t, e.bpffs), files(e.t, filepath.Join(e.run, "pods"))
	for _, f := range files(e.t, e.cgroups) {
		if info, err := os.Stat(e.cgroups + f); err == nil && info.IsDir() {
			h.cgroups = append(h.cgroups, f)
		}
	}
	return h
}

// settled polls until nothing is more than before.
func (e *env) settled(before holdings) {
	e.t.Helper()
	e.wantLinks(0)
	poll(e.t, "what a leak would show in", func() error {
		if after := e.holdings(); fmt.Sprint(after) != fmt.Sprint(before) {
			return fmt.Errorf("\n%+v, before\n%+v", after, before)
		}
		return nil
	})
	pods, err := bpf.OpenPods(e.bpffs)
	if err != nil {
		e.t.Fatal(err)
	}
	defer pods.Close()
	if all, err := pods.List(); err != nil || len(all) != 0 {
		e.t.Errorf("pods map has %v, %v", all, err)
	}
}

func TestThousandCyclesLeakNothing(t *testing.T) {
	e := newEnv(t)
	const workers, cycles = 4, 1000
	var calls []pluginCall
	for i := range workers {
		calls = append(calls, e.pod(fmt.Sprintf("w%d", i), optedIn))
	}
	// The directories that come with the first pod stay.
	e.must("ADD", calls[0])
	e.must("DEL", calls[0])
	before := e.holdings()
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := range cycles / workers {
				c := calls[w]
				c.id = fmt.Sprintf("w%d-%d", w, i)
				for _, verb := range []string{"ADD", "DEL"} {
					if _, err := e.do(verb, c); err != nil {
						errs[w] = fmt.Errorf("%s %s: %w", verb, c.id, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	e.settled(before)
}

// all calls the plugin for all at once.
func (e *env) all(verb string, calls []pluginCall) {
	e.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(calls))
	for i, c := range calls {
		wg.Go(func() {
			if _, err := e.do(verb, c); err != nil {
				errs[i] = fmt.Errorf("%s %s: %w", verb, c.id, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		e.t.Fatal(err)
	}
}

func TestConcurrentAddsOfDistinctPods(t *testing.T) {
	e := newEnv(t)
	const k = 64
	var calls []pluginCall
	for i := range k {
		calls = append(calls, e.pod(fmt.Sprintf("c%d", i), optedIn))
	}
	e.must("ADD", calls[0])
	e.must("DEL", calls[0])
	before := e.holdings()
	e.all("ADD", calls)
	e.wantLinks(k * (nCgroup + nTC))
	pods, err := e.node().List(t.Context())
	if err != nil || len(pods) != k || slices.ContainsFunc(pods, func(p netns.Pod) bool { return !p.Live() || !p.Owner }) {
		t.Errorf("%d pods are %+v, %v", len(pods), pods, err)
	}
	e.all("DEL", calls)
	e.settled(before)
}

func TestConcurrentAddsForOneCgroup(t *testing.T) {
	e := newEnv(t)
	const k = 64
	base := e.pod("c", optedIn)
	var calls []pluginCall
	for i := range k {
		c := base
		c.id, c.netns = fmt.Sprintf("c%d", i), newNetns(t)
		calls = append(calls, c)
	}
	e.must("ADD", calls[0])
	e.must("DEL", calls[0])
	before := e.holdings()
	e.all("ADD", calls)
	e.wantLinks(nCgroup + k*nTC)
	pods, err := e.node().List(t.Context())
	if err != nil || len(pods) != k {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	owners := 0
	for _, p := range pods {
		if p.Owner {
			owners++
		}
	}
	if owners != 1 {
		t.Errorf("%d sandboxes own the cgroup", owners)
	}
	e.all("DEL", calls)
	e.settled(before)
}

// A sandbox is made anew, and the old one's DEL comes before, after, or never.
func TestSandboxMadeAnew(t *testing.T) {
	for _, oldDel := range []string{"early", "late", "never"} {
		t.Run(oldDel, func(t *testing.T) {
			e := newEnv(t)
			old := e.pod("old", optedIn)
			is := old
			is.id, is.netns = "new", newNetns(t)
			e.must("ADD", old)
			e.wantLinks(nCgroup + nTC)
			if oldDel == "early" {
				e.must("DEL", old)
				e.wantLinks(0)
			}
			e.must("ADD", is)
			if oldDel == "early" {
				e.wantLinks(nCgroup + nTC)
			} else {
				e.wantLinks(nCgroup + 2*nTC)
			}
			if oldDel == "late" {
				e.must("DEL", old)
			}
			if oldDel == "never" {
				dropNetns(t, old.netns)
				poll(t, "sweep", func() error {
					if s, err := e.node().Sweep(t.Context()); err != nil || s.Pods != 1 {
						return fmt.Errorf("swept %+v, %v", s, err)
					}
					return nil
				})
			}
			e.wantLinks(nCgroup + nTC)
			e.must("CHECK", is)
			e.must("DEL", is)
			e.wantLinks(0)
		})
	}
}

// The plugin is killed at any moment; DEL, or the sweep after the pod's end, leaves nothing.
func TestKilledAtAnyMoment(t *testing.T) {
	e := newEnv(t)
	c := e.pod("c1", optedIn)
	e.must("ADD", c)
	e.must("DEL", c)
	before := e.holdings()
	for i := range 60 {
		call := c
		call.verb, call.id = "ADD", fmt.Sprintf("k%d", i)
		cmd := e.command(call)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(i)*400*time.Microsecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		switch i % 3 {
		case 0:
			e.must("DEL", call)
		case 1: // the next ADD, of another sandbox of the pod, comes right away
			next := call
			next.id += "n"
			e.must("ADD", next)
			e.must("CHECK", next)
			e.must("DEL", next)
			e.must("DEL", call)
		}
	}
	// Every third had no DEL: the pod goes, and the sweep comes.
	dropNetns(t, c.netns)
	poll(t, "sweep", func() error {
		_, err := e.node().Sweep(t.Context())
		if left := files(t, filepath.Join(e.bpffs, "pods")); err == nil && len(left) > 0 {
			err = fmt.Errorf("bpffs has %v", left)
		}
		// A record that was being written goes when it is old enough to have been given up.
		if left := files(t, filepath.Join(e.run, "pods")); err == nil && len(left) > 0 {
			err = fmt.Errorf("records %v", left)
		}
		return err
	})
	before.namespaces = e.holdings().namespaces
	e.settled(before)
}

// BenchmarkAdd prints the percentiles of whole ADDs, the start of the process included.
func BenchmarkAdd(b *testing.B) {
	for name, annotations := range map[string]map[string]string{"enrolled": optedIn, "not enrolled": nil} {
		b.Run(name, func(b *testing.B) {
			e := newEnv(b)
			// The first pod of a node pays for switching the kernel's hooks on.
			e.must("ADD", e.pod("first", optedIn))
			c := e.pod("c1", annotations)
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				e.must("ADD", c)
				took = append(took, time.Since(start))
				b.StopTimer()
				e.must("DEL", c)
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}
