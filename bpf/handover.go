// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"strings"

	"github.com/cilium/ebpf"
)

// olderPrefix is that of the maps through which a program hands on what is not its own.
const olderPrefix = "km_older_"

// handing are the hooks that hand on.
var handing = []string{"tc_ingress", "tc_egress", "getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sock_ops"}

// Inherit takes over what must go on under the same ids: names, the ids that were given
// out, pods. It is called before anything else reads or writes the maps.
func (r *Runtime) Inherit() error {
	others, err := Others(r.BPFFS)
	if err != nil {
		return err
	}
	var w abiState
	if err := r.state.Lookup(uint32(0), &w); err != nil {
		return fmt.Errorf("state word: %w", err)
	}
	for _, o := range others {
		theirs, err := readState(o.mapPath("km_state"))
		if errors.Is(err, fs.ErrNotExist) {
			// Its helper died before it had begun, or another one while it removed it.
			if err := os.RemoveAll(o.dir); err != nil {
				return fmt.Errorf("layout %d: %w", o.ABI, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("layout %d: %w", o.ABI, err)
		}
		w.NextId = max(w.NextId, theirs.NextId)
		w.Generation = max(w.Generation, theirs.Generation)
		if err := r.inheritNames(o); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := r.InheritPods(o); err != nil {
			return err
		}
	}
	return r.SetState(Phase(w.Phase), w.Generation, w.NextId)
}

func (r *Runtime) inheritNames(o Other) error {
	theirs, err := entriesOf[uint32, Name](o, "km_names", r.Names)
	if err != nil {
		return err
	}
	ours, err := entries[uint32, Name](r.Names)
	if err != nil {
		return err
	}
	known := make(map[Name]bool, len(ours))
	for _, n := range ours {
		known[n] = true
	}
	for id, n := range theirs {
		if _, taken := ours[id]; taken || known[n] {
			continue
		}
		if err := r.Names.Put(id, &n); err != nil {
			return fmt.Errorf("map km_names: %w", err)
		}
	}
	return nil
}

// InheritPods takes over the pods that the other layout has and this one has not.
func (r *Runtime) InheritPods(o Other) error {
	theirs, err := entriesOf[uint64, abiPod](o, "km_pods", r.maps["km_pods"])
	if err != nil {
		return err
	}
	for cookie, p := range theirs {
		if err := r.maps["km_pods"].Update(cookie, &p, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("map km_pods: %w", err)
		}
	}
	return nil
}

// TakeOver makes the programs of this layout those of every pod. upgrade is to update
// the links of the pods. Until then the programs of the others go on; after it what is
// not of this layout is handed on to them, and they make no pod's enrolment any more.
//
// It may be interrupted, and done again at any time.
func (r *Runtime) TakeOver(upgrade func() error) error {
	others, err := Others(r.BPFFS)
	if err != nil {
		return err
	}
	if err := r.sharePorts(others); err != nil {
		return err
	}
	inPlace[abiLimits](r.memory["km_limits"])[0].Quota = r.quota
	// When a downgrade finds its own layout behind the one that is in use, the chain is
	// a ring for a moment: nothing is lost, and the kernel ends it after 33 programs.
	if err := r.chain(others, !r.fresh); err != nil {
		return err
	}
	for _, o := range others {
		if err := r.InheritPods(o); err != nil {
			return err
		}
	}
	if err := upgrade(); err != nil {
		return err
	}
	if err := r.chain(others, false); err != nil {
		return err
	}
	for _, o := range others {
		if err := o.setPhase(PhaseLoaded, r.state); err != nil {
			return err
		}
	}
	return nil
}

// chain makes each layout hand on to the next one that still has a program for the hook,
// beginning with this one; the last one to this one again, if ring, else to nobody. It
// goes from the end to the beginning, so that nothing is left out in between.
func (r *Runtime) chain(others []Other, ring bool) error {
	for _, hook := range handing {
		var next *ebpf.Program
		if ring {
			next = r.progs[hook]
		}
		var open []*ebpf.Program
		err := func() error {
			for i := len(others) - 1; i >= 0; i-- {
				o := others[i]
				p, err := ebpf.LoadPinnedProgram(o.progPath(hook), nil)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return fmt.Errorf("layout %d: program %s: %w", o.ABI, hook, err)
				}
				open = append(open, p)
				m, err := ebpf.LoadPinnedMap(o.mapPath(olderPrefix+hook), nil)
				if err != nil {
					return fmt.Errorf("layout %d: map %s: %w", o.ABI, olderPrefix+hook, err)
				}
				err = errors.Join(handOn(m, next), m.Close())
				if err != nil {
					return fmt.Errorf("layout %d: program %s: %w", o.ABI, hook, err)
				}
				next = p
			}
			if err := handOn(r.maps[olderPrefix+hook], next); err != nil {
				return fmt.Errorf("program %s: %w", hook, err)
			}
			return nil
		}()
		for _, p := range open {
			p.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func handOn(m *ebpf.Map, to *ebpf.Program) error {
	if to != nil {
		return m.Put(uint32(0), to)
	}
	if err := m.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// sharePorts gives each layout that makes legs ports of its own, by their lowest bits,
// and reserves in each those that another one's legs have there.
func (r *Runtime) sharePorts(others []Other) error {
	var makers []Other
	layouts := []uint32{ABI}
	for _, o := range others {
		if o.Flows() {
			makers = append(makers, o)
			layouts = append(layouts, o.ABI)
		}
	}
	mask := tellApart(layouts)
	share := func(abi uint32) func(*abiLimits) {
		return func(l *abiLimits) {
			l.PortMask, l.PortValue = uint32(mask), abi&uint32(mask)
		}
	}
	share(ABI)(&inPlace[abiLimits](r.memory["km_limits"])[0])
	for _, o := range makers {
		if err := o.limits(r.maps["km_limits"], share(o.ABI)); err != nil {
			return err
		}
	}
	legs := map[uint32]*ebpf.Map{ABI: r.maps["km_legs"]}
	for _, o := range makers {
		m, err := o.open("km_legs", r.maps["km_legs"])
		if err != nil {
			return err
		}
		defer m.Close()
		legs[o.ABI] = m
	}
	for from, m := range legs {
		if len(legs) == 1 {
			break
		}
		all, err := entries[LegKey, legRef](m)
		if err != nil {
			return err
		}
		for to, m := range legs {
			if to == from {
				continue
			}
			if err := reserve(m, all, mask, uint16(to)&mask); err != nil {
				return fmt.Errorf("ports of legs: %w", err)
			}
		}
	}
	return nil
}

type legRef = abiLegRef

// reserve enters the legs of another layout at ports that are this one's to give. Of a
// table that is half full the rest is left: its own legs need it.
func reserve(m *ebpf.Map, legs map[LegKey]legRef, mask, value uint16) error {
	room := int(m.MaxEntries() / 2)
	for k, ref := range legs {
		if ref.Ours == 0 || PortWord(k.LegPort)&mask != value {
			continue
		}
		if room--; room < 0 {
			return nil
		}
		if err := m.Update(&k, &legRef{}, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	return nil
}

// tellApart returns the mask of the fewest low bits in which all numbers differ.
func tellApart(numbers []uint32) uint16 {
	for n := range 14 {
		mask := uint32(1)<<n - 1
		seen := make(map[uint32]bool)
		for _, v := range numbers {
			seen[v&mask] = true
		}
		if len(seen) == len(numbers) {
			return uint16(mask)
		}
	}
	return uint16(1)<<bits.Len(uint(len(numbers))) - 1
}

// CloseFlows makes the programs of another layout take no new connection: there is no such
// one any more, but for sockets that were connected before and connect anew.
func (r *Runtime) CloseFlows(o Other) error {
	return o.limits(r.maps["km_limits"], func(l *abiLimits) { l.Quota = 0 })
}

// Retire removes from another layout what only open flows need. What was bound at
// connect goes on to be shown its address, and to be counted.
func (r *Runtime) Retire(o Other) error {
	var progs, maps []string
	for _, h := range append(append([]Hook(nil), CgroupHooks...), TCHooks...) {
		if strings.HasPrefix(h.Name, "tc_") || strings.HasPrefix(h.Name, "connect") || strings.HasPrefix(h.Name, "sendmsg") {
			progs = append(progs, o.progPath(h.Name))
		}
	}
	for _, name := range tcMaps {
		maps = append(maps, o.mapPath(name))
	}
	// Programs go on without the pins of their maps. The first one tells that this has
	// begun, the programs that it has not ended.
	if err := o.unpin(maps...); err != nil {
		return err
	}
	if err := o.unpin(progs...); err != nil {
		return err
	}
	// A map of programs forgets them with its pin.
	if err := errors.Join(r.rechain(), o.unpin(o.mapPath(olderPrefix+"tc_ingress"), o.mapPath(olderPrefix+"tc_egress"))); err != nil {
		return err
	}
	return r.freePorts()
}

func (r *Runtime) rechain() error {
	others, err := Others(r.BPFFS)
	if err != nil {
		return err
	}
	return r.chain(others, false)
}

// freePorts takes all ports back when no other layout makes legs any more.
func (r *Runtime) freePorts() error {
	others, err := Others(r.BPFFS)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.Flows() {
			return nil
		}
	}
	l := &inPlace[abiLimits](r.memory["km_limits"])[0]
	l.PortMask, l.PortValue = 0, 0
	all, err := entries[LegKey, legRef](r.maps["km_legs"])
	if err != nil {
		return err
	}
	for k, ref := range all {
		if ref.Ours != 0 {
			continue
		}
		if err := r.maps["km_legs"].Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("map km_legs: %w", err)
		}
	}
	return nil
}

// Remove removes another layout. What it has counted stays.
func (r *Runtime) Remove(o Other) error {
	if err := r.keepCounts(o); err != nil {
		return err
	}
	if err := o.unpin(func() (paths []string) {
		for _, hook := range handing {
			paths = append(paths, o.progPath(hook))
		}
		return paths
	}()...); err != nil {
		return err
	}
	if err := r.rechain(); err != nil {
		return err
	}
	if err := os.RemoveAll(o.dir); err != nil {
		return fmt.Errorf("layout %d: %w", o.ABI, err)
	}
	return r.freePorts()
}
