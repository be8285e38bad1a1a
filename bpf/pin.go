// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/cilium/ebpf"
)

// pinProgram pins p as a hook's program, in place of another one, and keeps a
// pinned one that is the same (kernel's tag), so that restarts change nothing.
func (r *Runtime) pinProgram(hook string, p *ebpf.Program) error {
	path := ProgPath(r.BPFFS, hook)
	old, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Close()
		return fmt.Errorf("program %s: %w", hook, err)
	}
	if err == nil {
		same, err := r.sameProgram(old, p)
		if err != nil {
			return errors.Join(fmt.Errorf("program %s: %w", hook, err), old.Close(), p.Close())
		}
		if same {
			p.Close()
			r.progs[hook] = old
			return nil
		}
		old.Close()
		r.Replaced = append(r.Replaced, hook)
	}
	r.progs[hook] = p
	// Pinned aside, then renamed: the plugin never finds the hook without one.
	next := path + "_next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("program %s: %w", hook, err)
	}
	if err := p.Pin(next); err != nil {
		return fmt.Errorf("program %s: %w", hook, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("program %s: %w", hook, err)
	}
	return nil
}

// sameProgram compares code and pinned maps. The kernel's tag leaves maps out, and a
// program of maps that were unpinned is another; scratch is every load's own.
func (r *Runtime) sameProgram(a, b *ebpf.Program) (bool, error) {
	ai, err := a.Info()
	if err != nil {
		return false, err
	}
	bi, err := b.Info()
	if err != nil {
		return false, err
	}
	if ai.Tag != bi.Tag {
		return false, nil
	}
	pinned := make(map[ebpf.MapID]bool, len(r.maps))
	for _, m := range r.maps {
		info, err := m.Info()
		if err != nil {
			return false, err
		}
		if id, ok := info.ID(); ok {
			pinned[id] = true
		}
	}
	used := func(info *ebpf.ProgramInfo) []ebpf.MapID {
		ids, _ := info.MapIDs()
		ids = slices.DeleteFunc(ids, func(id ebpf.MapID) bool { return !pinned[id] })
		slices.Sort(ids)
		return ids
	}
	return slices.Equal(used(ai), used(bi)), nil
}

// Programs returns every program that is loaded: those of the hooks, and the iterators.
func (r *Runtime) Programs() map[string]*ebpf.Program { return maps.Clone(r.progs) }
