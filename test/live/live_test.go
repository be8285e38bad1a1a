// SPDX-License-Identifier: Apache-2.0

package live

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
)

// How many pairs are tried, and from which seed.
const (
	pairsEnv     = "KMESH_PAIRS"
	seedEnv      = "KMESH_SEED"
	defaultPairs = 3_000
	fullPairs    = 100_000
)

const (
	perWorld = 50 // pairs
	perBatch = 16 // worlds that are published together
	batches  = 4  // that are asked at once
	perAsker = 2  // connections to a world at once
)

// tally counts what was compared.
type tally struct {
	pairs, routed, forwarded, answered, rejected, pinned, connections, slow, over atomic.Int64
}

func (n *tally) String() string {
	return fmt.Sprintf("%d pairs: %d heads routed, %d forwarded, %d answered on the way, %d rejected, %d pinned; %d connections, %d pairs sent too slowly to tell, %d configurations over budget",
		n.pairs.Load(), n.routed.Load(), n.forwarded.Load(), n.answered.Load(), n.rejected.Load(), n.pinned.Load(), n.connections.Load(), n.slow.Load(), n.over.Load())
}

// TestLive: what clients see of every pair is what the reference allows, and the kernel has counted it so.
func TestLive(t *testing.T) {
	pairs, first := defaultPairs, rand.Uint64()
	if os.Getenv("KMESH_L7") == "full" {
		pairs = fullPairs
	}
	if s := os.Getenv(pairsEnv); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", pairsEnv, err)
		}
		pairs = n
	}
	if s := os.Getenv(seedEnv); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		first = n
	}
	t.Logf("to repeat: %s=%d %s=%d", seedEnv, first, pairsEnv, pairs)
	l := newLab(t)
	start := time.Now()
	var n tally
	var found differences
	var running sync.WaitGroup
	room := make(chan struct{}, batches)
	done := make(chan []*world, batches)
	var finished []*world
	for i := 0; i*perWorld < pairs && !found.any(); {
		var batch []*world
		for ; len(batch) < perBatch && i*perWorld < pairs; i++ {
			w, err := newWorld(t, l.servers, first+uint64(i), i, min(perWorld, pairs-i*perWorld))
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, w)
		}
		room <- struct{}{}
		for more := true; more; {
			select {
			case ws := <-done:
				finished = append(finished, ws...)
			default:
				more = false
			}
		}
		err := l.publish(batch, finished)
		if _, over := errors.AsType[*automaton.BudgetError](err); over {
			batch = l.affordable(batch, &n)
			err = l.publish(batch, finished)
		}
		if err != nil {
			t.Fatal(err)
		}
		finished = nil
		running.Go(func() {
			l.askAll(batch, &n, &found)
			done <- batch
			<-room
		})
	}
	running.Wait()
	took := time.Since(start)
	t.Logf("%v; in %v", &n, took.Round(time.Millisecond))
	for i, d := range found.all {
		if i == 4 {
			t.Errorf("and %d more that were found at once", len(found.all)-i)
			break
		}
		d.report(l)
	}
	l.wantIdle()
	if found.any() {
		return
	}
	// 12 runs of 3,000 pairs forwarded 489 to 645, 575 on average with a deviation of 43: an eighth is more than four
	// deviations below.
	if n.routed.Load() < n.pairs.Load()/2 || n.forwarded.Load() < n.pairs.Load()/8 || n.pinned.Load() < n.pairs.Load()/200 {
		t.Error("too few are routed, forwarded or pinned to say anything")
	}
	if n.slow.Load() > n.pairs.Load()/100 || n.over.Load()*perWorld > n.pairs.Load()/100 {
		t.Error("too many pairs were not compared")
	}
}

// affordable leaves out the worlds that nobody could run.
func (l *lab) affordable(batch []*world, n *tally) (out []*world) {
	for _, w := range batch {
		ok := true
		for _, vh := range w.service.HTTP.VirtualHosts {
			_, err := automaton.Compile(vh, automaton.Budget{})
			if _, over := errors.AsType[*automaton.BudgetError](err); over {
				ok = false
			}
		}
		if !ok {
			n.over.Add(1)
			l.servers.give(w.taken)
			continue
		}
		out = append(out, w)
	}
	return out
}

// askAll sends the pairs of worlds, on several connections each, and compares what the kernel counted.
func (l *lab) askAll(batch []*world, n *tally, found *differences) {
	seen := make([]*counts, len(batch))
	var askers sync.WaitGroup
	for i, w := range batch {
		seen[i] = newCounts()
		for k := range perAsker {
			askers.Go(func() { l.ask(w, k, seen[i], n, found) })
		}
	}
	askers.Wait()
	if found.any() {
		return
	}
	if err := l.compareCounts(batch, seen); err != nil {
		found.add(&difference{wrong: err.Error()})
	}
}

// ask sends every perAsker-th pair of a world.
func (l *lab) ask(w *world, k int, seen *counts, n *tally, found *differences) {
	var c *conn
	hangUp := func() {
		if c != nil {
			c.Close()
		}
		c = nil
	}
	defer hangUp()
	m := new(explain.Matcher)
	client := l.clients[(w.seed+uint64(k))%uint64(len(l.clients))]
	for i := k; i < len(w.pairs); i += perAsker {
		p := w.pairs[i]
		s := scriptOf(p)
		if s.fresh {
			hangUp()
		}
		if c == nil {
			var err error
			if c, err = l.dial(w, client); err != nil {
				found.add(&difference{w: w, history: []pair{p}, wrong: err.Error()})
				return
			}
			n.connections.Add(1)
		}
		e, allowed, wrong, err := c.say(w, m, p, s)
		if errors.Is(err, errSlow) {
			n.slow.Add(1)
			seen.miss()
			hangUp()
			continue
		}
		if wrong != "" {
			found.add(&difference{w: w, history: c.said, wrong: wrong})
			return
		}
		n.count(e, allowed)
		if e.ending != pinned && e.ending != refused {
			seen.add(allowed, c.last)
		}
		if e.ending != goesOn || e.cutShort() {
			hangUp()
		}
		if found.any() {
			return
		}
	}
}

func (n *tally) count(e expected, allowed []outcome) {
	n.pairs.Add(1)
	switch {
	case e.ending == pinned || e.ending == refused:
		n.pinned.Add(1)
	case e.kind != head.Route:
		n.rejected.Add(1)
	default:
		n.routed.Add(1)
		if allowed[0].cluster != "" {
			n.forwarded.Add(1)
		} else {
			n.answered.Add(1)
		}
	}
}
