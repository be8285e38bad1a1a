// SPDX-License-Identifier: Apache-2.0

// Package scopes keeps the views of the mesh that the pods of this node need. A control
// plane answers each client for its namespace, its labels and its service account (the
// scope), so there is one view for each of these that a pod of the node has: opened when
// the first such pod is to be governed, closed with the last. Where the source answers
// everybody alike (a directory, a plain xDS server), the default scope is the only one.
//
// What a view says by Envoy's types is joined with the services that the workload API
// announces (snapshot.Merge has the precedence); a pod that has no scope of its own yet,
// or cannot have one, gets the default scope, which is then the workload API's.
//
// The invariants: a pod gets a scope only when that is in the maps whole, and a scope that
// a pod has stays in them; so the first snapshot after a restart waits until each scope
// that a pod has is known again, and until then what is pinned serves on.
package scopes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kmesh/helper/lastgood"
	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// DefaultMost is the cap on scopes: each costs the control plane what a sidecar does.
const DefaultMost = 64

// gather is how long changes among the pods are gathered, resync the time between two
// looks without one.
const (
	gather = 20 * time.Millisecond
	resync = 10 * time.Second
)

// Options of a Manager.
type Options struct {
	// Default makes the source of the default scope. With Open it is only used while
	// Refused says why there can be no other scopes.
	Default func() (xds.Source, error)
	// Open makes the source of another scope. Nil: the default one is the only one.
	Open func(mesh.ScopeKey) (xds.Source, error)
	// Refused says why the control plane gives this node no views for its pods; "" if it
	// does, or nobody has asked yet.
	Refused func() string
	// Accounts is told the service accounts of the pods, by namespace, before a scope of
	// them is opened.
	Accounts func(map[string][]string)
	// Most is the cap on scopes; DefaultMost if zero.
	Most int
	// Announced is the workload API's state; false before the first. Nil: there is no
	// such API.
	Announced func() (*snapshot.Announced, bool)

	// Pods lists the pods; false: it cannot be said which there are.
	Pods func(context.Context) ([]Pod, bool)
	// Heard says whether the API server has spoken: before, there may be more pods than Pods
	// lists, whose scopes are not to be forgotten. Nil: it always has.
	Heard func() bool
	// Installed are the scopes in the maps: ids by name. Name is a scope's name there.
	Installed func() map[string]uint32
	Name      func(mesh.ScopeKey) string
	// Assign gives the pod of a network namespace a scope.
	Assign func(space uint64, scope uint32) error
	// Publish brings a snapshot into the maps.
	Publish func(context.Context, *mesh.Snapshot) error
	// Inherited: an earlier run's maps serve.
	Inherited bool

	// Store are the options of each view's store; Resolve is replaced.
	Store snapshot.Options
	// Resolve takes the names that all views want resolved.
	Resolve func([]mesh.Lookup)
	// StateDir is for what survives a reboot. KeepLastGood: what sources have said does;
	// Others are the files there that are not of scopes.
	StateDir     string
	KeepLastGood bool
	Others       []string
	Log          *slog.Logger
}

// Manager keeps the views.
type Manager struct {
	opts  Options
	log   *slog.Logger
	wake  chan struct{}
	names *lookups
	all   *combiner

	mu     sync.Mutex
	views  map[mesh.ScopeKey]*view
	saved  []mesh.ScopeKey // as on disk
	gets   map[mesh.ScopeKey]mesh.ScopeKey
	pods   map[mesh.ScopeKey]int // by the scope that they get
	shared int                   // scopes above the cap
	inUse  map[mesh.ScopeKey]bool
	// unknown says why it is not known which scopes pods have; "" if it is.
	unknown string
}

// New makes a manager.
func New(opts Options) *Manager {
	if opts.Most <= 0 {
		opts.Most = DefaultMost
	}
	if opts.Refused == nil {
		opts.Refused = func() string { return "" }
	}
	if opts.Heard == nil {
		opts.Heard = func() bool { return true }
	}
	if opts.Accounts == nil {
		opts.Accounts = func(map[string][]string) {}
	}
	if opts.Open != nil && opts.Store.Shelf == nil {
		opts.Store.Shelf = &snapshot.Shelf{} // what is equal in several views is held once
	}
	m := &Manager{
		opts: opts, log: opts.Log, wake: make(chan struct{}, 1), names: newLookups(opts.Resolve),
		views: make(map[mesh.ScopeKey]*view), unknown: "the pods have not been looked at yet",
	}
	m.all = newCombiner(opts.Publish, opts.Announced, m.missing, opts.Log)
	return m
}

