// SPDX-License-Identifier: Apache-2.0

// Package snapshot turns the resources that sources deliver into snapshots of the
// mesh.
//
// The invariant: every snapshot is closed under references, and nothing that was
// served stops being served because of an error. A resource that is invalid, or
// that refers to something missing, keeps its last good version; a listener that
// is new waits until every cluster it names has its endpoints.
package snapshot

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"
)

// Options configure a store.
type Options struct {
	// Gather is how long changes that follow a first one are gathered; 50 ms if
	// zero.
	Gather time.Duration
	// HoldFirst is how long the first snapshot waits for problems to go away (a
	// cluster that is missing, a resource that is invalid). Give it when an
	// earlier run's state is serving: the first snapshot takes away what it does
	// not have. Zero: not at all; negative: as long as it takes.
	HoldFirst time.Duration
	// RefuseActions refuses what would be served without an action that cannot be
	// enforced.
	RefuseActions bool
	// Resolve takes the names of all DNS clusters whenever they are others than before;
	// what is found about them comes back by Resolved. It must not wait. Nil: names are
	// not resolved, and endpoints that are names are left out.
	Resolve func([]mesh.Lookup)
	// Shelf is shared by the stores of several views. Nil: the store has its own, on which
	// only virtual hosts are, for nobody else has the rest.
	Shelf  *Shelf
	Logger *slog.Logger
}

// Store keeps resources and builds snapshots. It is an xds.Consumer.
type Store struct {
	opts  Options
	log   *slog.Logger
	shelf *Shelf
	// changed has room for one: something has changed since the last build.
	changed chan struct{}

	mu          sync.Mutex
	listeners   table[*envoy.Listener]
	clusters    table[*envoy.Cluster]
	assignments table[*envoy.Assignment]
	routes      table[*envoy.RouteConfig]
	names       names
	// wantedNames is what wanted has found, until clusters change.
	wantedNames []string
	// absent are wanted assignments that the source does not have; absentRoutes
	// are the same of RouteConfigurations.
	absent, absentRoutes map[string]bool
	seen                 map[string]bool // types that have been heard of
	whole                map[string]bool // types whose updates are complete

	build builder
	hold  hold
	dirty dirty

	version      uint64
	published    uint64
	publishError string
}

var _ xds.Consumer = (*Store)(nil)

