// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"kmesh/test/node"
)

// row is a row of the matrix.
type row struct {
	id, fault string
	target    string // in the matrix's words
	timed     string // what p50 and p99 are the times of
	versions  string // how it goes through the versions of the CNI specification
	run       func(*trial)
}

// versions of the CNI specification that a row goes through.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// result is what came of a row.
type result struct {
	row        row
	n          int // how often the fault happened, or how many pods it met
	broken     int // pods that did not opt in and were not left alone
	unenrolled int // pods that opted in, were started, and were not governed
	leaked     node.Holdings
	took       []time.Duration
	beside     []time.Duration // of the plugin, for pods that did not opt in
	claims     []claim
	notes      []string
	err        error // the row could not be run
	elapsed    time.Duration
}

// claim is a part of the target, with what was measured.
type claim struct {
	what, measured string
	met            bool
	why            string // it cannot hold, or not yet: the reason
}

// holds says whether all that the row promises is true, beside what is known not to be.
func (r *result) holds() bool {
	if r.err != nil || r.n == 0 || r.broken > 0 || r.unenrolled > 0 || r.leaked != (node.Holdings{}) {
		return false
	}
	for _, c := range r.claims {
		if !c.met && c.why == "" {
			return false
		}
	}
	return true
}

// trial is one run of a row. Its methods that cannot go on end the row's goroutine, as a test's do.
type trial struct {
	ctx   context.Context
	short bool

	mu       sync.Mutex
	res      *result
	cleanups []func()
	pods     int // prepared so far

	inTurn, outTurn int // of the versions: pods that opt in, and others
}

// rowLimit is the longest that a row may take.
const rowLimit = 5 * time.Minute

// do runs a row.
func (r row) do(ctx context.Context, short bool) *result {
	ctx, cancel := context.WithTimeout(ctx, rowLimit)
	defer cancel()
	began := time.Now()
	t := &trial{ctx: ctx, short: short, res: &result{row: r}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.cleanUp()
		defer t.recovered()
		r.run(t)
	}()
	<-done
	t.res.elapsed = time.Since(began)
	return t.res
}

func (t *trial) recovered() {
	if p := recover(); p != nil {
		t.fault(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
}

func (t *trial) cleanUp() {
	defer t.recovered()
	for len(t.cleanups) > 0 {
		f := t.cleanups[len(t.cleanups)-1]
		t.cleanups = t.cleanups[:len(t.cleanups)-1]
		f()
	}
}

// cleanup has f called when the row is over, the last one first.
func (t *trial) cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// fault notes that the row could not be run as it should.
func (t *trial) fault(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.err = errors.Join(t.res.err, err)
}

// must ends the row where something went wrong that is no result.
func (t *trial) must(err error) {
	if err == nil {
		return
	}
	_, file, line, _ := runtime.Caller(1)
	t.fault(fmt.Errorf("%s:%d: %w", file, line, err))
	runtime.Goexit()
}

// claim is a part of the target, and whether it is met.
func (t *trial) claim(what string, met bool, measured string, args ...any) {
	t.limit(what, met, "", measured, args...)
}

// limit is a claim that is known not to hold always, with the reason: not to meet it is told, and no failure.
func (t *trial) limit(what string, met bool, why, measured string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.claims = append(t.res.claims, claim{what: what, met: met, why: why, measured: fmt.Sprintf(measured, args...)})
}

// note is a figure beside the target.
func (t *trial) note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.notes = append(t.res.notes, fmt.Sprintf(format, args...))
}

// count adds to n, and time to what p50 and p99 are of.
func (t *trial) count(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.n += n
}

func (t *trial) time(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.took = append(t.res.took, d)
}

func (t *trial) beside(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.res.beside = append(t.res.beside, d)
}

// of gives how often something is done: the whole number, or the short form's.
func (t *trial) of(whole, short int) int {
	if t.short {
		return short
	}
	return whole
}

// until polls until f gives nil, and returns how long that took and the last error.
func (t *trial) until(limit time.Duration, f func() error) (time.Duration, error) {
	began := time.Now()
	for {
		err := f()
		if took := time.Since(began); err == nil || took > limit || t.ctx.Err() != nil {
			return took, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// each runs f for 0 to n-1 on some goroutines. One that ends by must ends all.
func (t *trial) each(n, workers int, f func(int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	stop := make(chan struct{})
	var once sync.Once
	for range workers {
		wg.Add(1)
		go func() {
			ended := true
			defer wg.Done()
			defer func() {
				if ended {
					once.Do(func() { close(stop) })
				}
			}()
			defer t.recovered()
			for i := range next {
				f(i)
			}
			ended = false
		}()
	}
	aborted := false
feed:
	for i := range n {
		select {
		case next <- i:
		case <-stop:
			aborted = true
			break feed
		}
	}
	close(next)
	wg.Wait()
	if aborted || t.res.err != nil {
		runtime.Goexit()
	}
}
