// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"golang.org/x/sync/errgroup"

	"kmesh/helper/lastgood"
	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// retryOpen is the wait before a view that could not begin is opened again.
const retryOpen = 2 * time.Second

// view is one scope's source and what it has said.
type view struct {
	key    mesh.ScopeKey
	source xds.Source
	store  *snapshot.Store
	disk   *lastgood.Keeper // nil: nothing of it is kept
	load   bool
	all    *combiner
	names  *lookups

	// Of those that may close: stop ends run, done is closed when it has ended, failed is
	// why by itself.
	stop   context.CancelFunc
	done   chan struct{}
	failed error
	at     time.Time
}

// open makes a view.
func (m *Manager) open(key mesh.ScopeKey, source func() (xds.Source, error)) (*view, error) {
	v := &view{key: key, all: m.all, names: m.names}
	var err error
	if v.source, err = source(); err != nil {
		return nil, err
	}
	opts := m.opts.Store
	opts.Resolve = func(names []mesh.Lookup) {
		if known := m.names.want(key, names); len(known) > 0 {
			// The store is in a change of its own.
			go v.store.Resolved(known)
		}
	}
	v.store = snapshot.New(opts)
	if m.opts.KeepLastGood {
		v.load = !m.opts.Inherited // else the maps have what the disk has, or newer
		v.disk, err = lastgood.New(v.store, lastgood.Options{Dir: m.opts.StateDir, Name: m.fileOf(key), Shared: m.opts.Open != nil, Log: m.log})
	}
	return v, err
}

// fileOf names the file of a scope's last good configuration.
func (m *Manager) fileOf(key mesh.ScopeKey) string {
	if key == (mesh.ScopeKey{}) {
		return "default"
	}
	sum := sha256.Sum256([]byte(m.opts.Name(key)))
	return "scope-" + hex.EncodeToString(sum[:12])
}

// run follows the source until ctx ends.
func (v *view) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var consumer xds.Consumer = v.store
	if v.disk != nil {
		defer v.disk.Close()
		if v.load {
			v.disk.Load(ctx)
		}
		consumer = v.disk
	}
	g.Go(func() error { return v.source.Run(ctx, consumer) })
	g.Go(func() error {
		return v.store.Run(ctx, func(ctx context.Context, s *mesh.Snapshot) error { return v.all.set(ctx, v.key, s.Scopes[0]) })
	})
	return g.Wait()
}

// start runs a view that may close.
func (v *view) start(parent context.Context, ended func()) {
	ctx, stop := context.WithCancel(parent)
	v.stop, v.done = stop, make(chan struct{})
	go func() {
		defer ended()
		defer close(v.done)
		if err := v.run(ctx); err != nil && ctx.Err() == nil {
			v.failed, v.at = err, time.Now()
		}
	}()
}

// close ends a view, if it is one that may, and waits for that.
func (v *view) close() {
	if v.stop != nil {
		v.stop()
		<-v.done
	}
}

// ended says whether it has ended by itself, and why.
func (v *view) ended() error {
	if v.done == nil {
		return nil
	}
	select {
	case <-v.done:
		return v.failed
	default:
		return nil
	}
}

// keep opens the views that are needed, and closes the others if may.
func (m *Manager) keep(ctx context.Context, need map[mesh.ScopeKey]bool, may bool) {
	if why := m.opts.Refused(); why != "" && m.opts.Default != nil {
		need[mesh.ScopeKey{}] = true
	}
	m.mu.Lock()
	var closed []*view
	for key, v := range m.views {
		err := v.ended()
		if err != nil && time.Since(v.at) < retryOpen {
			continue // its last content stays
		}
		if err != nil || may && !need[key] {
			delete(m.views, key)
			closed = append(closed, v)
		}
	}
	m.mu.Unlock()
	for _, v := range closed {
		v.close()
		m.names.want(v.key, nil)
		switch {
		case need[v.key]:
		case v.key == (mesh.ScopeKey{}):
			m.all.put(v.key, mesh.Scope{})
		default:
			m.all.remove(v.key)
			m.log.Info("closed a scope", "scope", nameOf(v.key))
		}
	}
	for key := range need {
		m.mu.Lock()
		open := m.views[key] != nil
		m.mu.Unlock()
		if open {
			continue
		}
		source := m.opts.Default
		if key != (mesh.ScopeKey{}) {
			source = func() (xds.Source, error) { return m.opts.Open(key) }
		}
		v, err := m.open(key, source)
		if err != nil {
			m.log.Error("a scope cannot be opened, trying again", "scope", nameOf(key), "err", err)
			continue
		}
		m.log.Info("opened a scope", "scope", nameOf(key))
		m.mu.Lock()
		m.views[key] = v
		m.mu.Unlock()
		v.start(ctx, m.Poke)
	}
}
