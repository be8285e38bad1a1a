// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// reach is the search for a request that gets to one rule.
type reach struct {
	*space
	target int
	seen   map[string]bool
	made   []*value
	steps  int
	blamed set // earlier rules that took what was tried
}

// reachable looks for a request that meets rule i and none of the blockers, which are
// earlier rules of the same side. Without one, blamed are blockers that are enough.
func (s *space) reachable(i int, blockers set) (made []*value, blamed set, err error) {
	r := &reach{space: s, target: i, seen: map[string]bool{}, made: make([]*value, len(s.axes)), blamed: newSet(len(s.rules))}
	made, err = r.search(0, slices.Clone(blockers), 0)
	return made, r.blamed, err
}

var errSteps = errors.New("too many combinations of conditions")

func (r *reach) search(k int, alive set, t tags) ([]*value, error) {
	for i, w := range alive {
		for ; w != 0; w &= w - 1 {
			if n := i*64 + trailing(w); r.rules[n].last < k {
				r.blamed.add(n)
				return nil, nil
			}
		}
	}
	asking := slices.Clone(alive)
	asking.add(r.target)
	if next := r.next(k, asking); k > 0 {
		k = next
	}
	if k == len(r.axes) {
		made, ok := r.complete(r.made)
		if !ok {
			return nil, nil
		}
		return made, nil
	}
	key := string(alive.key(binary.AppendUvarint([]byte{byte(t)}, uint64(k))))
	if r.seen[key] {
		return nil, nil
	}
	r.seen[key] = true
	if r.steps++; r.steps > r.limits.Steps {
		return nil, errSteps
	}
	for _, c := range r.axes[k].choices {
		if !c.holds.has(r.target) || !(t | c.value.tags).possible() {
			continue
		}
		r.made[k] = c.value
		if made, err := r.search(k+1, alive.and(c.holds), t|c.value.tags); made != nil || err != nil {
			return made, err
		}
	}
	r.made[k] = nil
	return nil, nil
}

// Never is a route that no request reaches.
type Never struct {
	Route  RouteRef `json:"route"`
	Reason string   `json:"reason"`
	// Behind are the earlier routes that together take every request that it would
	// match; none of them can be left out.
	Behind []RouteRef `json:"behind,omitempty"`
}

// maxSpared bounds the rules that are tried one by one whether they can be left out.
const maxSpared = 64

// never returns the rules of side 0 that no request reaches, and for the others the
// values of one that does.
func (s *space) never(reached func(rule int, made []*value) error) ([]Never, error) {
	var out []Never
	blockers := newSet(len(s.rules))
	for i, r := range s.rules {
		reason := s.contradiction(r)
		if f := r.route.Match.Fraction; f != nil && f.Numerator == 0 {
			reason = "it takes a fraction of 0"
		}
		if len(s.axes[0].choices) == 0 {
			reason = "no host leads to its virtual host"
		}
		if reason != "" {
			out = append(out, Never{Route: r.ref, Reason: reason})
			continue
		}
		made, blamed, err := s.reachable(i, blockers)
		if err == nil && made == nil {
			blamed, err = s.spare(i, blamed)
		}
		switch {
		case errors.Is(err, errSteps):
			return nil, &LimitError{Where: fmt.Sprintf("%s: route %v", s.where, r.ref), What: "whether a request reaches it", Err: err}
		case err != nil:
			return nil, err
		case made != nil:
			if err := reached(i, made); err != nil {
				return nil, err
			}
		default:
			out = append(out, s.shadowed(r, blamed))
		}
		// What is never reached takes nothing from those after it.
		if made != nil && r.all {
			blockers.add(i)
		}
	}
	return out, nil
}

// spare takes out of blamed what is not needed.
func (s *space) spare(i int, blamed set) (set, error) {
	var all []int
	for k := range s.rules {
		if blamed.has(k) {
			all = append(all, k)
		}
	}
	if len(all) > maxSpared {
		return blamed, nil
	}
	for _, k := range slices.Backward(all) {
		blamed.remove(k)
		made, _, err := s.reachable(i, blamed)
		if err != nil {
			return blamed, err
		}
		if made != nil {
			blamed.add(k)
		}
	}
	return blamed, nil
}

func (s *space) shadowed(r *rule, blamed set) Never {
	n := Never{Route: r.ref}
	var names []string
	for k, by := range s.rules {
		if blamed.has(k) {
			n.Behind = append(n.Behind, by.ref)
			names = append(names, by.ref.String())
		}
	}
	switch len(names) {
	case 0:
		n.Reason = "its conditions exclude each other"
		if texts := r.texts(func(*condition) bool { return true }); texts != "" {
			n.Reason += ": " + texts
		}
	case 1:
		n.Reason = fmt.Sprintf("earlier route %s takes all that it would match", names[0])
	default:
		n.Reason = fmt.Sprintf("earlier routes take all that it would match: %s", strings.Join(names, ", "))
	}
	return n
}

// contradiction says which conditions of a rule no value of a dimension meets.
func (s *space) contradiction(r *rule) string {
	for k, a := range s.axes {
		if slices.ContainsFunc(a.choices, func(c choice) bool { return c.holds.has(s.index(r)) }) {
			continue
		}
		if k == 0 && len(a.choices) == 0 {
			continue
		}
		texts := r.texts(func(c *condition) bool { return c.dim == a.dimension })
		return fmt.Sprintf("nothing meets %s", texts)
	}
	return ""
}

func (s *space) index(r *rule) int { return slices.Index(s.rules, r) }

func (r *rule) texts(which func(*condition) bool) string {
	var out []string
	for i := range r.conds {
		if which(&r.conds[i]) {
			out = append(out, r.conds[i].text)
		}
	}
	return strings.Join(out, " and ")
}
