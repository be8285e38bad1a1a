// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"weak"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"kmesh/helper/mesh"
	"kmesh/helper/shelf"
	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"
)

// Shelf has what resources were translated to. Stores that share one translate what is
// equal in several views once, and hold it once; what no store holds any more is gone.
type Shelf struct {
	listeners   shelf.Shelf[content, made[*envoy.Listener]]
	clusters    shelf.Shelf[content, made[*envoy.Cluster]]
	assignments shelf.Shelf[content, made[*envoy.Assignment]]
	hosts       shelf.Shelf[hostContent, envoy.Host]
	// joined are clusters with the endpoints of their assignments.
	joined shelf.Shelf[pair, mesh.Cluster]
}

// content is all that a translation depends on.
type content struct {
	hash   [32]byte
	source string
	refuse bool // Options.RefuseActions
}

// hostContent is the same of a virtual host.
type hostContent struct {
	hash     [32]byte
	settings string
}

// pair is a cluster and an assignment, which are on the shelf.
type pair struct {
	cluster    weak.Pointer[mesh.Cluster]
	assignment weak.Pointer[envoy.Assignment]
}

// made is a translation.
type made[T any] struct {
	what T
	// notes are the verdicts; bad: one of them is of class Invalid.
	notes envoy.Notes
	bad   bool
}

func newMade[T any](what T, verdicts []mesh.Verdict) *made[T] {
	return &made[T]{what: what, notes: envoy.NotesOf(verdicts), bad: len(envoy.Invalid(verdicts)) > 0}
}

// shared is a part of the shelf if other stores have it too, else nil.
func shared[T any](s *Store, on *shelf.Shelf[content, made[T]]) *shelf.Shelf[content, made[T]] {
	if s.opts.Shelf == nil {
		return nil
	}
	return on
}

// join gives a cluster the endpoints of its assignment.
func (s *Store) join(from *mesh.Cluster, a *envoy.Assignment) *mesh.Cluster {
	var key pair
	if s.opts.Shelf != nil {
		key = pair{weak.Make(from), weak.Make(a)}
		if c := s.shelf.joined.Get(key); c != nil {
			return c
		}
	}
	c := *from
	c.Localities = a.Localities
	if s.opts.Shelf == nil {
		return &c
	}
	return s.shelf.joined.Put(key, &c)
}

// translateRoutes translates a RouteConfiguration: of one that was taken apart only what
// is not on the shelf.
func (s *Store) translateRoutes(r xds.Resource) (*envoy.RouteConfig, error) {
	rest := r.Message.(*routev3.RouteConfiguration)
	if len(r.Hosts) == 0 {
		return envoy.TranslateRoutes(rest, r.Source), nil
	}
	settings, err := envoy.HostSettings(rest)
	if err != nil {
		return nil, err
	}
	hosts := make([]*envoy.Host, len(r.Hosts))
	for i, h := range r.Hosts {
		key := hostContent{h.Hash, settings}
		if hosts[i] = s.shelf.hosts.Get(key); hosts[i] != nil {
			continue
		}
		vh, err := h.Message()
		if err != nil {
			return nil, err
		}
		hosts[i] = s.shelf.hosts.Put(key, envoy.TranslateHost(rest, vh))
	}
	if rc, ok := envoy.JoinHosts(rest, hosts, r.Source); ok {
		return rc, nil
	}
	whole, err := r.Whole()
	if err != nil {
		return nil, err
	}
	return envoy.TranslateRoutes(whole.(*routev3.RouteConfiguration), r.Source), nil
}
