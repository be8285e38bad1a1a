// SPDX-License-Identifier: Apache-2.0

package automaton

// minimize merges states that nothing tells apart: Moore's refinement. States keep
// their order, so the result is the same for the same input.
func minimize(d *dfa, lim *limits) error {
	n := d.states()
	part := make([]int32, n)
	count := 0
	ids := make(map[[2]int32]int32, n)
	for s := range part {
		key := [2]int32{d.final[s], d.hits[s]}
		id, ok := ids[key]
		if !ok {
			id = int32(len(ids))
			ids[key] = id
		}
		part[s] = id
	}
	count = len(ids)
	sig := make([]uint64, n)
	for {
		if err := lim.tick(n * d.columns / 4); err != nil {
			return err
		}
		next := make([]int32, n)
		groups := make(map[uint64][]int32, count)
		fresh := int32(0)
		for s := range n {
			h := mix(uint64(part[s]) + 1)
			for _, to := range d.step[s*d.columns : (s+1)*d.columns] {
				h = mix(h ^ uint64(part[to]))
			}
			sig[s] = h
			// Equal hashes are compared: a collision must not merge states.
			found := int32(-1)
			for _, rep := range groups[h] {
				if d.alike(part, rep, int32(s)) {
					found = next[rep]
					break
				}
			}
			if found < 0 {
				found = fresh
				fresh++
				groups[h] = append(groups[h], int32(s))
			}
			next[s] = found
		}
		part = next
		if int(fresh) == count {
			break
		}
		count = int(fresh)
	}
	d.merge(part, count)
	return nil
}

func mix(x uint64) uint64 {
	x *= 0x9e3779b97f4a7c15
	return x ^ x>>29
}

func (d *dfa) alike(part []int32, a, b int32) bool {
	if part[a] != part[b] {
		return false
	}
	ra, rb := d.step[int(a)*d.columns:][:d.columns], d.step[int(b)*d.columns:][:d.columns]
	for c := range ra {
		if part[ra[c]] != part[rb[c]] {
			return false
		}
	}
	return true
}

// merge keeps the first state of each part. Parts are numbered in the order of
// their first states, so the start stays 0.
func (d *dfa) merge(part []int32, count int) {
	next := make([]int32, 0, count*d.columns)
	var final, hits []int32
	for s := range part {
		if int(part[s]) != len(final) {
			continue
		}
		for _, to := range d.step[s*d.columns : (s+1)*d.columns] {
			next = append(next, part[to])
		}
		final = append(final, d.final[s])
		hits = append(hits, d.hits[s])
	}
	d.step, d.final, d.hits = next, final, hits
}
