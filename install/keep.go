// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"kmesh/cni/entry"
	"kmesh/install/place"
)

// binary comes before everything else: a configuration that names a plugin that is not there fails every pod.
func (in *Installer) binary(ctx context.Context, d dirs) (time.Duration, error) {
	to := binaryPlace(d.bins)
	from := filepath.Join(in.opts.Source, entry.Type)
	if same, err := in.sums.same(from, to); err == nil && same {
		in.binWar.holds(time.Now())
		return 0, nil
	}
	if again, err := in.peace(ctx, &in.binWar, to); err != nil {
		return again, err
	}
	if err := place.Sweep(filepath.Dir(to)); err != nil {
		in.opts.Log.Warn("temporary files of a killed installer stay", "error", err)
	}
	written, err := putBinary(in.opts.Disk, in.sums, from, to)
	if err != nil {
		return in.opts.Timing.Resync, err
	}
	if written {
		in.binWar.wrote(time.Now())
		in.count(func(s *Status) { s.BinaryWrites++ })
		in.opts.Log.Info("plugin installed", "path", to)
	}
	return 0, nil
}

// peace says whether something may be written again that somebody else may have undone.
func (in *Installer) peace(ctx context.Context, w *war, path string) (time.Duration, error) {
	dir := filepath.Dir(path)
	if !w.last.IsZero() && in.seen[dir] == nil {
		in.seen[dir] = watchWriters(dir)
	}
	ok, again, begun := w.mayWrite(time.Now())
	switch {
	case ok:
		return 0, nil
	case !w.lost:
		return again, fmt.Errorf("%s was undone %d times: the next repair waits %s", path, w.losses, again.Round(time.Millisecond))
	case begun:
		w.enemy = in.seen[dir].who(path)
		in.count(func(s *Status) { s.Wars++ })
		in.unready(w.over(path)) // before it is told: who hears of a war is not told that all is well
		in.tell(ctx, true, ReasonRewriteWar, "%s is rewritten by %s, as often as Kmesh puts its own there: stopped after %d repairs, pods are not enrolled. Keep it from that (with Cilium: cni.exclusive=false), or use mode drop-in. Tried again when the file has been left alone for %s",
			path, w.enemy, w.Losses, w.quiet())
	}
	return again, w.over(path)
}

// attempts bounds how often a pass begins anew because a file changed under it.
const attempts = 3

// chain makes sure that the configuration names the plugin, and that the runtime has read that.
func (in *Installer) chain(ctx context.Context, d dirs, st *RuntimeStatus, r *record, keep func() error) (*placement, time.Duration, error) {
	mode, trial := in.mode(d, st)
	var pl *placement
	var err error
	for range attempts {
		if pl, err = in.opts.plan(d.conf, mode); errors.Is(err, errDropIn) && in.opts.Mode == Auto {
			mode, trial = InPlace, false
			pl, err = in.opts.plan(d.conf, mode)
		}
		if err != nil {
			return nil, in.opts.Timing.Resync, err
		}
		if len(pl.changes) == 0 {
			in.confWar.holds(time.Now())
			break
		}
		if err := in.rejected.again(pl); err != nil {
			return nil, in.opts.Timing.Resync, err
		}
		if again, err := in.peace(ctx, &in.confWar, cmp.Or(pl.path, pl.changes[0].Path)); err != nil {
			return nil, again, err
		}
		repair := !in.confWar.last.IsZero()
		if err = in.write(pl, r, keep); errors.Is(err, place.ErrChanged) {
			continue
		}
		if err != nil {
			return nil, in.opts.Timing.Resync, remedied(err)
		}
		in.confWar.wrote(time.Now())
		if repair {
			in.tell(ctx, false, ReasonRepaired, "the entry in the network's configuration was missing or another one, and was put back: %s", pl.path)
		}
		break
	}
	if err != nil {
		// Somebody writes at the very same moment, each time. What was put in place for a moment counts as written.
		in.confWar.wrote(time.Now())
		return nil, in.opts.Timing.Gather, remedied(err)
	}
	if pl.path == "" { // only files of ours that nothing needs any more
		return nil, in.opts.Timing.Resync, errNoPrimary
	}
	in.last = *pl
	limit := in.opts.Timing.Confirm
	if trial {
		limit = in.opts.Timing.Trial
	}
	if err := in.confirm(ctx, d, st, pl, limit); err != nil {
		return in.notLoaded(ctx, d, st, r, keep, pl, trial, err)
	}
	if pl.mode == DropIn && st != nil {
		in.dropIn[st.Name+" "+st.Version] = true
	}
	return pl, 0, nil
}

// rejection is what a runtime could not load, and was taken back.
type rejection struct {
	change Change
	err    error
	until  time.Time
}

// again gives the error of the same change again, for a while: putting in place and taking back has a price for others.
func (r *rejection) again(pl *placement) error {
	c, ok := pl.main()
	if ok && time.Now().Before(r.until) && c.Path == r.change.Path && bytes.Equal(c.Old, r.change.Old) && bytes.Equal(c.Fresh, r.change.Fresh) {
		return r.err
	}
	return nil
}

// mode is how to come into the chain. trial is true where it is only tried.
func (in *Installer) mode(d dirs, st *RuntimeStatus) (mode Mode, trial bool) {
	switch {
	case in.opts.Mode != Auto:
		return in.opts.Mode, false
	case st == nil || !st.Tells || !d.watched:
		return InPlace, false // what cannot be confirmed is not tried
	}
	works, known := in.dropIn[st.Name+" "+st.Version]
	if known && !works {
		return InPlace, false
	}
	// An entry that is inline already stays there: no reason to touch the primary's file twice.
	if p, _, err := findPrimary(d.conf); err == nil {
		if stampIn(p.conf) != nil {
			return InPlace, false
		}
	}
	return DropIn, !known
}

// write applies what was planned, and takes all of it back when a part fails.
func (in *Installer) write(pl *placement, r *record, keep func() error) error {
	if dir := filepath.Dir(pl.path); pl.mode == DropIn && !exists(dir) {
		note(&r.Made, dir)
		if err := keep(); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for i, c := range pl.changes {
		dir := filepath.Dir(c.Path)
		if err := place.Sweep(dir); err != nil {
			in.opts.Log.Warn("temporary files of a killed installer stay", "error", err)
		}
		if err := c.Apply(in.opts.Disk); err != nil {
			err = errors.Join(err, in.takeBack(pl.changes[:i]))
			removeMade(r, filepath.Dir(pl.path))
			return err
		}
		in.count(func(s *Status) { s.ConfWrites++ })
		in.opts.Log.Info("configuration written", "path", c.Path, "mode", string(pl.mode), "network", pl.network)
	}
	return nil
}

func (in *Installer) takeBack(done []Change) error {
	var errs []error
	for _, c := range slices.Backward(done) {
		if err := c.Undone().Apply(in.opts.Disk); err != nil {
			errs = append(errs, fmt.Errorf("taking back: %w", err))
		}
	}
	return errors.Join(errs...)
}

// remedied adds what to do about a disk that does not take a file.
func remedied(err error) error {
	if s := remedy(err); s != "" {
		return fmt.Errorf("conf-dir: %w: %s", err, s)
	}
	return fmt.Errorf("conf-dir: %w", err)
}
