// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/install/place"
)

// errNotLoaded: the runtime goes on without the entry.
var errNotLoaded = errors.New("the runtime has not loaded the entry")

// errSilent: the runtime answers nothing.
var errSilent = errors.New("the runtime does not answer")

// confirm waits until the runtime says that it has loaded what is in place. A runtime that cannot be asked, or does not tell, confirms nothing.
func (in *Installer) confirm(ctx context.Context, d dirs, st *RuntimeStatus, pl *placement, limit time.Duration) error {
	if st == nil || !st.Tells || !d.watched {
		return nil
	}
	if len(pl.changes) == 0 && st.Loaded(pl.network, pl.entry) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := errSilent
	for i := 0; ; i++ {
		// The folder of drop-ins is watched by nobody, and an event may be lost: a file that comes and goes makes a runtime read anew.
		if i%10 == 0 {
			if err := nudge(d.conf); err != nil {
				return err
			}
		}
		switch now, err := in.ask(ctx); {
		case err == nil && now.Loaded(pl.network, pl.entry):
			return nil
		case err == nil:
			last = errNotLoaded
			if now.LoadError != "" {
				last = fmt.Errorf("%w (%s)", errNotLoaded, now.LoadError)
			}
		case !errors.Is(last, errNotLoaded) && ctx.Err() == nil:
			last = fmt.Errorf("%w: %w", errSilent, err)
		}
		if wait(ctx, in.opts.Timing.Poll) != nil {
			return last
		}
	}
}

// notLoaded goes back to what can be: a drop-in that was only tried is taken away, and the entry put inline; what made the runtime's load fail is undone.
func (in *Installer) notLoaded(ctx context.Context, d dirs, st *RuntimeStatus, r *record, keep func() error, pl *placement, trial bool, cause error) (*placement, time.Duration, error) {
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	if !errors.Is(cause, errNotLoaded) {
		return nil, time.Second, cause
	}
	if trial {
		in.dropIn[st.Name+" "+st.Version] = false
		in.opts.Log.Info("the runtime reads no drop-ins: the entry goes into the primary's file", "runtime", st.Name, "version", st.Version)
		inline, err := in.opts.plan(d.conf, InPlace)
		if err == nil {
			err = in.write(inline, r, keep)
		}
		if err != nil {
			return nil, in.opts.Timing.Resync, remedied(err)
		}
		in.confWar.last = time.Now()
		removeMade(r, filepath.Dir(pl.path))
		in.last = *inline
		if cause = in.confirm(ctx, d, st, inline, in.opts.Timing.Confirm); cause == nil {
			return inline, 0, nil
		}
		pl = inline
	}
	if written, ok := pl.main(); ok && st.LoadError == "" {
		if now, err := in.ask(ctx); err == nil && now.LoadError != "" {
			err := fmt.Errorf("%w: what was written is taken back: %w", cause, errors.Join(errors.New(now.LoadError), in.takeBack([]Change{written}), nudge(d.conf)))
			in.rejected = rejection{written, err, time.Now().Add(rejectedFor)}
			return nil, in.opts.Timing.Resync, err
		}
	}
	if pl.mode == DropIn {
		return nil, in.opts.Timing.Resync, fmt.Errorf("%w from %s: %s %s may not read drop-ins (libcni 1.3 does, as in containerd 2.1 and CRI-O 1.33): use mode auto or in-place", cause, pl.path, st.Name, st.Version)
	}
	return nil, in.opts.Timing.Resync, fmt.Errorf("%w from %s: look at the runtime's log, and whether it reads %s", cause, pl.path, d.conf)
}

// rejectedFor is how long the same is not put in place again that a runtime could not load.
const rejectedFor = 10 * time.Minute

// nudge makes a runtime that watches a folder read it anew: it does so when a file is removed.
func nudge(dir string) error {
	f, err := os.CreateTemp(dir, ".kmesh-*.tmp")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// removeMade removes a directory that was made here, if it is empty, and forgets it.
func removeMade(r *record, dir string) {
	if i := slices.Index(r.Made, dir); i >= 0 && os.Remove(dir) == nil {
		r.Made = slices.Delete(r.Made, i, i+1)
	}
}

// remedy says what to do about a disk that does not take a file; empty when there is nothing special to say.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "the folder is read-only: mount it so that it can be written to"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "the disk is full: make room"
	case errors.Is(err, fs.ErrPermission):
		return "give this process the right to write there (CAP_DAC_OVERRIDE, or a folder of its user)"
	case errors.Is(err, place.ErrChanged):
		return "somebody else writes it at this moment: it is tried again"
	}
	return ""
}
