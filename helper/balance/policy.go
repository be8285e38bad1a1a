// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// maxSchedule bounds a round robin schedule of unequal weights, so that a cluster
// with weights like 1 and 1,000,000 does not take all slots. Weights that need more
// are scaled; each endpoint keeps at least one turn.
const maxSchedule = 4096

// schedule spreads each endpoint's turns evenly over the round: the k-th turn of an
// endpoint of weight w is due at (k+1/2)/w.
func schedule(eps []weighted) []Slot {
	var sum uint64
	for _, e := range eps {
		sum += uint64(e.weight)
	}
	limit := uint64(max(maxSchedule, 4*len(eps)))
	type turn struct {
		due float64
		ep  int
	}
	var turns []turn
	for _, e := range eps {
		w := uint64(e.weight)
		if sum > limit {
			w = max(1, uint64(math.Round(float64(w)*float64(limit)/float64(sum))))
		}
		for k := range w {
			turns = append(turns, turn{(float64(k) + 0.5) / float64(w), e.index})
		}
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Compare(a.due, b.due) })
	slots := make([]Slot, len(turns))
	for i, t := range turns {
		slots[i] = Slot{Endpoint: t.ep}
	}
	return slots
}

// alias builds an alias table (Vose 1991) in integers, so that each endpoint's
// probability is its weight's share to within 2^-32.
func alias(eps []weighted) []Slot {
	n := uint64(len(eps))
	slots := make([]Slot, n)
	var sum uint64
	for i, e := range eps {
		slots[i] = Slot{Endpoint: e.index, Weight: e.weight, Alias: uint32(i), Cut: math.MaxUint32}
		sum += uint64(e.weight)
	}
	// A slot's fill is weight*n; sum is a full slot. n and weights are below 2^32.
	fill := make([]uint64, n)
	var small, large []int
	for i, e := range eps {
		fill[i] = uint64(e.weight) * n
		if fill[i] < sum {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		slots[s].Alias = uint32(l)
		slots[s].Cut = cut(fill[s], sum)
		fill[l] -= sum - fill[s]
		if fill[l] < sum {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	return slots
}

// cut returns part/whole in units of 2^-32; part is below whole.
func cut(part, whole uint64) uint32 {
	hi, lo := bits.Mul64(part, 1<<32)
	q, _ := bits.Div64(hi, lo, whole)
	return uint32(q)
}

// DefaultMaglevSize is the number of slots of a maglev table when the cluster names
// none: a prime that is 100 times the usual number of endpoints, so that their
// shares differ by about 1 %. Envoy's default of 65537 would take 1 MiB a cluster.
const DefaultMaglevSize = 16381

// maglev builds Maglev's lookup table (Eisenbud et al., NSDI 2016, section 3.4)
// with weights: in each round an endpoint takes a turn when its credit, which grows
// by its weight's share of the largest weight, reaches 1. size is prime.
func maglev(eps []weighted, size int) []Slot {
	top := uint32(1)
	for _, e := range eps {
		top = max(top, e.weight)
	}
	type filler struct {
		at, skip uint64
		credit   float64
	}
	fillers := make([]filler, len(eps))
	for i, e := range eps {
		name := e.addr.String()
		fillers[i] = filler{
			at:   xxhash.Sum64String(name) % uint64(size),
			skip: xxhash.Sum64String(name+"#")%uint64(size-1) + 1,
		}
	}
	slots := make([]Slot, size)
	for i := range slots {
		slots[i].Endpoint = -1
	}
	for filled := 0; filled < size; {
		for i := range fillers {
			f := &fillers[i]
			f.credit += float64(eps[i].weight) / float64(top)
			if f.credit < 1 {
				continue
			}
			f.credit--
			for slots[f.at].Endpoint >= 0 {
				f.at = (f.at + f.skip) % uint64(size)
			}
			slots[f.at].Endpoint = eps[i].index
			if filled++; filled == size {
				break
			}
		}
	}
	return slots
}
