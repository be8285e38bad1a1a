// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Pod is what the programs know of a pod.
type Pod struct {
	// Scope is the id of the view of the mesh that the pod gets.
	Scope uint32
	// IPv4 and IPv6 are the pod's addresses, invalid where it has none: the key
	// of source-hashed balancing.
	IPv4, IPv6 netip.Addr
}

// Pods is the pinned table of pods, keyed by network namespace cookie.
type Pods struct{ m *ebpf.Map }

// OpenPods opens the pinned table.
func OpenPods(bpffs string) (*Pods, error) {
	m, err := ebpf.LoadPinnedMap(MapPath(bpffs, "km_pods"), nil)
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
		return fmt.Errorf("pod table: %w", err)
	}
	return nil
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
		pod := Pod{Scope: v.Scope}
		if v.Ip4 != 0 {
			pod.IPv4 = AddrOf([4]uint32{v.Ip4}, 4)
		}
		if v.Ip6 != [4]uint32{} {
			pod.IPv6 = AddrOf(v.Ip6, 6)
		}
		all[cookie] = pod
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("pod table: %w", err)
	}
	return all, nil
}
