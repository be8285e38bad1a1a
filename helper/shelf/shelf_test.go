// SPDX-License-Identifier: Apache-2.0

package shelf

import (
	"runtime"
	"sync"
	"testing"
)

type thing struct {
	n    int
	more *int
}

func TestShelf(t *testing.T) {
	var s Shelf[int, thing]
	if s.Get(1) != nil {
		t.Fatal("an empty shelf has something")
	}
	a := &thing{n: 1}
	if s.Put(1, a) != a || s.Get(1) != a {
		t.Fatal("what was put there is not there")
	}
	if got := s.Put(1, &thing{n: 1}); got != a {
		t.Fatal("a second one took the place of the first")
	}
	runtime.GC()
	if s.Get(1) != a {
		t.Fatal("what is held is gone")
	}
	runtime.KeepAlive(a)
	a = nil
	runtime.GC()
	runtime.GC()
	if s.Get(1) != nil {
		t.Fatal("the shelf holds what nobody holds")
	}
	b := &thing{n: 2}
	if s.Put(1, b) != b {
		t.Fatal("what is gone is in the way")
	}
	runtime.KeepAlive(b)
}

// What nobody holds costs no entry for long.
func TestShelfSweeps(t *testing.T) {
	var s Shelf[int, thing]
	var held []*thing
	for i := range 40 * sweepFrom {
		v := s.Put(i, &thing{n: i, more: new(int)})
		if i%100 == 0 {
			held = append(held, v)
		}
		if i%sweepFrom == 0 {
			runtime.GC()
		}
	}
	if n := len(s.items); n > 4*sweepFrom {
		t.Errorf("%d entries are left, and %d things are held", n, len(held))
	}
	for i, v := range held {
		if got := s.Get(v.n); got != v || v.n != 100*i {
			t.Errorf("thing %d is %v", v.n, got)
		}
	}
}

// Several put the same there: all get one. Run with -race.
func TestShelfShared(t *testing.T) {
	var s Shelf[int, thing]
	var wg sync.WaitGroup
	got := make([][]*thing, 4)
	for g := range got {
		wg.Go(func() {
			for i := range 1000 {
				v := s.Get(i)
				if v == nil {
					v = s.Put(i, &thing{n: i})
				}
				got[g] = append(got[g], v)
			}
		})
	}
	wg.Wait()
	for g := range got {
		for i, v := range got[g] {
			if v != got[0][i] || v.n != i {
				t.Fatalf("goroutine %d has another thing %d", g, i)
			}
		}
	}
}
