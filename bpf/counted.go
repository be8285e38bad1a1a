// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"github.com/cilium/ebpf"
)

// pastPrefix is that of maps with what layouts have counted that are gone. Only the
// helper writes them.
const pastPrefix = "past_"

// Counted opens all maps that have counts of this name: this layout's own, what is past,
// those of others; done closes those that are not this one's. A map that another layout
// has in another form is left out.
func (r *Runtime) Counted(name string) (all []*ebpf.Map, done func(), err error) {
	all = []*ebpf.Map{r.maps[name]}
	done = func() {
		for _, m := range all[1:] {
			m.Close()
		}
	}
	others, err := Others(r.BPFFS)
	if err != nil {
		return nil, nil, err
	}
	for _, o := range append(others, Other{ABI, Dir(r.BPFFS)}) {
		for _, n := range []string{name, pastPrefix + name} {
			if o.ABI == ABI && n == name {
				continue
			}
			if m, err := o.open(n, r.maps[name]); err == nil {
				all = append(all, m)
			}
		}
	}
	return all, done, nil
}

// Sum adds a value to another one. Values of counted maps are made of counters of 64 bits
// that only grow.
func Sum[V any](to, v *V) {
	a, b := counters(to), counters(v)
	for i := range a {
		a[i] += b[i]
	}
}

func counters[V any](v *V) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(v)), unsafe.Sizeof(*v)/8)
}

// keepCounts adds what another layout has counted, and what was past for it, to what is
// past here.
func (r *Runtime) keepCounts(o Other) error {
	return errors.Join(
		keep[StatsKey, Stats](r, o, "km_stats"),
		keep[RefusalKey, uint64](r, o, "km_refusals"),
		keep[RequestKey, RequestStats](r, o, "km_requests"),
		keep[uint32, uint64](r, o, "km_events"))
}

func keep[K comparable, V any](r *Runtime, o Other, name string) error {
	for _, n := range []string{name, pastPrefix + name} {
		counts, err := entriesOf[K, V](o, n, r.maps[name])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		past, err := r.openPast(name)
		if err != nil {
			return err
		}
		for k, v := range counts {
			var sum V
			if err := past.Lookup(&k, &sum); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				past.Close()
				return fmt.Errorf("map %s: %w", pastPrefix+name, err)
			}
			Sum(&sum, &v)
			if err := past.Put(&k, &sum); err != nil {
				past.Close()
				return fmt.Errorf("map %s: %w", pastPrefix+name, err)
			}
		}
		// Not twice, if this is interrupted from here on.
		if err := errors.Join(past.Close(), o.unpin(o.mapPath(n))); err != nil {
			return err
		}
	}
	return nil
}

// openPast opens the map of what is past, or makes it.
func (r *Runtime) openPast(name string) (*ebpf.Map, error) {
	like := r.maps[name]
	m, err := openOrCreateMap(MapPath(r.BPFFS, pastPrefix+name), &ebpf.MapSpec{
		Name: pastPrefix + name, Type: like.Type(), KeySize: like.KeySize(), ValueSize: like.ValueSize(),
		MaxEntries: like.MaxEntries(), Flags: like.Flags(),
	})
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", pastPrefix+name, err)
	}
	return m, nil
}
