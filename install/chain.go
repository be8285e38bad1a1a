// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"kmesh/cni/entry"
	"kmesh/install/conflist"
	"kmesh/install/place"
)

// Change is one file to write. Old is what it replaces, nil for a new file; Fresh is what it will be, nil to remove it.
type Change struct {
	Path       string
	Old, Fresh []byte
}

// Apply makes the change, or none.
func (c Change) Apply(disk place.Disk) error {
	switch {
	case c.Old == nil:
		return disk.Create(c.Path, c.Fresh, 0o644)
	case c.Fresh == nil:
		return disk.Remove(c.Path, c.Old)
	}
	return disk.Replace(c.Path, c.Old, c.Fresh)
}

// Undone is the change that takes it back.
func (c Change) Undone() Change { return Change{c.Path, c.Fresh, c.Old} }

// placement is how the plugin is to be in the chain.
type placement struct {
	mode    Mode
	network string
	entry   []byte
	primary string
	path    string // the file with the entry
	changes []Change
}

// main is the change of the file with the entry; the others only clear up.
func (pl *placement) main() (Change, bool) {
	i := slices.IndexFunc(pl.changes, func(c Change) bool { return c.Path == pl.path })
	if i < 0 {
		return Change{}, false
	}
	return pl.changes[i], true
}

// errDropIn: the network cannot have a drop-in.
var errDropIn = errors.New("mode is drop-in")

// plan says what has to be written in a folder of configurations so that the plugin is in the chain of its network exactly once. It writes nothing.
func (o *Options) plan(dir string, mode Mode) (*placement, error) {
	p, ours, err := findPrimary(dir)
	if err != nil {
		// What was made of a single configuration that is gone must not live on: it is a network that nobody wants any more.
		if errors.Is(err, errNoPrimary) && len(ours) > 0 {
			return &placement{changes: removals(ours)}, nil
		}
		return nil, err
	}
	if err := p.conf.Speaks(entry.Versions()); err != nil {
		return nil, fmt.Errorf("the network's configuration %s cannot have kmesh-cni in its chain: %w", p.path, err)
	}
	drops, err := dropIns(dir)
	if err != nil {
		return nil, err
	}
	pl := &placement{mode: mode, network: p.conf.Name, primary: p.path, entry: o.entry("")}
	switch {
	case p.conf.Kind == conflist.Single:
		err = o.planOwn(pl, p, ours, drops)
	case mode == DropIn:
		err = planDropIn(pl, p, dir, ours, drops)
	default:
		err = planInPlace(pl, p, ours, drops)
	}
	return pl, err
}

// planOwn makes a list of ours of a single configuration.
func (o *Options) planOwn(pl *placement, p *primary, ours, drops []own) error {
	pl.mode, pl.path = InPlace, ownPath(p.path)
	pl.entry = o.entry(filepath.Base(p.path))
	fresh, err := p.conf.Chained(pl.entry)
	if err != nil {
		return fmt.Errorf("making a chain of %s: %w", p.path, err)
	}
	var old []byte
	if i := slices.IndexFunc(ours, func(f own) bool { return f.path == pl.path }); i >= 0 {
		old = ours[i].data
		ours = slices.Delete(ours, i, i+1)
	}
	pl.changes = removals(drops)
	if !bytes.Equal(old, fresh) {
		pl.changes = append(pl.changes, Change{pl.path, old, fresh})
	}
	pl.changes = append(pl.changes, removals(ours)...)
	return nil
}

