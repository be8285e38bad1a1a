// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// Change is requests that are decided otherwise, all by the same routes.
type Change struct {
	Old     Decision `json:"old"`
	New     Decision `json:"new"`
	Witness Witness  `json:"witness"`
}

// Result is what a comparison finds.
type Result struct {
	// Changes: every pair of (old routes, new routes) that decide some request, and
	// decide it otherwise.
	Changes []Change `json:"changes"`
	// NeverOld and NeverNew are the routes that no request reaches.
	NeverOld []Never `json:"neverOld"`
	NeverNew []Never `json:"neverNew"`
}

// Compare compares two configurations of HTTP routing. Either may be nil: then there
// are no changes to find, but routes that are never reached.
func Compare(before, after *mesh.HTTP, limits Limits) (*Result, error) {
	c := comparison{
		limits: limits.withDefaults(), hs: [2]*mesh.HTTP{before, after},
		result: Result{Changes: []Change{}, NeverOld: []Never{}, NeverNew: []Never{}},
	}
	host, all, err := groups(c.hs, c.limits)
	if err != nil {
		return nil, err
	}
	c.host = host
	if before != nil && after != nil {
		for _, g := range all {
			if err := c.changes(g); err != nil {
				return nil, err
			}
		}
	}
	for side, out := range []*[]Never{&c.result.NeverOld, &c.result.NeverNew} {
		if c.hs[side] == nil {
			continue
		}
		for _, vh := range c.hs[side].VirtualHosts {
			var hosts []value
			for _, g := range all {
				if g.vhs[side] == vh {
					hosts = append(hosts, g.hosts...)
				}
			}
			never, err := c.never(side, vh, hosts)
			if err != nil {
				return nil, err
			}
			*out = append(*out, never...)
		}
	}
	return &c.result, nil
}

type comparison struct {
	limits Limits
	hs     [2]*mesh.HTTP
	host   *dimension
	judge  judge
	result Result
}

// changes adds those of the requests for a group of hosts.
func (c *comparison) changes(g *group) error {
	var routes [2][]*mesh.Route
	var where []string
	for side, vh := range g.vhs {
		if vh != nil {
			routes[side] = vh.Routes
		}
		where = append(where, "virtual host "+vhName(vh))
	}
	if reflect.DeepEqual(routes[0], routes[1]) {
		return nil
	}
	s, err := newSpace(strings.Join(slices.Compact(where), ", "), g.vhs, c.host, g.hosts, c.limits)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	return s.differences(func(chains [2][]int, made []*value) error {
		key := fmt.Sprint(chains)
		if seen[key] {
			return nil
		}
		seen[key] = true
		var change Change
		decisions := [2]*Decision{&change.Old, &change.New}
		for side, d := range decisions {
			*d = s.decision(g.vhs[side], chains[side])
		}
		if change.Old.Same(&change.New) {
			return nil
		}
		change.Witness = s.witness(made)
		for side, d := range decisions {
			if err := c.judge.verify(&change.Witness, c.hs[side], g.vhs[side], d.indexes()); err != nil {
				return s.refuted(err, &change.Witness)
			}
		}
		c.result.Changes = append(c.result.Changes, change)
		return nil
	})
}

// refuted: a request that is too long for a head is beyond the limits; anything else
// is a mistake of this package, and nothing that it says is to be trusted.
func (s *space) refuted(err error, w *Witness) error {
	if len(w.Raw()) > head.MaxHead || len(w.Fields) >= head.MaxFields {
		return &LimitError{Where: s.where, What: "a request that meets the conditions is too long", Err: err}
	}
	return fmt.Errorf("%s: %w", s.where, err)
}

func (s *space) decision(vh *mesh.VirtualHost, chain []int) Decision {
	d := Decision{FoundHost: vh != nil, Routes: []RouteRef{}}
	if vh != nil {
		d.VirtualHost = vh.Name
	}
	var routes []*mesh.Route
	for _, i := range chain {
		d.Routes = append(d.Routes, s.rules[i].ref)
		routes = append(routes, s.rules[i].route)
	}
	d.Outcomes = decide(routes)
	return d
}

func (d *Decision) indexes() []int {
	var out []int
	for _, r := range d.Routes {
		out = append(out, r.Index)
	}
	return out
}

// never returns the routes of a virtual host, to which these hosts lead, that no
// request reaches.
func (c *comparison) never(side int, vh *mesh.VirtualHost, hosts []value) ([]Never, error) {
	s, err := newSpace("virtual host "+vh.Name, [2]*mesh.VirtualHost{vh}, c.host, hosts, c.limits)
	if err != nil {
		return nil, err
	}
	return s.never(func(i int, made []*value) error {
		w := s.witness(made)
		r, outcome := head.ParseRequest(w.Raw())
		if outcome.Kind != head.Route {
			return s.refuted(fmt.Errorf("request %q: %v, where the search takes it to be routed", w.Raw(), outcome), &w)
		}
		if got, chain := c.judge.chain(c.hs[side], &r); got != vh || !slices.Contains(chain, i) {
			return s.refuted(fmt.Errorf("request %q: the reference has routes %v of %s, the search %d of %s",
				w.Raw(), chain, vhName(got), i, vh.Name), &w)
		}
		return nil
	})
}
