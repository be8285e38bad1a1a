// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Pod is what the programs know of a pod.
type Pod struct {
	// Scope is the id of the view of the mesh that the pod gets.
	Scope uint32
	// IPv4 and IPv6 are the pod's addresses, invalid where it has none: the key
	// of source-hashed balancing.
	IPv4, IPv6 netip.Addr
}

// ScopeNone is the scope of a pod that opted out: no service has it, so what the pod
// opens from now on is not governed, and what is open goes on as it was.
const ScopeNone = ^uint32(0)

// FullError says that the table of pods has no room.
type FullError struct{ Entries uint32 }

func (e *FullError) Error() string {
	return fmt.Sprintf("km_pods holds %d pods and is full", e.Entries)
}

// Pods is the pinned table of pods, keyed by network namespace cookie.
type Pods struct{ m *ebpf.Map }

// OpenPods opens the pinned table.
func OpenPods(bpffs string) (*Pods, error) {
	return openPods(MapPath(bpffs, "km_pods"))
}

func openPods(path string) (*Pods, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("pod table: %w", err)
	}
	return &Pods{m}, nil
}

// Close releases the table; the entries stay.
func (p *Pods) Close() error { return p.m.Close() }

// Put adds or replaces the pod of a network namespace.
func (p *Pods) Put(netnsCookie uint64, pod Pod) error {
	v := abiPod{Scope: pod.Scope}
	if pod.IPv4.IsValid() {
		w, _ := AddrWords(pod.IPv4)
		v.Ip4 = w[0]
	}
	if pod.IPv6.IsValid() {
		v.Ip6, _ = AddrWords(pod.IPv6)
	}
	if err := p.m.Put(netnsCookie, &v); err != nil {
		if errors.Is(err, unix.E2BIG) {
			err = &FullError{p.m.MaxEntries()}
		}
		return fmt.Errorf("pod table: %w", err)
	}
	return nil
}

// SetScope changes the scope of a pod that is in the table.
func (p *Pods) SetScope(netnsCookie uint64, scope uint32) error {
	pod, ok, err := p.Get(netnsCookie)
	if err != nil || !ok || pod.Scope == scope {
		return err
	}
	pod.Scope = scope
	return p.Put(netnsCookie, pod)
}

// Get returns the pod of a network namespace; false: there is none.
func (p *Pods) Get(netnsCookie uint64) (Pod, bool, error) {
	var v abiPod
	err := p.m.Lookup(netnsCookie, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Pod{}, false, nil
	}
	if err != nil {
		return Pod{}, false, fmt.Errorf("pod table: %w", err)
	}
	return podOf(v), true, nil
}

// Delete removes the pod of a network namespace; removing what is absent is no
// error.
func (p *Pods) Delete(netnsCookie uint64) error {
	if err := p.m.Delete(netnsCookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("pod table: %w", err)
	}
	return nil
}

// List returns all pods by network namespace cookie.
func (p *Pods) List() (map[uint64]Pod, error) {
	all := make(map[uint64]Pod)
	var cookie uint64
	var v abiPod
	it := p.m.Iterate()
	for it.Next(&cookie, &v) {
		all[cookie] = podOf(v)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("pod table: %w", err)
	}
	return all, nil
}

func podOf(v abiPod) Pod {
	pod := Pod{Scope: v.Scope}
	if v.Ip4 != 0 {
		pod.IPv4 = AddrOf([4]uint32{v.Ip4}, 4)
	}
	if v.Ip6 != [4]uint32{} {
		pod.IPv6 = AddrOf(v.Ip6, 6)
	}
	return pod
}

// SetPodScope changes the scope of a pod in the tables of every layout, where it is.
func SetPodScope(bpffs string, netnsCookie uint64, scope uint32) error {
	return eachPods(bpffs, func(p *Pods) error { return p.SetScope(netnsCookie, scope) })
}

// ForgetPod removes a pod from the tables of every layout.
func ForgetPod(bpffs string, netnsCookie uint64) error {
	return eachPods(bpffs, func(p *Pods) error { return p.Delete(netnsCookie) })
}

func eachPods(bpffs string, f func(*Pods) error) error {
	all, err := filepath.Glob(filepath.Join(bpffs, "v*", "maps", "km_pods"))
	if err != nil {
		return fmt.Errorf("pod table: %w", err)
	}
	var errs []error
	for _, path := range all {
		pods, err := openPods(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the layout went just now, and the entry with it
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, f(pods), pods.Close())
	}
	return errors.Join(errs...)
}