// New makes an empty store.
func New(opts Options) *Store {
	if opts.Gather <= 0 {
		opts.Gather = 50 * time.Millisecond
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	own := opts.Shelf
	if own == nil {
		own = &Shelf{}
	}
	return &Store{
		opts:         opts,
		log:          opts.Logger,
		shelf:        own,
		changed:      make(chan struct{}, 1),
		listeners:    table[*envoy.Listener]{},
		clusters:     table[*envoy.Cluster]{},
		assignments:  table[*envoy.Assignment]{},
		routes:       table[*envoy.RouteConfig]{},
		names:        names{answers: map[mesh.Lookup]*mesh.Answer{}},
		absent:       map[string]bool{},
		absentRoutes: map[string]bool{},
		seen:         map[string]bool{},
		whole:        map[string]bool{},
	}
}

// order is the one in which types depend on each other.
var order = []string{xds.ClusterType, xds.AssignmentType, xds.ListenerType, xds.RouteType}

// Apply implements xds.Consumer.
func (s *Store) Apply(_ context.Context, updates ...xds.Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bad xds.Rejected
	for _, typeURL := range order {
		for _, u := range updates {
			if u.Type != typeURL {
				continue
			}
			s.seen[u.Type] = true
			s.whole[u.Type] = u.Complete
			present := map[string]bool{}
			for _, r := range u.Resources {
				present[r.Name] = true
				bad = append(bad, s.put(u.Type, r)...)
			}
			if u.Complete {
				s.remove(u.Type, present)
			}
			s.takeOut(u.Type, u.Removed)
			switch u.Type {
			case xds.ClusterType:
				s.forget()
				s.watchNames()
			case xds.ListenerType:
				s.forgetRoutes()
			}
		}
	}
	s.poke()
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// put takes one resource of any type in.
func (s *Store) put(typeURL string, r xds.Resource) (bad []mesh.Verdict) {
	changed, refuse := false, s.opts.RefuseActions
	switch typeURL {
	case xds.ListenerType:
		bad, changed = s.listeners.put(r, refuse, shared(s, &s.shelf.listeners), func() (*envoy.Listener, []mesh.Verdict) {
			l := envoy.TranslateListener(r.Message.(*listenerv3.Listener), r.Source)
			if refuse {
				l.Refuse()
			}
			return l, take(&l.Verdicts)
		})
		if l, ok := r.Message.(*listenerv3.Listener); ok {
			s.listeners[r.Name].needs = envoy.RouteConfigNames(l)
		}
	case xds.ClusterType:
		bad, changed = s.clusters.put(r, refuse, shared(s, &s.shelf.clusters), func() (*envoy.Cluster, []mesh.Verdict) {
			c := envoy.TranslateCluster(r.Message.(*clusterv3.Cluster), r.Source)
			if refuse {
				c.Refuse()
			}
			return c, take(&c.Verdicts)
		})
		if c, ok := r.Message.(*clusterv3.Cluster); ok {
			asks := envoy.AssignmentName(c)
			changed = changed || s.clusters[r.Name].asks != asks
			s.clusters[r.Name].asks = asks
		}
		if changed {
			s.clustersChanged()
		}
	case xds.AssignmentType:
		if !s.whole[typeURL] && !s.wants(r.Name) {
			return nil // answers that come after the cluster has gone
		}
		if s.absent[r.Name] {
			delete(s.absent, r.Name)
			s.dirty.remake()
		}
		bad, changed = s.assignments.put(r, refuse, shared(s, &s.shelf.assignments), func() (*envoy.Assignment, []mesh.Verdict) {
			a := envoy.TranslateAssignment(r.Message.(*endpointv3.ClusterLoadAssignment), r.Source)
			return a, take(&a.Verdicts)
		})
		if changed {
			s.dirty.assignments = append(s.dirty.assignments, r.Name)
		}
		return bad
	case xds.RouteType:
		if !s.whole[typeURL] && !s.wantsRoutes(r.Name) {
			return nil // answers that come after the listener has gone
		}
		if s.absentRoutes[r.Name] {
			delete(s.absentRoutes, r.Name)
			s.dirty.all = true
		}
		bad, changed = s.routes.put(r, refuse, nil, func() (*envoy.RouteConfig, []mesh.Verdict) {
			rc, err := s.translateRoutes(r)
			if err != nil {
				return &envoy.RouteConfig{Name: r.Name}, []mesh.Verdict{r.Verdict("", err.Error())}
			}
			if refuse {
				rc.Refuse()
			}
			return rc, take(&rc.Verdicts)
		})
	}
	s.dirty.all = s.dirty.all || changed
	return bad
}

// take takes verdicts out of a translation: they are kept otherwise.
func take(verdicts *[]mesh.Verdict) []mesh.Verdict {
	v := *verdicts
	*verdicts = nil
	return v
}

// remove takes out what a complete update does not have. An assignment stays as
// long as a cluster wants it.
func (s *Store) remove(typeURL string, present map[string]bool) {
	switch typeURL {
	case xds.ListenerType:
		s.dirty.all = drop(s.listeners, present) || s.dirty.all
	case xds.ClusterType:
		if drop(s.clusters, present) {
			s.clustersChanged()
		}
	case xds.RouteType:
		s.dirty.all = drop(s.routes, present) || s.dirty.all
	case xds.AssignmentType:
		for name, e := range s.assignments {
			if !present[name] {
				e.gone = true
			}
		}
		s.forget()
	}
}

// takeOut takes out what the source says it has no longer. An assignment stays as long
// as a cluster wants it.
func (s *Store) takeOut(typeURL string, names []string) {
	for _, name := range names {
		switch typeURL {
		case xds.ListenerType:
			s.dirty.all = without(s.listeners, name) || s.dirty.all
		case xds.ClusterType:
			if without(s.clusters, name) {
				s.clustersChanged()
			}
		case xds.RouteType:
			s.dirty.all = without(s.routes, name) || s.dirty.all
		case xds.AssignmentType:
			if e := s.assignments[name]; e != nil {
				e.gone = true
			}
		}
	}
	if typeURL == xds.AssignmentType && len(names) > 0 {
		s.forget()
	}
}

// clustersChanged forgets what was made of all clusters.
func (s *Store) clustersChanged() {
	s.wantedNames = nil
	s.dirty.remake()
}

// forget drops assignments that no cluster wants any more.
func (s *Store) forget() {
	wanted := map[string]bool{}
	for _, name := range s.wanted() {
		wanted[name] = true
	}
	maps.DeleteFunc(s.assignments, func(name string, e *entry[*envoy.Assignment]) bool {
		return !wanted[name] && (e.gone || !s.whole[xds.AssignmentType])
	})
	maps.DeleteFunc(s.absent, func(name string, _ bool) bool { return !wanted[name] })
}

// wanted returns the names of the assignments of all clusters, sorted. They are looked at
// after every response, and seldom change: the same ones are the same slice.
func (s *Store) wanted() []string {
	if s.wantedNames != nil {
		return s.wantedNames
	}
	names := make([]string, 0, len(s.clusters))
	for _, e := range s.clusters {
		if e.asks != "" {
			names = append(names, e.asks)
		}
		if e.hasGood && e.good.Assignment != "" && e.good.Assignment != e.asks {
			names = append(names, e.good.Assignment)
		}
	}
	slices.Sort(names)
	s.wantedNames = slices.Clip(slices.Compact(names))
	return s.wantedNames
}

// dirty is what has changed since the last build. Endpoints change far more often
// than the rest, so they have a short way.
type dirty struct {
	all bool
	// merge: clusters, or what they get their endpoints from, have changed by more than
	// the following say.
	merge       bool
	assignments []string
	lookups     []mesh.Lookup
}

// remake has all of the snapshot made again, and the clusters too.
func (d *dirty) remake() { d.all, d.merge = true, true }

// wants tells whether a cluster takes its endpoints from this assignment.
func (s *Store) wants(name string) bool {
	_, found := slices.BinarySearch(s.wanted(), name)
	return found
}

// Wanted implements xds.Consumer.
func (s *Store) Wanted(typeURL string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch typeURL {
	case xds.AssignmentType:
		return s.wanted()
	case xds.RouteType:
		return s.wantedRoutes()
	}
	return nil
}

// Absent implements xds.Consumer.
func (s *Store) Absent(typeURL string, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		switch {
		case typeURL == xds.AssignmentType && s.assignments[name] != nil:
			s.assignments[name].gone = true // its last good version stays
		case typeURL == xds.AssignmentType && s.wants(name):
			s.absent[name] = true
			s.dirty.remake()
		case typeURL == xds.RouteType && s.routes[name] == nil && s.wantsRoutes(name):
			s.absentRoutes[name] = true
			s.dirty.all = true
		}
	}
	s.poke()
}

// poke tells Run that something has changed.
func (s *Store) poke() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
