// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
)

// look is the time between two looks at the maps: what a time that is seen in them is exact to.
const look = 200 * time.Microsecond

// watcher sees, from outside and by the pinned maps alone, when what was published is there.
//
// Invariant: an endpoint is seen when it is in km_endpoints, and a generation has been published since the last look that
// did not know its id.
type watcher struct {
	bpffs            string
	state, endpoints *ebpf.Map

	mu      sync.Mutex
	next    uint64            // the first id that has not been looked for
	last    uint64            // the generation of the last look
	waiting map[uint32]uint64 // ids that were given out and have not come, by the generation of the look before
	fresh   map[uint32]netip.AddrPort
	arrived map[netip.AddrPort]arrival
}

// arrival is how often an endpoint came, and when for the last time.
type arrival struct {
	n  int
	at time.Time
}

// stateWord is km_state's value: see bpf/abi.h.
type stateWord struct {
	phase      bpf.Phase
	generation uint64
	nextID     uint64
}

func watch(bpffs string) (*watcher, error) {
	w := &watcher{bpffs: bpffs, waiting: make(map[uint32]uint64), fresh: make(map[uint32]netip.AddrPort), arrived: make(map[netip.AddrPort]arrival)}
	var err error
	if w.state, err = open(bpffs, "km_state"); err != nil {
		return nil, err
	}
	if w.endpoints, err = open(bpffs, "km_endpoints"); err != nil {
		w.state.Close()
		return nil, err
	}
	now, err := w.word()
	w.next, w.last = now.nextID, now.generation
	return w, err
}

func open(bpffs, name string) (*ebpf.Map, error) {
	return ebpf.LoadPinnedMap(bpf.MapPath(bpffs, name), &ebpf.LoadPinOptions{ReadOnly: true})
}

func (w *watcher) close() {
	w.state.Close()
	w.endpoints.Close()
}

func (w *watcher) word() (stateWord, error) {
	b, err := w.state.LookupBytes(uint32(0))
	if err != nil {
		return stateWord{}, fmt.Errorf("km_state: %w", err)
	}
	if len(b) < 24 {
		return stateWord{}, fmt.Errorf("km_state: a value of %d bytes", len(b))
	}
	return stateWord{
		phase:      bpf.Phase(binary.NativeEndian.Uint32(b[4:])),
		generation: binary.NativeEndian.Uint64(b[8:]), nextID: binary.NativeEndian.Uint64(b[16:]),
	}, nil
}

// step looks once.
func (w *watcher) step() error {
	now, err := w.word()
	if err != nil {
		return err
	}
	at := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; w.next < now.nextID; w.next++ {
		w.waiting[uint32(w.next)] = w.last
	}
	w.last = now.generation
	for id, since := range w.waiting {
		e, there := w.fresh[id]
		if !there {
			var v bpf.Endpoint
			switch err := w.endpoints.Lookup(id, &v); {
			case err == nil:
				e = netip.AddrPortFrom(bpf.AddrOf(v.Addr, v.Family), bpf.PortWord(v.Port))
				w.fresh[id] = e
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return fmt.Errorf("km_endpoints: %w", err)
			case now.generation > since+1: // it is no endpoint's
				delete(w.waiting, id)
				continue
			default:
				continue
			}
		}
		if now.generation > since {
			a := w.arrived[e]
			w.arrived[e] = arrival{a.n + 1, at}
			delete(w.waiting, id)
			delete(w.fresh, id)
		}
	}
	return nil
}

// run looks until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if err := w.step(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// came tells when an endpoint came for the nth time or later.
func (w *watcher) came(a netip.AddrPort, n int) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.arrived[a]
	return got.at, got.n >= n
}

// forget makes an endpoint one that has not come.
func (w *watcher) forget(a netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.arrived, a)
}

// held counts all endpoints that are in the map, by address.
func (w *watcher) held() (map[netip.AddrPort]int, error) {
	out := make(map[netip.AddrPort]int)
	var cursor ebpf.MapBatchCursor
	keys, values := make([]uint32, 4096), make([]bpf.Endpoint, 4096)
	for {
		n, err := w.endpoints.BatchLookup(&cursor, keys, values, nil)
		for _, v := range values[:n] {
			out[netip.AddrPortFrom(bpf.AddrOf(v.Addr, v.Family), bpf.PortWord(v.Port))]++
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("km_endpoints: %w", err)
		}
	}
}

// mapBytes is the memory that the kernel charges for all pinned maps, with the largest ones by name.
func mapBytes(bpffs string) (total int64, each map[string]int64, err error) {
	dir := filepath.Dir(bpf.MapPath(bpffs, "km_state"))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, nil, err
	}
	each = make(map[string]int64)
	for _, e := range entries {
		m, err := open(bpffs, e.Name())
		if err != nil {
			return 0, nil, err
		}
		n, err := numberIn(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()), "memlock:")
		m.Close()
		if err != nil {
			return 0, nil, err
		}
		each[e.Name()] = n
		total += n
	}
	return total, each, nil
}

// numberIn is the number behind a word at the beginning of a line of a file.
func numberIn(path, word string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), word); ok {
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				break
			}
			return strconv.ParseInt(fields[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: there is no number for %q", path, word)
}
