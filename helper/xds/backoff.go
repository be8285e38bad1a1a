// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is an exponential one with jitter: a thousand nodes that lose the same
// server must not come back in step.
type backoff struct {
	base, max time.Duration
	next      time.Duration
}

// reset goes back to the base.
func (b *backoff) reset() { b.next = 0 }

// harder skips ahead: the server has said that it is overloaded.
func (b *backoff) harder() { b.next = min(4*max(b.next, b.base), b.max) }

// delay returns how long to wait now: between half and all of the current step.
func (b *backoff) delay() time.Duration {
	step := min(max(b.next, b.base), b.max)
	b.next = min(2*step, b.max)
	return step/2 + rand.N(step/2+1)
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
