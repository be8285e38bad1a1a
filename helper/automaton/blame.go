// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"errors"
	"fmt"
	"sort"

	"kmesh/helper/mesh"
)

// blame turns a limit that a dimension broke into an error that names a route.
func (c *compiler) blame(d *dimension, err error) error {
	var what string
	var limit string
	switch {
	case errors.Is(err, errStates):
		what, limit = "states", fmt.Sprint(c.budget.States)
	case errors.Is(err, errNodes):
		what, limit = "nodes", fmt.Sprint(c.budget.Nodes)
	case errors.Is(err, errWork):
		what, limit = "steps", fmt.Sprint(c.budget.Work)
	default:
		return fmt.Errorf("virtual host %s: %s: %w", c.vh.Name, d, err)
	}
	return &BudgetError{VirtualHost: c.vh.Name, Route: c.name(c.culprit(d)), What: what, Limit: limit}
}

// culprit is the route whose pattern makes a dimension explode. What does so are
// expressions: one alone, or several together. Literals only add up. So first each
// expression is tried alone, then more and more of them in the order of the routes,
// until they need far more states than their number explains; if they never do, it
// is the longest pattern.
func (c *compiler) culprit(d *dimension) int {
	const alone, each = 1024, 64
	lim := &limits{work: c.budget.Work / 8}
	atoms := d.expressions()
	fits := func(states int, atoms ...int32) bool {
		const perTry = 500
		if lim.tick(perTry) != nil {
			return true
		}
		part := newDimension(d.name)
		for _, id := range atoms {
			part.atom(d.atoms[id])
		}
		err := part.try(lim, c.budget.Nodes/8, states, true)
		return err == nil || errors.Is(err, errWork)
	}
	for _, id := range atoms {
		if lim.done > lim.work {
			break
		}
		if !fits(alone, id) {
			return d.routeOf(id)
		}
	}
	more := func(n int) bool { return fits(alone+each*n, atoms[:n]...) }
	for low, n := 0, 1; low < len(atoms); low, n = n, 2*n {
		n = min(n, len(atoms))
		if more(n) {
			continue
		}
		// The first low fit, the first n do not.
		k := sort.Search(n-low-1, func(i int) bool { return !more(low + i + 1) })
		return d.routeOf(atoms[low+k])
	}
	return c.heaviestOf(d)
}

// expressions are the atoms that are no plain strings.
func (d *dimension) expressions() []int32 {
	var out []int32
	for id, a := range d.atoms {
		if a.Kind == mesh.StringRegex && !a.grammar || a.Kind == mesh.StringSuffix {
			out = append(out, int32(id))
		}
	}
	return out
}

// routeOf is the first route that has an atom.
func (d *dimension) routeOf(atom int32) int {
	for _, c := range d.conds {
		if c.atom == atom {
			return c.route
		}
	}
	return -1
}

func (d *dimension) firstRoute() int {
	if len(d.conds) == 0 {
		return -1
	}
	return d.conds[0].route
}

// heaviestOf is the route with the longest pattern of a dimension, the last of them.
func (c *compiler) heaviestOf(d *dimension) int {
	best, most := -1, -1
	for _, cd := range d.conds {
		if cd.atom == present {
			continue
		}
		if n := len(d.atoms[cd.atom].Value); n >= most {
			best, most = cd.route, n
		}
	}
	return best
}

// heaviest is the heaviest route of the dimension with the most states.
func (c *compiler) heaviest() int {
	var most *dimension
	for _, d := range c.dims {
		if len(d.conds) > 0 && (most == nil || d.dfa.states() > most.dfa.states()) {
			most = d
		}
	}
	if most == nil {
		return -1
	}
	return c.heaviestOf(most)
}
