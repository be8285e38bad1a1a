// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Somebody writes the file every 50 ms for 10 s. What is written against that is bounded, the event names the process, and when it has ended the entry is
// back.
func TestRewriteWar(t *testing.T) {
	tests := []struct {
		name, file, content string
		mode                Mode
		how                 string
		against             func(e *env) (path, content string)
	}{
		{"in place", "10-x.conflist", list, InPlace, "", func(e *env) (string, string) { return e.primary, list }},
		{"in place, put back only", "10-x.conflist", list, InPlace, "restoring", func(e *env) (string, string) { return e.primary, list }},
		{"drop-in", "10-x.conflist", list, DropIn, "", func(e *env) (string, string) {
			return filepath.Join(e.conf, "pods/50-kmesh.conf"), `{"type":"portmap"}`
		}},
		{"single", "10-x.conf", single, Auto, "", func(e *env) (string, string) {
			return filepath.Join(e.conf, "10-x-kmesh.conflist"), strings.Replace(list, "portmap", "other", 1)
		}},
		{"binary", "10-x.conflist", list, InPlace, "", func(e *env) (string, string) { return filepath.Join(e.bin, "kmesh-cni"), "#!/bin/sh\n" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // 10 s each, of waiting
			e := newEnv(t)
			e.opts.Mode = tt.mode
			e.put(tt.file, tt.content)
			in, _ := e.run()
			poll(t, "installed", 10*time.Second, ready(in))
			path, content := tt.against(e)
			before := in.Status()
			installed, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			cmd := e.rewriter(path, content, 10*time.Second, tt.how)
			poll(t, "the event", 10*time.Second, func() error {
				if len(e.events.find(ReasonRewriteWar)) == 0 {
					return fmt.Errorf("%+v", in.Status())
				}
				return nil
			})
			if s := in.Status(); s.Ready {
				t.Errorf("ready in a war: %+v", s)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			during := in.Status()
			poll(t, "the entry back", 30*time.Second, func() error {
				if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, installed) {
					return fmt.Errorf("%v, %+v", err, in.Status())
				}
				return ready(in)()
			})
			writes := during.ConfWrites + during.BinaryWrites - before.ConfWrites - before.BinaryWrites
			// One more for each time that it was left alone, which only somebody does who looks at what is there.
			if limit := e.opts.Timing.War.Losses + during.Wars; writes > limit || during.Wars > 1 && tt.how == "" {
				t.Errorf("%d writes against it in %d wars, want at most %d", writes, during.Wars, limit)
			}
			event := e.events.find(ReasonRewriteWar)[0]
			if who := fmt.Sprintf("process %d (", cmd.Process.Pid); !event.Warning || !strings.Contains(event.Message, who) || !strings.Contains(event.Message, path) {
				t.Errorf("event %q does not name %q", event.Message, who)
			}
			t.Logf("%d writes against some 200, %d wars; %s", writes, during.Wars, event.Message)
		})
	}
}

// Two installations that do not know of each other: neither writes for ever, and each names the other.
func TestTwoInstallations(t *testing.T) {
	e := newEnv(t)
	e.put("10-x.conflist", list)
	other := *e
	other.events = &heard{}
	other.opts.Owner, other.opts.Reporter = "other", other.events
	other.opts.Plugin.StateDir, other.opts.ReadyFile = filepath.Join(e.root, "lib/other"), filepath.Join(e.root, "ready2")
	a, _ := e.run()
	b, _ := other.run()
	poll(t, "a war", 20*time.Second, func() error {
		for _, ev := range append(e.events.find(ReasonRewriteWar), other.events.find(ReasonRewriteWar)...) {
			if strings.Contains(ev.Message, "kmesh-install of owner") {
				return nil
			}
		}
		return fmt.Errorf("%+v\n%+v", a.Status(), b.Status())
	})
	writes := a.Status().ConfWrites + b.Status().ConfWrites
	if limit := 2 * (e.opts.Timing.War.Losses + 1); writes > limit {
		t.Errorf("%d writes, want at most %d", writes, limit)
	}
	if got := types(e.loads()); got != primaryType+" portmap kmesh-cni" {
		t.Errorf("chain is %s", got)
	}
}

func TestWarTiming(t *testing.T) {
	w := war{WarTiming: WarTiming{Losses: 3, Pause: time.Second, Calm: time.Minute, Quiet: time.Minute, MaxQuiet: 3 * time.Minute}}
	now := time.Unix(1000, 0)
	var writes []time.Duration
	attempt := func() (bool, time.Duration, bool) { // something is always to be written
		ok, wait, begun := w.mayWrite(now)
		if ok {
			w.wrote(now)
			writes = append(writes, now.Sub(time.Unix(1000, 0)))
		}
		return ok, wait, begun
	}
	wars := 0
	for range 10_000 { // each 100 ms, for 1000 s
		w.foreign(now)
		if _, _, begun := attempt(); begun {
			wars++
		}
		now = now.Add(100 * time.Millisecond)
	}
	want := []time.Duration{0, 100 * time.Millisecond, 1100 * time.Millisecond, 3100 * time.Millisecond}
	if fmt.Sprint(writes) != fmt.Sprint(want) || wars != 1 {
		t.Errorf("writes at %v in %d wars, want %v in one", writes, wars, want)
	}
	// Quiet: one more attempt, and if that is lost, twice the time.
	now = now.Add(time.Minute)
	if ok, _, _ := attempt(); !ok {
		t.Fatal("no attempt after a minute of quiet")
	}
	now = now.Add(time.Second)
	ok, wait, begun := attempt()
	if ok || !begun || wait != 2*time.Minute {
		t.Errorf("lost again: %t, %s, %t", ok, wait, begun)
	}
	// A primary that is restarted now and then is none.
	w = war{WarTiming: w.WarTiming}
	for range 100 {
		now = now.Add(2 * time.Minute)
		if ok, _, _ := attempt(); !ok {
			t.Fatal("a repair each two minutes is no war")
		}
		w.holds(now)
	}
}
