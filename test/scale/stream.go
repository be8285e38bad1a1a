// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// stream makes changes at a rate, each of another service, and looks for every one of them.
func (r *result) stream(ctx context.Context, b *bed) error {
	traffic := b.traffic(ctx)
	defer traffic.stop()
	look, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- b.watch.run(look) }()
	before, err := b.usage()
	if err != nil {
		return err
	}
	began := time.Now()
	total := r.opts.changes()
	told := make([]time.Time, total)
	for n := range total {
		if wait := time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(r.opts.rate))); wait > 0 {
			select { // this is the rate
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
		i := firstFar + n
		at := b.world.endpoints(i)
		at[0] = changedAddr(n)
		told[n] = time.Now()
		if err := b.update(resourcev3.EndpointType, clusterOf(i), assignment(i, at)); err != nil {
			return err
		}
	}
	making := time.Since(began)
	var changes []change
	for n := range total {
		var at time.Time
		if err := until(ctx, fmt.Sprintf("change %d of %d", n, total), time.Millisecond, func() error {
			var ok bool
			if at, ok = b.watch.came(changedAddr(n), b.copies()); !ok {
				return errors.New("it is not in the maps")
			}
			return nil
		}); err != nil {
			return err
		}
		changes = append(changes, change{told: at.Sub(told[n])})
	}
	after, err := b.usage()
	if err != nil {
		return err
	}
	stop()
	if err := <-watched; err != nil {
		return err
	}
	sent, errs := traffic.end()
	r.add(fmt.Sprintf("%d changes at %d a second: made within", total, r.opts.rate), making, 0)
	last := changes[total-1].told
	r.addChanges("each of them", changes, 0)
	r.add("the last of them", last, 0)
	r.note("helper's CPU meanwhile: %.0f %% of one", 100*(after.cpu-before.cpu).Seconds()/making.Seconds())
	if err := r.cpu(b, before, total); err != nil {
		return err
	}
	r.addBytes("helper's resident memory after them", after.rss, 150<<20)
	r.addBytes("of it its own", after.own, 0)
	r.note("requests meanwhile: %d, failed: %d", sent, len(errs))
	if len(errs) > 0 {
		return fmt.Errorf("requests failed during changes: %w", errors.Join(errs...))
	}
	return r.lost(b)
}

// lost looks whether the maps hold what the changes left, and nothing else.
func (r *result) lost(b *bed) error {
	held, err := b.watch.held()
	if err != nil {
		return err
	}
	total := r.opts.changes()
	for n := range total {
		if held[changedAddr(n)] == 0 {
			return fmt.Errorf("change %d is lost: %s is not in the maps", n, changedAddr(n))
		}
		if old := farOf(firstFar+n, 0); held[old] != 0 {
			return fmt.Errorf("change %d: %s, which it replaced, is in the maps still", n, old)
		}
	}
	if want := (b.opts.services - 1) * perService; len(held) != want {
		return fmt.Errorf("%d endpoints are in the maps after all changes: want %d", len(held), want)
	}
	r.note("changes lost: 0 of %d", total)
	return nil
}
