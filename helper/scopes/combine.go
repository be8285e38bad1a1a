// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
)

// Waits between attempts to publish what no view asks to have published.
const (
	retryBase = 100 * time.Millisecond
	retryMax  = 5 * time.Second
)

// part is the newest content of a scope.
type part struct {
	scope  mesh.Scope // by Envoy's types
	merged *mesh.Scope
	of     *snapshot.Announced // what is in merged
	left   []mesh.Verdict
	asked  []chan<- error // who waits until it is in the maps
}

// combiner makes one snapshot of the parts that come from the views, and publishes it: one
// at a time, and what comes meanwhile together.
type combiner struct {
	publish   func(context.Context, *mesh.Snapshot) error
	announced func() (*snapshot.Announced, bool) // nil: there is no workload API
	log       *slog.Logger
	wake      chan struct{}

	mu    sync.Mutex
	parts map[mesh.ScopeKey]*part
	// missing says what the first snapshot waits for; "" if for nothing.
	missing func(have map[mesh.ScopeKey]bool) string
	holding string
	// published are the scopes that are in the maps; nil before the first snapshot.
	published map[mesh.ScopeKey]bool
	version   uint64
}

func newCombiner(publish func(context.Context, *mesh.Snapshot) error, announced func() (*snapshot.Announced, bool), missing func(map[mesh.ScopeKey]bool) string, log *slog.Logger) *combiner {
	return &combiner{
		publish: publish, announced: announced, missing: missing, log: log,
		wake: make(chan struct{}, 1), parts: make(map[mesh.ScopeKey]*part),
	}
}

// poke tells run that something has changed.
func (c *combiner) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// set gives a scope its content, and returns when that is in the maps, or why it is not.
func (c *combiner) set(ctx context.Context, key mesh.ScopeKey, scope mesh.Scope) error {
	answer := make(chan error, 1)
	c.mu.Lock()
	p := c.parts[key]
	if p == nil {
		p = &part{}
		c.parts[key] = p
	}
	scope.Key = key
	p.scope, p.merged = scope, nil
	p.asked = append(p.asked, answer)
	c.mu.Unlock()
	c.poke()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-answer:
		return err
	}
}

// put gives a scope its content without waiting.
func (c *combiner) put(key mesh.ScopeKey, scope mesh.Scope) {
	c.mu.Lock()
	defer c.mu.Unlock()
	scope.Key = key
	c.parts[key] = &part{scope: scope}
	c.poke()
}

// remove takes a scope out.
func (c *combiner) remove(key mesh.ScopeKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.parts, key)
	c.poke()
}

// has says whether a scope is in the maps.
func (c *combiner) has(key mesh.ScopeKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.published[key]
}

// run publishes until ctx ends.
func (c *combiner) run(ctx context.Context, done func()) {
	wait := retryBase
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-again.C:
		}
		again.Reset(time.Hour)
		snap, asked := c.next()
		if snap == nil {
			continue
		}
		err := c.publish(ctx, snap)
		if ctx.Err() != nil {
			return
		}
		c.result(snap, err)
		for _, a := range asked {
			a <- err
		}
		if err == nil {
			wait = retryBase
			done()
			continue
		}
		if len(asked) == 0 { // who asked will ask again, and says so
			c.log.Error("snapshot not published, trying again", "version", snap.Version, "err", err, "in", wait)
		}
		again.Reset(wait)
		wait = min(2*wait, retryMax)
	}
}

// next makes a snapshot of all parts; nil: there can be none yet.
func (c *combiner) next() (*mesh.Snapshot, []chan<- error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ann *snapshot.Announced
	heard := true
	if c.announced != nil {
		ann, heard = c.announced()
	}
	if c.published == nil {
		have := make(map[mesh.ScopeKey]bool, len(c.parts))
		for k := range c.parts {
			have[k] = true
		}
		if c.holding = c.missing(have); c.holding == "" && !heard {
			c.holding = "no word yet from the workload API"
		}
		if c.holding != "" {
			return nil, nil
		}
	}
	c.version++
	snap := &mesh.Snapshot{Version: c.version}
	var asked []chan<- error
	for _, k := range slices.SortedFunc(maps.Keys(c.parts), compare) {
		p := c.parts[k]
		if p.merged == nil || p.of != ann {
			p.merge(ann)
		}
		snap.Scopes = append(snap.Scopes, *p.merged)
		asked, p.asked = append(asked, p.asked...), nil
	}
	return snap, asked
}

// merge joins a part with what is announced.
func (p *part) merge(ann *snapshot.Announced) {
	merged, left := p.scope, []mesh.Verdict(nil)
	if ann != nil {
		merged, left = snapshot.Merge(p.scope, ann)
	}
	p.merged, p.of, p.left = &merged, ann, left
}

// result records what became of a snapshot.
func (c *combiner) result(snap *mesh.Snapshot, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return
	}
	c.published = make(map[mesh.ScopeKey]bool, len(snap.Scopes))
	for _, s := range snap.Scopes {
		c.published[s.Key] = true
	}
}

// held says why there is no first snapshot yet.
func (c *combiner) held() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holding
}

// leftOut are announced services that a scope does not have as they are.
func (c *combiner) leftOut(key mesh.ScopeKey) []mesh.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.parts[key]; p != nil {
		return p.left
	}
	return nil
}

// nameOf is a scope in words.
func nameOf(k mesh.ScopeKey) string {
	switch {
	case k == (mesh.ScopeKey{}):
		return "the default scope"
	case k.ServiceAccount == "":
		return "namespace " + k.Namespace
	}
	labels := k.Labels
	if labels == "" {
		labels = "none"
	}
	return fmt.Sprintf("%s/%s with labels %s", k.Namespace, k.ServiceAccount, strings.ReplaceAll(labels, ",", ", "))
}
