// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"time"
)

// WarTiming is what makes a rewrite war of repairs.
type WarTiming struct {
	Losses   int           // that many repairs in a row were undone
	Pause    time.Duration // before the second repair; doubled with each
	Calm     time.Duration // what has lasted this long was no loss
	Quiet    time.Duration // how long nobody may have written before it is tried again after a war; doubled with each war
	MaxQuiet time.Duration
}

// war bounds what is written against somebody who undoes it. The first repair is at once, as a primary that was restarted rewrites its file once; the
// following ones wait, longer each time; after Losses of them nothing is written until the other has been quiet.
type war struct {
	WarTiming
	losses int
	last   time.Time // of the last write of ours
	change time.Time // of the last change by somebody else
	wars   int
	lost   bool // the war: nothing is written
	enemy  string
}

// foreign notes that somebody else has changed the files.
func (w *war) foreign(now time.Time) { w.change = now }

// quiet is how long the other must not have written.
func (w *war) quiet() time.Duration { return min(w.Quiet<<min(max(w.wars-1, 0), 16), w.MaxQuiet) }

// mayWrite is asked when something has to be written. If it may not be now, it says how long to wait; begun is true once for each war.
func (w *war) mayWrite(now time.Time) (ok bool, wait time.Duration, begun bool) {
	if w.lost {
		if left := w.quiet() - now.Sub(w.change); left > 0 {
			return false, left, false
		}
		// One more attempt: losing it again is a war again.
		w.lost, w.losses = false, w.Losses-1
		return true, 0, false
	}
	if now.Sub(w.last) >= w.Calm {
		w.losses = 0
	}
	if w.losses >= w.Losses {
		w.lost, w.change = true, now
		w.wars++
		return false, w.quiet(), true
	}
	if w.losses > 0 {
		if left := w.Pause<<(w.losses-1) - now.Sub(w.last); left > 0 {
			return false, left, false
		}
	}
	return true, 0, false
}

// wrote notes a write of ours. All but the first answer somebody.
func (w *war) wrote(now time.Time) {
	if !w.last.IsZero() {
		w.losses++
	}
	w.last = now
}

// holds notes that what is wanted is in place.
func (w *war) holds(now time.Time) {
	if now.Sub(w.last) >= w.Calm {
		w.losses, w.wars = 0, 0
	}
}

// over says what the war is about, and when it ends.
func (w *war) over(path string) error {
	return fmt.Errorf("rewrite war over %s with %s: nothing is written until the file has been left alone for %s", path, w.enemy, w.quiet())
}
