// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"kmesh/bpf"
)

// extents is the free space of a table that is written in extents: sorted by
// offset, no two adjacent.
type extents []bpf.Extent

// allFree is the free space of an empty table of n slots.
func allFree(n uint32) extents { return extents{{Offset: 0, N: n}} }

var errNoRoom = errors.New("no free space of that length")

// take removes n elements from the free space: the smallest extent that has them.
// None is the empty extent.
func (f *extents) take(n uint32) (bpf.Extent, error) {
	if n == 0 {
		return bpf.Extent{}, nil
	}
	best := -1
	for i, e := range *f {
		if e.N >= n && (best < 0 || e.N < (*f)[best].N) {
			best = i
		}
	}
	if best < 0 {
		return bpf.Extent{}, errNoRoom
	}
	e := &(*f)[best]
	got := bpf.Extent{Offset: e.Offset, N: n}
	if e.N == n {
		*f = slices.Delete(*f, best, best+1)
	} else {
		e.Offset += n
		e.N -= n
	}
	return got, nil
}

// mark removes an extent that is in use; an error says that it was not free.
func (f *extents) mark(x bpf.Extent) error {
	if x.N == 0 {
		return nil
	}
	for i, e := range *f {
		if x.Offset < e.Offset || x.Offset+x.N > e.Offset+e.N {
			continue
		}
		var rest []bpf.Extent
		if before := x.Offset - e.Offset; before > 0 {
			rest = append(rest, bpf.Extent{Offset: e.Offset, N: before})
		}
		if after := e.Offset + e.N - x.Offset - x.N; after > 0 {
			rest = append(rest, bpf.Extent{Offset: x.Offset + x.N, N: after})
		}
		*f = slices.Replace(*f, i, i+1, rest...)
		return nil
	}
	return fmt.Errorf("elements %d to %d are in use twice", x.Offset, x.Offset+x.N)
}

// give returns an extent to the free space and joins it with its neighbours.
func (f *extents) give(x bpf.Extent) {
	if x.N == 0 {
		return
	}
	at, _ := slices.BinarySearchFunc(*f, x, func(a, b bpf.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	*f = slices.Insert(*f, at, x)
	if at+1 < len(*f) && (*f)[at].Offset+(*f)[at].N == (*f)[at+1].Offset {
		(*f)[at].N += (*f)[at+1].N
		*f = slices.Delete(*f, at+1, at+2)
	}
	if at > 0 && (*f)[at-1].Offset+(*f)[at-1].N == (*f)[at].Offset {
		(*f)[at-1].N += (*f)[at].N
		*f = slices.Delete(*f, at, at+1)
	}
}
