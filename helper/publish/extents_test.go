// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"math/rand/v2"
	"testing"

	"kmesh/bpf"
)

// TestExtentsAgainstBitmap runs random takes and gives beside a plain bitmap.
func TestExtentsAgainstBitmap(t *testing.T) {
	const size = 512
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		free := allFree(size)
		var used [size]bool
		var held []bpf.Extent
		for range 400 {
			if len(held) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(held))
				free.give(held[i])
				for k := range held[i].N {
					used[held[i].Offset+k] = false
				}
				held = append(held[:i], held[i+1:]...)
			} else if x, err := free.take(uint32(rng.IntN(60) + 1)); err == nil {
				for k := range x.N {
					if used[x.Offset+k] {
						t.Fatalf("seed %d: slot %d given out twice", seed, x.Offset+k)
					}
					used[x.Offset+k] = true
				}
				held = append(held, x)
			}
			n := uint32(0)
			for i, e := range free {
				n += e.N
				if i > 0 && free[i-1].Offset+free[i-1].N >= e.Offset {
					t.Fatalf("seed %d: extents touch or overlap: %v", seed, free)
				}
			}
			for _, u := range used {
				if u {
					n++
				}
			}
			if n != size {
				t.Fatalf("seed %d: free and used sum to %d, want %d", seed, n, size)
			}
		}
		again := allFree(size)
		for _, x := range held {
			if err := again.mark(x); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := again.mark(x); err == nil {
				t.Fatalf("seed %d: %v marked twice", seed, x)
			}
		}
	}
}
