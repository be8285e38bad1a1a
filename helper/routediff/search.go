// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"kmesh/helper/mesh"
)

func trailing(w uint64) int { return bits.TrailingZeros64(w) }

// difference is the search for requests that the two sides of a space decide
// otherwise.
type difference struct {
	*space
	// rest[k][i] numbers what rule i still asks from axis k on together with what it
	// does: equal numbers, equal future.
	rest  [][]int
	seen  map[string]bool
	made  []*value
	steps int
	found func(chains [2][]int, made []*value) error
}

// differences calls found once for each pair of chains (the rules that may decide, of
// each side) that decide some request, unless they surely do the same.
func (s *space) differences(found func([2][]int, []*value) error) error {
	d := &difference{space: s, seen: map[string]bool{}, made: make([]*value, len(s.axes)), found: found}
	d.number()
	alive := newSet(len(s.rules))
	for _, side := range s.sides {
		for _, i := range side {
			alive.add(i)
		}
	}
	// The host comes first: where it is not known, its tags are not either.
	return d.search(0, alive, 0)
}

func (d *difference) number() {
	ids := map[string]int{}
	id := func(key string) int {
		n, ok := ids[key]
		if !ok {
			n = len(ids)
			ids[key] = n
		}
		return n
	}
	d.rest = make([][]int, len(d.axes)+1)
	for k := len(d.axes); k >= 0; k-- {
		d.rest[k] = make([]int, len(d.rules))
		for i, r := range d.rules {
			if k == len(d.axes) {
				f := fraction(r.route.Match.Fraction)
				outcomes := Decision{Outcomes: decide([]*mesh.Route{{
					Match: mesh.RouteMatch{Path: r.route.Match.Path}, Abort: r.route.Abort,
					Clusters: r.route.Clusters, Redirect: r.route.Redirect,
					Direct: r.route.Direct, Unsupported: r.route.Unsupported,
				}})}
				key := "does " + f.String()
				for _, o := range outcomes.Outcomes {
					key += fmt.Sprintf(" %q %v", o.Action, o.Share)
				}
				d.rest[k][i] = id(key)
				continue
			}
			d.rest[k][i] = d.rest[k+1][i]
			for c := range r.conds {
				if r.conds[c].dim == d.axes[k].dimension {
					d.rest[k][i] = id(fmt.Sprint("asks ", k, d.rest[k][i], r.conds[c].key()))
				}
			}
		}
	}
}

// search takes the axes from k on in turn.
func (d *difference) search(k int, alive set, t tags) error {
	chains, same := d.remains(k, alive)
	if same {
		return nil
	}
	if next := d.next(k, alive); k > 0 {
		k = next
	}
	if k == len(d.axes) {
		made, ok := d.complete(d.made)
		if !ok {
			return nil
		}
		return d.found(chains, made)
	}
	key := string(alive.key(binary.AppendUvarint([]byte{byte(t)}, uint64(k))))
	if d.seen[key] {
		return nil
	}
	d.seen[key] = true
	if d.steps++; d.steps > d.limits.Steps {
		return &LimitError{Where: d.where, What: fmt.Sprintf("%v: more than %d combinations of conditions", d.axes[k], d.limits.Steps)}
	}
	for _, c := range d.axes[k].choices {
		if !(t | c.value.tags).possible() {
			continue
		}
		d.made[k] = c.value
		if err := d.search(k+1, alive.and(c.holds), t|c.value.tags); err != nil {
			return err
		}
	}
	d.made[k] = nil
	return nil
}

// remains takes out of alive what an earlier rule keeps from being reached, returns
// what is left of each side in order, and tells whether both sides are the same from
// now on.
func (d *difference) remains(k int, alive set) (chains [2][]int, same bool) {
	for side, order := range d.sides {
		closed := false
		for _, i := range order {
			if !alive.has(i) {
				continue
			}
			if closed {
				alive.remove(i)
				continue
			}
			chains[side] = append(chains[side], i)
			closed = d.rules[i].all && d.rules[i].last < k
		}
	}
	same = slices.EqualFunc(chains[0], chains[1], func(a, b int) bool { return d.rest[k][a] == d.rest[k][b] })
	return chains, same
}
