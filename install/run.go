// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"kmesh/install/place"
)

// Run installs the plugin and keeps it installed until the context ends. Nothing is taken away then: pods that are made meanwhile are enrolled all the
// same, by what is on the disk.
func (in *Installer) Run(ctx context.Context) error {
	removeReady(in.opts.ReadyFile) // another process's word
	defer in.withdraw()
	defer func() {
		for _, w := range in.seen {
			w.close()
		}
	}()
	if err := in.start(ctx); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the node's folders: %w: raise fs.inotify.max_user_instances", err)
	}
	defer watcher.Close()
	for {
		// Before the look, so that what changes during it is seen.
		in.watch(watcher)
		again, err := in.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			in.fail(ctx, err)
		}
		if errors.Is(err, errSuperseded) {
			again = time.Hour // nothing of this process's business any more, until it is ended
		}
		if !in.await(ctx, watcher, again) {
			return nil
		}
	}
}

// Once installs the plugin's binary and nothing else: what an init container does, so that the plugin is never older than the helper.
func (in *Installer) Once(ctx context.Context) error {
	if err := in.start(ctx); err != nil {
		return err
	}
	unlock, err := lockDir(ctx, in.opts.Plugin.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := in.folders(in.ask(ctx))
	if err != nil {
		return err
	}
	r, old, err := readRecord(in.opts.Plugin.StateDir)
	if err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	note(&r.Binaries, binaryPlace(d.bins))
	if _, err := r.write(in.opts.Disk, in.opts.Plugin.StateDir, old); err != nil {
		return err
	}
	_, err = in.binary(ctx, d)
	return err
}

// withdraw takes the ready file away when this process ends: it speaks of a process that runs. One that has taken over has its own.
func (in *Installer) withdraw() {
	if r, _, err := readRecord(in.opts.Plugin.StateDir); err == nil && r.Claim == in.claim {
		removeReady(in.opts.ReadyFile)
	}
}

// unready notes why it is not as it should be.
func (in *Installer) unready(err error) {
	in.count(func(s *Status) { s.Ready, s.Reason, s.Loaded = false, err.Error(), "no" })
	if !errors.Is(err, errSuperseded) { // the file is another process's then
		removeReady(in.opts.ReadyFile)
	}
}

// fail notes why it is not as it should be, and tells it.
func (in *Installer) fail(ctx context.Context, err error) {
	in.unready(err)
	switch {
	case errors.Is(err, errNoPrimary):
		in.report(ctx, false, ReasonWaiting, "waiting for the node's network: no configuration yet")
	case errors.Is(err, errSuperseded):
		in.report(ctx, true, ReasonSuperseded, "%v: restart this pod to install again", err)
	case errors.Is(err, errNotLoaded):
		in.report(ctx, true, ReasonNotLoaded, "%v", err)
	case in.confWar.lost || in.binWar.lost:
		// Told when it began.
	case in.confWar.losses > 0 || in.binWar.losses > 0:
		in.opts.Log.Warn("repair waits", "reason", err)
	default:
		in.report(ctx, true, ReasonFailed, "kmesh-cni is not installed: %v", err)
	}
}

// watch watches what is there to watch: directories come and go.
func (in *Installer) watch(w *fsnotify.Watcher) {
	want := []string{in.opts.Plugin.StateDir}
	if d, err := in.opts.directories(in.lastSaid); err == nil {
		want = append(append(want, d.conf), d.bins...)
	}
	if in.last.mode == DropIn {
		want = append(want, filepath.Dir(in.last.path))
	}
	for _, dir := range want {
		if err := w.Add(dir); err != nil {
			in.opts.Log.Debug("not watched", "dir", dir, "error", err)
		}
	}
}

// await waits for the next look: an event, with those right behind it, or the time. It is false at the end.
func (in *Installer) await(ctx context.Context, w *fsnotify.Watcher, again time.Duration) bool {
	timer := time.NewTimer(max(again, time.Millisecond))
	defer timer.Stop()
	var gathered <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-gathered:
			return true
		case err := <-w.Errors:
			in.opts.Log.Warn("watching the node's folders", "error", err)
			return true
		case e := <-w.Events:
			if place.IsTemp(e.Name) {
				continue
			}
			in.noteWriter(filepath.Dir(e.Name))
			if gathered == nil {
				gather := in.opts.Timing.Gather
				if in.confWar.lost || in.binWar.lost {
					gather *= 20 // there is nothing to do but to see that it goes on
				}
				gathered = time.After(gather)
			}
		}
	}
}

// noteWriter notes that somebody writes there. In a war nobody of ours does.
func (in *Installer) noteWriter(dir string) {
	now := time.Now()
	if in.confWar.lost && (dir == in.dirs.conf || dir == filepath.Dir(in.last.path)) {
		in.confWar.foreign(now)
	}
	if in.binWar.lost && slices.Contains(in.dirs.bins, dir) {
		in.binWar.foreign(now)
	}
}
