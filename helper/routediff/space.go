// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"encoding/binary"
	"fmt"
	"slices"

	"kmesh/helper/mesh"
)

// set is a set of rules, by number.
type set []uint64

func newSet(n int) set       { return make(set, (n+63)/64) }
func (s set) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) remove(i int)   { s[i/64] &^= 1 << (i % 64) }
func (s set) and(o set) set {
	out := make(set, len(s))
	for i := range s {
		out[i] = s[i] & o[i]
	}
	return out
}

// key appends the numbers in the set.
func (s set) key(b []byte) []byte {
	last := 0
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			n := i*64 + trailing(w)
			b = binary.AppendUvarint(b, uint64(n-last))
			last = n
		}
	}
	return b
}

// rule is a route as the search sees it.
type rule struct {
	route *mesh.Route
	ref   RouteRef
	conds []condition
	// all: it takes every request that meets its conditions. Otherwise it takes a
	// fraction, and a later route the rest.
	all bool
	// last is the last dimension (by its place in the space) that it has a
	// condition on, -1: none.
	last int
}

// choice is all values of a dimension between which no rule and no tag tells.
type choice struct {
	value *value
	holds set
}

// axis is a dimension in a space.
type axis struct {
	*dimension
	choices []choice
	asked   set // rules that have a condition on it
}

// space is all requests for a pair of virtual hosts, with the rules of both.
type space struct {
	where  string
	axes   []*axis
	rules  []*rule
	sides  [2][]int // the rules of each side that are ever taken, in order
	limits Limits
}

// newSpace makes the space of up to two virtual hosts (nil: none), for these values of
// the host.
func newSpace(where string, vhs [2]*mesh.VirtualHost, host *dimension, hosts []value, limits Limits) (*space, error) {
	s := &space{where: where, limits: limits}
	ds := dimensions{host: host, byID: map[string]*dimension{}}
	for side, vh := range vhs {
		if vh == nil {
			continue
		}
		for i, route := range vh.Routes {
			conds, err := ds.conditions(&route.Match)
			ref := RouteRef{vh.Name, i, route.Name}
			if err != nil {
				return nil, fmt.Errorf("route %v: %w", ref, err)
			}
			f := route.Match.Fraction
			if f == nil || f.Numerator > 0 {
				s.sides[side] = append(s.sides[side], len(s.rules))
			}
			s.rules = append(s.rules, &rule{
				route: route, ref: ref, conds: conds, last: -1,
				all: f == nil || f.Numerator >= f.Denominator,
			})
		}
	}
	for place, d := range ds.sorted() {
		if d.kind != kindHost {
			if err := d.divide(limits); err != nil {
				return nil, &LimitError{Where: s.culprit(d), What: d.String(), Err: err}
			}
			hosts = d.values
		}
		s.axes = append(s.axes, s.newAxis(place, d, hosts))
	}
	return s, nil
}

// culprit names the route that asks most of a dimension, as far as the length of what
// it asks tells.
func (s *space) culprit(d *dimension) string {
	most, where := -1, s.where
	for _, r := range s.rules {
		for i := range r.conds {
			if c := &r.conds[i]; c.dim == d && len(c.text) > most {
				most, where = len(c.text), fmt.Sprintf("%s: route %v", s.where, r.ref)
			}
		}
	}
	return where
}

// newAxis evaluates the conditions on a dimension, and merges values that are alike.
func (s *space) newAxis(place int, d *dimension, values []value) *axis {
	a := &axis{dimension: d, asked: newSet(len(s.rules))}
	type asks struct {
		rule int
		cond *condition
	}
	var all []asks
	free := newSet(len(s.rules))
	for i, r := range s.rules {
		free.add(i)
		for k := range r.conds {
			if r.conds[k].dim == d {
				all = append(all, asks{i, &r.conds[k]})
				a.asked.add(i)
				r.last = place
			}
		}
	}
	seen := map[string]bool{}
	for i := range values {
		v := &values[i]
		c := choice{v, slices.Clone(free)}
		for _, ask := range all {
			if !ask.cond.holds(v) {
				c.holds.remove(ask.rule)
			}
		}
		if key := string(c.holds.key([]byte{byte(v.tags)})); !seen[key] {
			seen[key] = true
			a.choices = append(a.choices, c)
		}
	}
	return a
}

// next returns the first axis from k on that a rule of the set asks about.
func (s *space) next(k int, alive set) int {
	for ; k < len(s.axes); k++ {
		for i, w := range s.axes[k].asked {
			if w&alive[i] != 0 {
				return k
			}
		}
	}
	return k
}

// complete turns choices made (nil where none was) into a value for every dimension;
// false if what is left cannot be chosen.
func (s *space) complete(made []*value) ([]*value, bool) {
	out := slices.Clone(made)
	var all tags
	for _, v := range made {
		if v != nil {
			all |= v.tags
		}
	}
	for k, v := range out {
		if v != nil {
			continue
		}
		i := slices.IndexFunc(s.axes[k].choices, func(c choice) bool { return (all | c.value.tags).possible() })
		if i < 0 {
			return nil, false
		}
		out[k] = s.axes[k].choices[i].value
		all |= out[k].tags
	}
	return out, true
}
