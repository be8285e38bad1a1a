// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// ours is the layout of this program, whatever as says.
var ours = ABI

// as runs f in a program of another layout.
func as(layout uint32, f func()) {
	was := ABI
	ABI = layout
	defer func() { ABI = was }()
	f()
}

func other(t *testing.T, dir string, layout uint32) Other {
	t.Helper()
	all, err := Others(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if o.ABI == layout {
			return o
		}
	}
	t.Fatalf("no layout %d in %v", layout, all)
	return Other{}
}

// next is the id of the program that a layout hands on to; 0: none.
func next(t *testing.T, dir string, layout uint32, hook string) (id ebpf.ProgramID) {
	t.Helper()
	as(layout, func() {
		m, err := ebpf.LoadPinnedMap(MapPath(dir, olderPrefix+hook), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var p uint32
		if err := m.Lookup(uint32(0), &p); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		id = ebpf.ProgramID(p)
	})
	return id
}

func idOf(t *testing.T, rt *Runtime, hook string) ebpf.ProgramID {
	t.Helper()
	p, err := rt.Program(hook)
	if err != nil {
		t.Fatal(err)
	}
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// TestHandOver: from one layout to the next, and back while the first one still has flows.
func TestHandOver(t *testing.T) {
	dir := mountBPFFS(t)
	old := mustLoad(t, dir)
	defer old.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(old.SetState(PhaseLive, 7, 50))
	name := Name{Kind: NameService, Len: 3}
	copy(name.Name[:], "web")
	must(old.Names.Put(uint32(33), &name))
	must(old.Map("km_pods").Put(uint64(5), &abiPod{Scope: 9}))
	must(old.Stats.Put(&StatsKey{Service: 33}, &Stats{Opened: 2, Sent: 7}))
	leg := LegKey{Pod: 5, Port: PortWord(80), LegPort: PortWord(uint16(0x4010 | (ours+1)&1)), Family: 4}
	even := leg
	even.LegPort = PortWord(uint16(0x4010 | ours&1))
	for _, k := range []LegKey{leg, even} {
		must(old.Map("km_legs").Put(&k, &legRef{Slot: 1, Ours: 1}))
	}

	as(ours+1, func() {
		rt := mustLoad(t, dir)
		defer rt.Close()
		must(rt.Inherit())
		must(rt.Inherit()) // after one that was interrupted
		if st, err := rt.State(); err != nil || st.Phase != PhaseLoaded || st.Generation != 7 {
			t.Errorf("state %+v, %v", st, err)
		}
		if id, err := rt.NextID(); err != nil || id != 50 {
			t.Errorf("next id %d, %v", id, err)
		}
		var n Name
		if err := rt.Names.Lookup(uint32(33), &n); err != nil || n != name {
			t.Errorf("the name: %+v, %v", n, err)
		}
		must(rt.SetState(PhaseLive, 8, 51))
		upgraded := false
		must(rt.TakeOver(func() error {
			upgraded = true
			for _, hook := range handing {
				if next(t, dir, ours+1, hook) != idOf(t, old, hook) {
					t.Errorf("%s hands on to %d", hook, next(t, dir, ours+1, hook))
				}
				if next(t, dir, ours, hook) != 0 {
					t.Errorf("%s of the old layout hands on too", hook)
				}
			}
			if !other(t, dir, ours).Live() {
				t.Error("the old layout was let go before the pods were taken over")
			}
			return nil
		}))
		if o := other(t, dir, ours); !upgraded || o.Live() || !o.Flows() {
			t.Errorf("upgraded %v, %+v", upgraded, o)
		}
		var ref legRef
		if err := rt.Map("km_legs").Lookup(&leg, &ref); err != nil || ref.Ours != 0 {
			t.Errorf("the old leg's port, which is ours, is not reserved: %+v, %v", ref, err)
		}
		if err := rt.Map("km_legs").Lookup(&even, &ref); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("the old leg's port, which is not ours: %v", err)
		}
		for _, rt := range []*Runtime{old, rt} {
			l := inPlace[abiLimits](rt.memory["km_limits"])[0]
			if l.PortMask != 1 || l.Quota == 0 {
				t.Errorf("limits %+v", l)
			}
		}
		must(rt.CloseFlows(other(t, dir, ours)))
		if l := inPlace[abiLimits](old.memory["km_limits"])[0]; l.Quota != 0 {
			t.Errorf("the old layout takes flows: %+v", l)
		}
		if err := rt.TakeOver(func() error { return errors.New("a pod that is going") }); err == nil {
			t.Error("an upgrade that failed was taken for one")
		}
		must(rt.Stats.Put(&StatsKey{Service: 33}, &Stats{Opened: 1}))
	})

	// Back, while there are flows of both.
	back := mustLoad(t, dir)
	defer back.Close()
	must(back.Inherit())
	must(back.SetState(PhaseLive, 9, 52))
	must(back.TakeOver(func() error {
		if next(t, dir, ours, "tc_egress") == 0 || next(t, dir, ours+1, "tc_egress") != idOf(t, back, "tc_egress") {
			t.Error("on the way back something is left out for a moment")
		}
		return nil
	}))
	if next(t, dir, ours+1, "tc_egress") != 0 || next(t, dir, ours, "tc_egress") == 0 {
		t.Error("not handed on the other way round")
	}
	if l := inPlace[abiLimits](back.memory["km_limits"])[0]; l.Quota != DefaultFlowsPerPod || l.PortMask != 1 || l.PortValue != ours&1 {
		t.Errorf("limits %+v", l)
	}
	sum := func() (s Stats) {
		maps, done, err := back.Counted("km_stats")
		must(err)
		defer done()
		for _, m := range maps {
			var v Stats
			if err := m.Lookup(&StatsKey{Service: 33}, &v); err == nil {
				Sum(&s, &v)
			}
		}
		return s
	}
	want := Stats{Opened: 3, Sent: 7}
	if s := sum(); s != want {
		t.Errorf("counted %+v", s)
	}
	o := other(t, dir, ours+1)
	must(back.Retire(o))
	must(back.Retire(o))
	if o.Flows() || next(t, dir, ours, "tc_egress") != 0 || next(t, dir, ours, "sock_ops") == 0 {
		t.Error("retired, it has flows, or what was bound is forgotten")
	}
	if l := inPlace[abiLimits](back.memory["km_limits"])[0]; l.PortMask != 0 {
		t.Errorf("limits %+v", l)
	}
	all, err := entries[LegKey, legRef](back.Map("km_legs"))
	if err != nil || len(all) != 2 {
		t.Errorf("legs %v, %v: what was reserved stays", all, err)
	}
	must(back.Remove(o))
	if s := sum(); s != want {
		t.Errorf("counted %+v when the other layout is gone", s)
	}
	left, err := filepath.Glob(filepath.Join(dir, "v*"))
	if err != nil || fmt.Sprint(left) != fmt.Sprint([]string{Dir(dir)}) || next(t, dir, ours, "sock_ops") != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	must(os.MkdirAll(filepath.Join(dir, "v9", "maps"), 0o700)) // a helper that died while it began
	must(back.Inherit())
	must(Unpin(dir))
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

func TestTellApart(t *testing.T) {
	for _, c := range []struct {
		numbers []uint32
		mask    uint16
	}{{[]uint32{2}, 0}, {[]uint32{2, 3}, 1}, {[]uint32{2, 4}, 3}, {[]uint32{2, 3, 4}, 3}, {[]uint32{3, 11}, 15}} {
		if got := tellApart(c.numbers); got != c.mask {
			t.Errorf("%v are told apart by %#x, want %#x", c.numbers, got, c.mask)
		}
	}
}
