// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Other is another layout that is pinned on this node: an older one, or the newer one
// that a downgrade leaves. Only what is the same in every layout may be read of it: the
// beginnings of struct state and struct limits, km_pods, km_names, km_quotas, km_tuples,
// the keys of km_legs. A new layout must not change those; if it has to, it must know how
// to read the old ones.
type Other struct {
	ABI uint32
	dir string
}

// tcMaps are of no use any more when the flows of a layout have ended; all others serve
// sockets that were bound once, at connect.
var tcMaps = []string{
	"km_frontends", "km_prefixes", "km_services", "km_clusters", "km_slots", "km_endpoints", "km_names",
	"km_http", "km_guesses", "km_hosts", "km_long_hosts", "km_vhosts", "km_replies", "km_trace", "km_slabs", "km_routes", "km_shares",
	"km_limits", "km_flows", "km_tuples", "km_legs", "km_tombstones", "km_over", "km_ended", "km_quotas", "km_holds",
	"km_free_holds", "km_marks",
}

// Others finds them, the highest number first.
func Others(bpffs string) ([]Other, error) {
	entries, err := os.ReadDir(bpffs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bpffs: %w", err)
	}
	var all []Other
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "v")
		n, err := strconv.ParseUint(digits, 10, 16)
		if ok && err == nil && uint32(n) != ABI {
			all = append(all, Other{uint32(n), filepath.Join(bpffs, e.Name())})
		}
	}
	slices.SortFunc(all, func(a, b Other) int { return cmp.Compare(b.ABI, a.ABI) })
	return all, nil
}

// This is the layout of this program, for what may be asked of each one.
func This(bpffs string) Other { return Other{ABI, Dir(bpffs)} }

func dirs(all []Other) (out []string) {
	for _, o := range all {
		out = append(out, o.dir)
	}
	return out
}

func (o Other) progPath(hook string) string { return filepath.Join(o.dir, "progs", hook) }
func (o Other) mapPath(name string) string  { return filepath.Join(o.dir, "maps", name) }

func (o Other) has(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Flows tells whether the layout may still have flows of its own.
func (o Other) Flows() bool { return o.has(o.progPath("tc_egress")) }

// Whole tells whether it still has all that flows need.
func (o Other) Whole() bool { return o.has(o.mapPath(tcMaps[0])) }

// State reads the state word.
func (o Other) State() (State, error) {
	w, err := readState(o.mapPath("km_state"))
	return State{ABI: w.Abi, Phase: Phase(w.Phase), Generation: w.Generation}, err
}

// Live tells whether a helper of that layout keeps it up to date, or did until now.
func (o Other) Live() bool {
	st, err := o.State()
	return err == nil && st.Phase == PhaseLive
}

// open opens a map whose elements are as large as ours.
func (o Other) open(name string, ours *ebpf.Map) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(o.mapPath(name), nil)
	if err != nil {
		return nil, fmt.Errorf("layout %d: map %s: %w", o.ABI, name, err)
	}
	if m.KeySize() != ours.KeySize() || m.ValueSize() != ours.ValueSize() {
		m.Close()
		return nil, fmt.Errorf("layout %d: map %s is of another kind", o.ABI, name)
	}
	return m, nil
}

// entriesOf reads a hash that programs may change meanwhile.
func entriesOf[K comparable, V any](o Other, name string, ours *ebpf.Map) (map[K]V, error) {
	m, err := o.open(name, ours)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return entries[K, V](m)
}

func entries[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	all := make(map[K]V)
	var err error
	for range 10 {
		var k K
		var v V
		it := m.Iterate()
		for it.Next(&k, &v) {
			all[k] = v
		}
		if err = it.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", m, err)
	}
	return all, nil
}

// Open returns the number of flows that are open, by pod.
func (r *Runtime) Open(o Other) (map[uint64]uint64, error) {
	all, err := entriesOf[uint64, uint64](o, "km_quotas", r.maps["km_quotas"])
	for pod, n := range all {
		if n == 0 {
			delete(all, pod)
		}
	}
	return all, err
}

// Tuples returns the connections that the layout has, or had a while ago.
func (r *Runtime) Tuples(o Other) (map[FlowKey]FlowRef, error) {
	return entriesOf[FlowKey, FlowRef](o, "km_tuples", r.maps["km_tuples"])
}

// Pods returns the network namespace cookies of the pods that the layout knows.
func (r *Runtime) Pods(o Other) (map[uint64]bool, error) {
	all, err := entriesOf[uint64, abiPod](o, "km_pods", r.maps["km_pods"])
	pods := make(map[uint64]bool, len(all))
	for cookie := range all {
		pods[cookie] = true
	}
	return pods, err
}

// setPhase writes the phase alone: the rest is of a layout that we do not know.
func (o Other) setPhase(p Phase, ours *ebpf.Map) error {
	m, err := o.open("km_state", ours)
	if err != nil {
		return err
	}
	defer m.Close()
	var w abiState
	if err := m.Lookup(uint32(0), &w); err != nil {
		return fmt.Errorf("layout %d: state word: %w", o.ABI, err)
	}
	w.Phase = uint32(p)
	if err := m.Put(uint32(0), &w); err != nil {
		return fmt.Errorf("layout %d: state word: %w", o.ABI, err)
	}
	return nil
}

// limits changes the layout's limits in place, since its programs count in them.
func (o Other) limits(ours *ebpf.Map, change func(*abiLimits)) error {
	m, err := o.open("km_limits", ours)
	if err != nil {
		return err
	}
	defer m.Close()
	mem, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("layout %d: map km_limits: mmap: %w", o.ABI, err)
	}
	change(&inPlace[abiLimits](mem)[0])
	return unix.Munmap(mem)
}

// unpin removes pins; what is not there is as good.
func (o Other) unpin(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("layout %d: %w", o.ABI, err))
		}
	}
	return errors.Join(errs...)
}