// Poke tells that pods, or what may be asked of the control plane, have changed.
func (m *Manager) Poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Heard tells that the workload API's state has changed.
func (m *Manager) Heard() { m.all.poke() }

// Resolved takes in what was found about names.
func (m *Manager) Resolved(answers map[mesh.Lookup]mesh.Answer) {
	m.names.resolved(answers)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.views {
		v.store.Resolved(answers)
	}
}

// Run keeps the views until ctx ends. An error says that the default scope's source cannot
// begin.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if m.opts.Open == nil {
		v, err := m.open(mesh.ScopeKey{}, m.opts.Default)
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.views[v.key] = v
		m.mu.Unlock()
		g.Go(func() error { return v.run(ctx) })
	} else {
		m.all.put(mesh.ScopeKey{}, mesh.Scope{})
		m.load()
	}
	g.Go(func() error { m.all.run(ctx, m.Poke); return nil })
	g.Go(func() error { m.follow(ctx); return nil })
	err := g.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.views {
		v.close()
	}
	return err
}

// load reads which scopes there were.
func (m *Manager) load() {
	keys, err := loadKeys(m.opts.StateDir)
	if err != nil {
		m.log.Error("it is not known from before what scopes pods have; those whose pods the API server knows are opened", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved = keys
}

// follow compares the views with the pods whenever something has changed.
func (m *Manager) follow(ctx context.Context) {
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for {
		m.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.wake:
			select { // what follows now is gathered
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		}
	}
}

// round opens, assigns and closes.
func (m *Manager) round(ctx context.Context) {
	heard := m.opts.Heard() // before: what is listed is no older
	pods, ok := m.opts.Pods(ctx)
	if !ok {
		return
	}
	if m.opts.Open == nil {
		m.assign(pods, func(mesh.ScopeKey) mesh.ScopeKey { return mesh.ScopeKey{} })
		m.seen(nil, "")
		return
	}
	has, _ := m.used(pods)
	m.opts.Accounts(accounts(pods, has))
	wanted := make(map[mesh.ScopeKey]bool)
	for _, p := range pods {
		if !p.Unknown {
			wanted[p.Scope] = true
		}
	}
	m.mu.Lock()
	gets, shared := limit(wanted, func(k mesh.ScopeKey) bool { return m.views[k] != nil }, m.opts.Most)
	if shared != m.shared && shared > 0 {
		m.log.Warn("more scopes are wanted than may be open: their pods share one scope for each namespace, without labels and service account", "wanted", len(wanted), "most", m.opts.Most)
	}
	m.gets, m.shared = gets, shared
	m.mu.Unlock()
	m.assign(pods, func(k mesh.ScopeKey) mesh.ScopeKey { return gets[k] })
	inUse, unknown := m.used(pods)
	need := maps.Clone(inUse)
	for _, k := range gets {
		need[k] = true
	}
	m.seen(inUse, unknown)
	whole := heard && unknown == ""
	m.keep(ctx, need, whole)
	m.save(need, whole)
	m.count(pods, gets)
	m.all.poke()
}

// accounts are the service accounts of pods by namespace: of those that they ask for scopes
// with, and of the scopes that they have, which is all that is known of a pod before the API
// server has spoken.
func accounts(pods []Pod, has map[mesh.ScopeKey]bool) map[string][]string {
	out := make(map[string][]string)
	add := func(k mesh.ScopeKey) {
		if k.ServiceAccount != "" && !slices.Contains(out[k.Namespace], k.ServiceAccount) {
			out[k.Namespace] = append(out[k.Namespace], k.ServiceAccount)
		}
	}
	for _, p := range pods {
		if p.Unknown {
			for k := range has {
				add(k)
			}
			continue
		}
		add(p.Scope)
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out
}

// assign gives pods the scopes that they are to have, as far as those are in the maps. What
// it has given is in pods afterwards.
func (m *Manager) assign(pods []Pod, gets func(mesh.ScopeKey) mesh.ScopeKey) {
	ids := m.opts.Installed()
	for _, p := range pods {
		if p.Unknown && m.opts.Open != nil {
			continue
		}
		key := gets(p.Scope)
		id := uint32(0)
		if key != (mesh.ScopeKey{}) {
			var ok bool
			if id, ok = ids[m.opts.Name(key)]; !ok || !m.all.has(key) {
				continue
			}
		}
		for space, now := range p.Spaces {
			if now == id {
				continue
			}
			if err := m.opts.Assign(space, id); err != nil {
				m.log.Error("the pod keeps the scope that it has, trying again", "pod", p.Name, "namespace", p.Namespace, "scope", nameOf(key), "err", err)
				continue
			}
			p.Spaces[space] = id
			m.log.Info("the pod has its scope", "pod", p.Name, "namespace", p.Namespace, "scope", nameOf(key))
		}
	}
}

// used returns the scopes that pods have in the maps, and why that is not wholly known.
func (m *Manager) used(pods []Pod) (inUse map[mesh.ScopeKey]bool, unknown string) {
	keys := make(map[uint32]mesh.ScopeKey)
	ids := m.opts.Installed()
	m.mu.Lock()
	known := append(slices.Collect(maps.Keys(m.views)), m.saved...)
	for _, k := range m.gets {
		known = append(known, k)
	}
	m.mu.Unlock()
	for _, k := range known {
		if id, ok := ids[m.opts.Name(k)]; ok && k != (mesh.ScopeKey{}) {
			keys[id] = k
		}
	}
	inUse = make(map[mesh.ScopeKey]bool)
	for _, p := range pods {
		for _, id := range p.Spaces {
			if k, ok := keys[id]; ok {
				inUse[k] = true
			} else if id != 0 && unknown == "" {
				unknown = fmt.Sprintf("pod %s/%s has scope %d, of which it is not known whose it is: the API server will say", p.Namespace, p.Name, id)
			}
		}
	}
	return inUse, unknown
}

// seen records what the first snapshot must have.
func (m *Manager) seen(inUse map[mesh.ScopeKey]bool, unknown string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inUse, m.unknown = inUse, unknown
}

// missing says what the first snapshot waits for. Where nothing serves yet, the default
// scope is enough.
func (m *Manager) missing(have map[mesh.ScopeKey]bool) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !have[mesh.ScopeKey{}]:
		return "the default scope has no configuration yet"
	case !m.opts.Inherited || m.opts.Open == nil:
		return ""
	case m.unknown != "":
		return m.unknown
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.inUse), compare) {
		if !have[k] {
			return nameOf(k) + ", which pods have, has no configuration yet"
		}
	}
	return ""
}