// planDropIn leaves the primary's file alone.
func planDropIn(pl *placement, p *primary, dir string, ours, drops []own) error {
	path, ok := dropInPath(dir, p.conf.Name)
	switch {
	case !ok:
		return fmt.Errorf("%w, and the network's name %q cannot be that of a folder: use mode in-place", errDropIn, p.conf.Name)
	case exists(filepath.Dir(path)) && !isDir(filepath.Dir(path)):
		return fmt.Errorf("%w, and %s is no folder: remove it, or use mode in-place", errDropIn, filepath.Dir(path))
	case p.conf.LoadOnlyInlined:
		return fmt.Errorf("%w, and %s sets loadOnlyInlinedPlugins: use mode in-place", errDropIn, p.path)
	}
	pl.path = path
	// Never twice in one chain: what is inline goes first.
	clean, err := p.conf.Without(entry.Type)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if !bytes.Equal(clean, p.conf.Bytes()) {
		pl.changes = append(pl.changes, Change{p.path, p.conf.Bytes(), clean})
	}
	var b bytes.Buffer
	if err := json.Indent(&b, pl.entry, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	old, _, err := place.Read(path, conflist.MaxSize)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		old = nil
	}
	if !bytes.Equal(old, b.Bytes()) {
		pl.changes = append(pl.changes, Change{path, old, b.Bytes()})
	}
	stale := slices.DeleteFunc(drops, func(f own) bool { return f.path == path })
	pl.changes = append(pl.changes, removals(append(ours, stale...))...)
	return nil
}

// planInPlace edits the primary's list.
func planInPlace(pl *placement, p *primary, ours, drops []own) error {
	pl.mode, pl.path = InPlace, p.path
	fresh, err := p.conf.With(pl.entry)
	if err != nil {
		return fmt.Errorf("editing %s: %w", p.path, err)
	}
	pl.changes = removals(drops)
	if !bytes.Equal(fresh, p.conf.Bytes()) {
		pl.changes = append(pl.changes, Change{p.path, p.conf.Bytes(), fresh})
	}
	pl.changes = append(pl.changes, removals(ours)...)
	return nil
}

func removals(files []own) []Change {
	var out []Change
	for _, f := range files {
		out = append(out, Change{f.path, f.data, nil})
	}
	return out
}

// Chain is what an installation would write into a folder of configurations, in order; nothing is written. The network's primary is the first file by
// name, as it is for a runtime.
func (o *Options) Chain(confDir string, mode Mode) ([]Change, error) {
	pl, err := o.plan(confDir, mode)
	if err != nil {
		return nil, err
	}
	return pl.changes, nil
}

// Unchain is what takes every entry of the owner out of a folder again, and the files of those of other owners that are left.
func (o *Options) Unchain(confDir string) (changes []Change, others []string, err error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(confDir), "*.conflist"))
	if err != nil {
		return nil, nil, err
	}
	for _, path := range paths {
		data, _, err := place.Read(path, conflist.MaxSize)
		if err != nil {
			continue // what cannot be read was not written by us
		}
		conf, err := conflist.ParseList(data)
		if err != nil {
			if bytes.Contains(data, []byte(entry.Type)) {
				return nil, nil, fmt.Errorf("%s names %s, but cannot be edited: %w: correct it, or take the entry out", path, entry.Type, err)
			}
			continue
		}
		stamp := stampIn(conf)
		switch {
		case stamp == nil && len(conf.Find(entry.Type)) > 0:
			others = append(others, path+" (put there by hand)")
			continue
		case stamp == nil:
			continue
		case stamp.Owner != o.Owner:
			others = append(others, fmt.Sprintf("%s (owner %q)", path, stamp.Owner))
			continue
		}
		if f, ok := readOwn(path); ok {
			changes = append(changes, Change{path, f.data, nil})
			continue
		}
		fresh, err := conf.Without(entry.Type)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w: put a primary plugin before kmesh-cni, or remove the file", path, err)
		}
		changes = append(changes, Change{path, data, fresh})
	}
	drops, err := dropIns(confDir)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range drops {
		if stamp, err := entry.StampOf(f.data); err == nil && stamp.Owner != o.Owner {
			others = append(others, fmt.Sprintf("%s (owner %q)", f.path, stamp.Owner))
			continue
		}
		changes = append(changes, Change{f.path, f.data, nil})
	}
	return changes, others, nil
}
