// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"kmesh/test/node"
)

// usedAgain: names that come back with something else behind them, and clocks that jump.
func usedAgain(t *trial) {
	b, h := t.live(node.Options{})
	start := b.holdings()
	for range t.of(10, 1) {
		for range versions {
			// The first pod is lost, and its container's id comes back with another pod.
			first, err := b.optedIn()
			t.must(err)
			t.must(b.LosePod(first))
			next := b.prepare(true)
			next.ContainerID = first.ContainerID
			if err := b.add(next); err != nil {
				t.claim("a container id that comes back", false, "%s: %v", next.CNIVersion, err)
			}
			b.bystander()
			if _, err := b.netns.Sweep(t.ctx); err != nil {
				t.claim("a sweep leaves the new one alone", false, "%v", err)
			}
			if err := b.governed(next); err != nil {
				t.claim("a sweep leaves the new one alone", false, "%v", err)
			}
			// A pod of another id stands beside it, and is not touched by its end.
			beside, err := b.optedIn()
			t.must(err)
			t.must(b.Del(t.ctx, next.Sandbox, nil))
			b.gone(next, "DEL of a container id that came back")
			if err := b.governed(beside); err != nil {
				t.claim("no cross-talk", false, "%v", err)
			}
			b.del(next)
			b.del(beside)
		}
	}
	// Pods of one name, one after the other and at once.
	twin := func(s *node.PodSpec) { s.Name, s.Namespace = "web-0", "shop" }
	one, err := b.optedIn(twin)
	t.must(err)
	two, err := b.optedIn(twin)
	t.must(err)
	b.del(one)
	if err := b.governed(two); err != nil {
		t.claim("no cross-talk between pods of one name", false, "%v", err)
	}
	b.del(two)

	// The helper's lock and socket are left by a process that is dead, whatever has its id now.
	h.Kill9()
	b.start()
	t.claim("a lock of a dead helper holds nobody up", true, "the next one is ready")

	// A record that was being written when the plugin was killed: the clock has jumped since.
	for _, jump := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		file := filepath.Join(b.records(), ".record-"+fmt.Sprint(jump.Hours()))
		t.must(os.MkdirAll(b.records(), 0o700))
		t.must(os.WriteFile(file, []byte("{"), 0o600))
		at := time.Now().Add(jump)
		t.must(os.Chtimes(file, at, at))
		_, err := t.until(settleLimit, func() error {
			if _, err := b.netns.Sweep(t.ctx); err != nil {
				return err
			}
			if _, err := os.Stat(file); err == nil {
				return errors.New("it is still there")
			}
			return nil
		})
		t.claim(fmt.Sprintf("what a killed plugin left goes, with the clock %v on", -jump), err == nil, "%v", err)
	}
	b.settled(start)
	t.claim("no cross-talk", true, "%d ADDs; deadlines and ages of pods are of the monotonic clock, and nothing is known by a process id", t.res.n)
}

// verifying is why a helper's start takes what it takes.
const verifying = "most of a start is the kernel's check of the programs, which takes 0.6 s of one CPU that nobody else uses"

// shared is why a time is longer than it has to be.
const shared = "others had this machine's CPUs"

// stalePins: many pods had no DEL, and the helper starts.
func stalePins(t *trial) {
	b, h := t.live(node.Options{})
	start := b.holdings()
	pods := b.crowd(t.of(455, 12))
	b.bystander()
	h.Kill9()
	h = b.start()
	without := h.ReadyIn
	h.Kill9()
	t.each(len(pods), 8, func(i int) { t.must(b.LosePod(pods[i])) })
	pins, err := b.Holdings()
	t.must(err)
	t.note("%d pins more than with no pod", pins.Pins-start.Pins)
	began := time.Now()
	h = b.start()
	t.time(h.ReadyIn)
	_, err = t.until(settleLimit, func() error {
		left, err := filepath.Glob(filepath.Join(b.BPFFS, "cgroups", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d are left", len(left))
		}
		return err
	})
	t.claim("all are swept by the first look", err == nil, "%v, after %s", err, ms(time.Since(began)))
	t.limit("ready within 1 s", h.ReadyIn < time.Second, verifying, "%s", ms(h.ReadyIn))
	t.limit("the pins take less than 500 ms of it", h.ReadyIn < without+500*time.Millisecond, shared, "a start without any took %s", ms(without))
	b.settled(start)
}