// save writes which scopes there are, if that is another set than before.
func (m *Manager) save(need map[mesh.ScopeKey]bool, whole bool) {
	m.mu.Lock()
	keys := slices.Collect(maps.Keys(need))
	if !whole { // what is not understood is not forgotten
		keys = append(keys, m.saved...)
	}
	slices.SortFunc(keys, compare)
	keys = slices.Compact(keys)
	same := slices.Equal(keys, m.saved)
	m.mu.Unlock()
	if same {
		return
	}
	if err := saveKeys(m.opts.StateDir, keys); err != nil {
		m.log.Error("which scopes are open is not on disk: a restart without the API server would wait for it", "err", err)
		return
	}
	m.mu.Lock()
	m.saved = keys
	m.mu.Unlock()
	m.sweep(keys)
}

// sweep removes what is on disk of other scopes.
func (m *Manager) sweep(keys []mesh.ScopeKey) {
	if !m.opts.KeepLastGood {
		return
	}
	keep := append([]string{m.fileOf(mesh.ScopeKey{})}, m.opts.Others...)
	for _, k := range keys {
		keep = append(keep, m.fileOf(k))
	}
	if err := lastgood.Sweep(m.opts.StateDir, keep); err != nil {
		m.log.Error("what scopes that are closed had stays on disk", "err", err)
	}
}

// count records how many pods get which scope.
func (m *Manager) count(pods []Pod, gets map[mesh.ScopeKey]mesh.ScopeKey) {
	n := make(map[mesh.ScopeKey]int)
	for _, p := range pods {
		if !p.Unknown && len(p.Spaces) > 0 {
			n[gets[p.Scope]]++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods = n
}
