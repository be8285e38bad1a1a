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
	"strings"
	"time"

	"kmesh/install/place"
)

// ErrAttached: something still names the plugin, and the stub stays for it. Uninstalling again finishes it.
var ErrAttached = errors.New("the stub stays")

// Uninstall takes the plugin out of the chain, waits at most drain until nothing names it any more, and removes it. Until then a stub is in its place that
// passes every pod through. Everything is as before the installation afterwards.
func (in *Installer) Uninstall(ctx context.Context, drain time.Duration) error {
	dir := in.opts.Plugin.StateDir
	if !exists(statePath(dir)) {
		if found, err := in.adopt(ctx); err != nil || !found {
			return err
		}
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	defer func() { unlock() }()
	r, old, err := readRecord(dir)
	switch {
	case err != nil:
		return fmt.Errorf("state-dir: %w", err)
	case r.Owner != in.opts.Owner:
		return fmt.Errorf("owner: this node's installation is %q's, not %q's: it stays; say owner %q to remove it", r.Owner, in.opts.Owner, r.Owner)
	}
	if _, err := naming(in.opts.CacheDir); err != nil {
		return err
	}
	stub := filepath.Join(in.opts.Source, StubName)
	if _, err := in.sums.of(stub); err != nil {
		return fmt.Errorf("source: %w: set source to the folder with %s", err, StubName)
	}
	// From here on nobody puts anything back.
	r.Claim, r.Uninstalling = in.claim, true
	if _, err := r.write(in.opts.Disk, dir, old); err != nil {
		return err
	}
	for _, conf := range r.ConfDirs {
		if err := in.unchain(ctx, conf); err != nil {
			return err
		}
	}
	if err := in.putStub(stub, r); err != nil {
		return err
	}
	unlock() // an installation may come to take over
	unlock = func() {}
	drainErr := in.drain(ctx, drain)
	if unlock, err = lockDir(context.WithoutCancel(ctx), dir); err != nil {
		unlock = func() {}
		return fmt.Errorf("state-dir: %w", err)
	}
	now, data, err := readRecord(dir)
	if err != nil || now.Claim != in.claim {
		return errors.New("an installation has taken over in between: nothing more is removed")
	}
	if drainErr != nil {
		return drainErr
	}
	return in.clear(ctx, stub, now, data)
}

// adopt makes a record for a node that has none, of what is found there. It is false when nothing is.
func (in *Installer) adopt(ctx context.Context) (bool, error) {
	st, _ := in.ask(ctx)
	d, err := in.opts.directories(st)
	if err != nil {
		return false, err
	}
	changes, others, err := in.opts.Unchain(d.conf)
	switch {
	case err != nil:
		return false, err
	case len(others) > 0:
		return false, fmt.Errorf("owner: nothing on this node is %q's, but there is an entry in %s: it stays", in.opts.Owner, strings.Join(others, ", "))
	case len(changes) == 0:
		return false, nil
	}
	made, err := makeDir(in.opts.Plugin.StateDir, 0o700)
	if err != nil {
		return false, fmt.Errorf("state-dir: %w", err)
	}
	r := &record{Owner: in.opts.Owner, Installer: in.opts.Version, ConfDirs: []string{d.conf}, Binaries: []string{binaryPlace(d.bins)}, Made: made}
	_, err = r.write(in.opts.Disk, in.opts.Plugin.StateDir, nil)
	return true, err
}

// unchain takes the entries out of the configurations of a folder, and waits until the runtime has read that.
func (in *Installer) unchain(ctx context.Context, conf string) error {
	if !isDir(conf) {
		return fmt.Errorf("conf-dir: %s, where an entry was put, is not here: mount the node's folder at the same path, or make an empty one if it is gone", conf)
	}
	for attempt := range attempts {
		changes, _, err := in.opts.Unchain(conf)
		if err != nil {
			return err
		}
		// What would leave a network without any configuration is taken away last.
		for _, c := range changes {
			if err = c.Apply(in.opts.Disk); err != nil {
				break
			}
			in.opts.Log.Info("entry removed", "path", c.Path)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, place.ErrChanged) || attempt == attempts-1 {
			return remedied(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, in.opts.Timing.Confirm)
	defer cancel()
	for i := 0; ; i++ {
		if i%10 == 0 {
			if err := nudge(conf); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return remedied(err)
			}
		}
		// One that is down reads the files when it starts. One that has only not answered in time has not said that it no longer has the entry.
		switch st, err := in.ask(ctx); {
		case err != nil && ctx.Err() == nil && !unanswered(err):
			return nil
		case err == nil && (!st.Tells || !sameDir(st.ConfDir, conf) || !st.Names(in.opts.Owner)):
			return nil
		}
		if wait(ctx, in.opts.Timing.Poll) != nil {
			return fmt.Errorf("the runtime still has the entry in its network, although it is in no file of %s: restart the runtime, then uninstall again; the plugin stays until then", conf)
		}
	}
}

// putStub puts the stub in the plugin's place.
func (in *Installer) putStub(stub string, r *record) error {
	for _, path := range r.Binaries {
		if !isDir(filepath.Dir(path)) {
			return fmt.Errorf("bin-dir: %s, where the plugin was put, is not here: mount the node's folder at the same path, or make an empty one if it is gone", filepath.Dir(path))
		}
		if !exists(path) {
			continue
		}
		if _, err := putBinary(in.opts.Disk, in.sums, stub, path); err != nil {
			return err
		}
	}
	return nil
}

// drain waits until no cached attachment names the plugin, and for as long as an ADD may run that has read the configuration before.
func (in *Installer) drain(ctx context.Context, limit time.Duration) error {
	began := time.Now()
	var left []string
	for {
		var err error
		if left, err = naming(in.opts.CacheDir); err != nil {
			return err
		}
		passed := time.Since(began)
		switch {
		case len(left) == 0 && passed >= min(in.opts.Timing.Settle, limit):
			return nil
		case passed >= limit:
			return fmt.Errorf("%w: %d attachments made before still name the plugin after %s (%s): uninstall again when their pods are gone",
				ErrAttached, len(left), limit, strings.Join(left[:min(len(left), 3)], ", "))
		}
		if err := wait(ctx, in.opts.Timing.Poll); err != nil {
			return fmt.Errorf("%w: %w", ErrAttached, err)
		}
	}
}

// clear removes what is left: the stub, the record, and the directories that were made here.
func (in *Installer) clear(ctx context.Context, stub string, r *record, old []byte) error {
	swept := slices.Concat(r.ConfDirs, r.Made, []string{in.opts.Plugin.StateDir})
	for _, path := range r.Binaries {
		swept = append(swept, filepath.Dir(path))
		if !exists(path) {
			continue
		}
		same, err := in.sums.same(stub, path)
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("bin-dir: %s is not the stub that was put there: somebody else has put it there, and it stays", path)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("bin-dir: %w", err)
		}
	}
	for _, dir := range swept {
		if exists(dir) {
			if err := place.Sweep(dir); err != nil {
				return err
			}
		}
	}
	removeReady(in.opts.ReadyFile)
	dir := in.opts.Plugin.StateDir
	if err := in.opts.Disk.Remove(statePath(dir), old); err != nil {
		return fmt.Errorf("state-dir: %w", err)
	}
	// Not those that others have put something into.
	for _, made := range slices.Backward(r.Made) {
		_ = os.Remove(made)
	}
	in.report(ctx, false, ReasonUninstalled, "kmesh-cni is removed from this node")
	return nil
}
