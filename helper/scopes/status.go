// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"maps"
	"slices"

	"kmesh/helper/lastgood"
	"kmesh/helper/mesh"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// Status is how the views are.
type Status struct {
	// Default is the default scope's view; nil while there is none, since each pod has its
	// own scope or the workload API's.
	Default *ScopeStatus
	// Scopes are the others, sorted.
	Scopes []ScopeStatus
	// Holding says why there is no first snapshot yet.
	Holding string
	// Refused says why the control plane gives no views for pods.
	Refused string
	// Shared is the number of scopes above the cap, Most.
	Shared, Most int
}

// ScopeStatus is how one view is.
type ScopeStatus struct {
	Key mesh.ScopeKey
	// Name is the scope's name in the maps and in metrics.
	Name string
	// Pods get it.
	Pods int
	// Live: it is in the maps.
	Live   bool
	Xds    xds.Status
	Config snapshot.Status
	// Disk is what is kept of it; nil if nothing is.
	Disk *lastgood.Status
	// LeftOut are announced services that it does not have as they are.
	LeftOut []mesh.Verdict
	// Problem is why it is not followed; empty if it is.
	Problem string
}

// Resourceful is a source that tells of every resource.
type Resourceful interface {
	Resources() []xds.ResourceState
}

// Resources are those of a scope, as a server has answered for them; nil for another
// source, or if there is no such scope.
func (m *Manager) Resources(key mesh.ScopeKey) []xds.ResourceState {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.views[key]; v != nil {
		if r, ok := v.source.(Resourceful); ok {
			return r.Resources()
		}
	}
	return nil
}

// Status tells how the views are.
func (m *Manager) Status() Status {
	m.mu.Lock()
	views := maps.Clone(m.views)
	pods := maps.Clone(m.pods)
	out := Status{Shared: m.shared, Most: m.opts.Most}
	m.mu.Unlock()
	out.Holding, out.Refused = m.all.held(), m.opts.Refused()
	for _, key := range slices.SortedFunc(maps.Keys(views), compare) {
		v := views[key]
		s := ScopeStatus{
			Key: key, Name: m.opts.Name(key), Pods: pods[key], Live: m.all.has(key),
			Xds: v.source.Status(), Config: v.store.Status(), LeftOut: m.all.leftOut(key),
		}
		if v.disk != nil {
			d := v.disk.Status()
			s.Disk = &d
		}
		if err := v.ended(); err != nil {
			s.Problem = err.Error()
		}
		if key == (mesh.ScopeKey{}) {
			out.Default = &s
		} else {
			out.Scopes = append(out.Scopes, s)
		}
	}
	// The view says it more precisely.
	if out.Default != nil && len(out.Scopes) == 0 && out.Default.Config.Holding != "" {
		out.Holding = out.Default.Config.Holding
	}
	return out
}
