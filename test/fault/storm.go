// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"kmesh/test/node"
)

// cycles: pods come and go, one after the other, on four hands.
func cycles(t *trial) {
	b, h := t.live(node.Options{})
	b.bystander()
	n := t.of(1000, 24)
	cycle := func(i int) {
		p, err := b.optedIn()
		t.must(err)
		b.del(p)
		if i%4 == 0 {
			b.bystander()
		}
	}
	t.each(n/10, 4, cycle) // what the helper and the plugin need at first
	before, rss := b.holdings(), t.rss(h)
	t.each(n, 4, cycle)
	b.settled(before)
	grown := t.rss(h) - rss
	t.claim("the helper's memory grew by at most 1 MiB", grown <= 1<<20, "%+d KiB of %d KiB", grown>>10, rss>>10)
}

// rss is a helper's resident memory.
func (t *trial) rss(h *node.Helper) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Process.Process.Pid))
	t.must(err)
	for line := range bytes.Lines(data) {
		if kib, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			v, err := strconv.Atoi(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(kib), []byte("kB")))))
			t.must(err)
			return v << 10
		}
	}
	t.must(errors.New("the helper's status has no VmRSS"))
	return 0
}

// together: a node that starts many pods at once.
func together(t *trial) {
	b, _ := t.live(node.Options{})
	before := b.holdings()
	const k = 64
	for range t.of(20, 1) {
		pods := make([]*node.Pod, k)
		t.each(k, 16, func(i int) { pods[i] = b.prepare(true) })
		t.each(k+4, k+4, func(i int) {
			if i >= k {
				b.bystander()
				return
			}
			t.must(b.add(pods[i]))
		})
		t.each(k, 8, func(i int) { // all are there now: still one program each
			if err := b.governed(pods[i]); err != nil {
				t.claim("one link for each hook and pod", false, "%s: %v", pods[i].Name, err)
			}
			b.del(pods[i])
		})
	}
	b.settled(before)
	p99 := t.res.percentile(99)
	t.limit("p99 < 250 ms", p99 < 250*time.Millisecond, "each of the two TCX attachments waits for an RCU grace period under the kernel's one RTNL lock, so that 64 at once queue", "%s", ms(p99))
	t.claim("no ADD takes as long as the plugin may (10 s)", t.res.percentile(100) < 10*time.Second, "the longest took %s", ms(t.res.percentile(100)))
}

// helperKilled: the helper dies again and again, at any moment of its life, while pods come.
func helperKilled(t *trial) {
	b, h := t.live(node.Options{})
	before := b.holdings()
	h.Kill9()
	stop, stopped := make(chan struct{}), make(chan struct{})
	killed := 0
	go func() {
		defer close(stopped)
		defer t.recovered()
		for {
			h, err := b.LaunchHelper(t.ctx, "--xds-dir", b.xds)
			if err != nil {
				t.fault(err)
				return
			}
			select {
			case <-stop:
			case <-time.After(200 * time.Millisecond):
			}
			h.Kill9()
			killed++
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stop); <-stopped })
	t.cleanup(end)
	n := t.of(500, 12)
	pods := make([]*node.Pod, n)
	var mu sync.Mutex
	failed := 0
	t.each(n, 4, func(i int) {
		var err error
		if pods[i], err = b.optedIn(); err != nil {
			mu.Lock()
			failed++
			mu.Unlock()
			t.note("ADD failed: %v", err)
		}
		if i%10 == 0 {
			b.bystander()
		}
	})
	end()
	b.start()
	lost := 0
	t.each(n, 4, func(i int) {
		if err := b.governed(pods[i]); err != nil {
			mu.Lock()
			lost++
			mu.Unlock()
			t.note("after all that: %s: %v", pods[i].Name, err)
		}
		b.del(pods[i])
	})
	b.settled(before)
	t.claim("0 ADDs failed", failed == 0, "%d of %d", failed, n)
	t.claim("0 pods ungoverned when the helper is back", lost == 0, "%d of %d", lost, n)
	t.note("the helper was killed %d times", killed)
}
