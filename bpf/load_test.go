// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// mountBPFFS mounts a bpf filesystem of the test's own.
func mountBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a bpf filesystem (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "kmesh")
}

func mustLoad(t *testing.T, dir string) *Runtime {
	t.Helper()
	rt, err := Load(LoadOptions{BPFFS: dir})
	if err != nil {
		var v *ebpf.VerifierError
		if errors.As(err, &v) {
			t.Fatalf("%+v", v)
		}
		t.Fatal(err)
	}
	return rt
}

// TestEveryProgramLoads on this kernel, and no feature is missing: this machine's
// kernel has them all, so a probe that says otherwise is wrong. TestMapIterator sees to
// the one that depends on more than the kernel's version.
func TestEveryProgramLoads(t *testing.T) {
	rt := mustLoad(t, mountBPFFS(t))
	defer rt.Close()
	for feature, err := range rt.Unsupported {
		if feature != FeatureMapIterator {
			t.Errorf("%s: %v", feature, err)
		}
	}
	for _, h := range append(append([]Hook(nil), CgroupHooks...), TCHooks...) {
		p, err := rt.Program(h.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		// Linux 5.16 counts what the verifier walks; a jump in it is worth a look.
		if n, ok := info.VerifiedInstructions(); ok {
			t.Logf("%-12s verified instructions %d", h.Name, n)
		}
	}
}

// TestWithoutSockDestroy: a kernel before 6.5 says so.
func TestWithoutSockDestroy(t *testing.T) {
	rt := mustLoad(t, mountBPFFS(t))
	defer rt.Close()
	rt.Unsupported[FeatureSockDestroy] = errors.New("no such kfunc")
	if _, err := rt.ReapUDP(); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("reap: %v, want ErrNotSupported", err)
	}
}

// TestMapIterator: it is used wherever the kernel permits any iterator over a map's
// elements.
func TestMapIterator(t *testing.T) {
	rt := mustLoad(t, mountBPFFS(t))
	defer rt.Close()
	any, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "bpf_sk_storage_map", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err == nil {
		any.Close()
	}
	if refused := rt.Unsupported[FeatureMapIterator]; (refused == nil) != (err == nil) {
		t.Errorf("ours: %v, the smallest one: %v", refused, err)
	}
	if _, err := rt.Sockets(); err != nil {
		t.Error(err)
	}
}

func TestLoadAgainChangesNothing(t *testing.T) {
	dir := mountBPFFS(t)
	first := mustLoad(t, dir)
	defer first.Close()
	if err := first.SetState(PhaseLive, 7, 42); err != nil {
		t.Fatal(err)
	}
	again := mustLoad(t, dir)
	defer again.Close()
	if len(again.Replaced) != 0 {
		t.Errorf("replaced %v", again.Replaced)
	}
	st, err := ReadState(dir)
	if err != nil || st != (State{ABI, PhaseLive, 7}) {
		t.Errorf("state %+v, %v", st, err)
	}
	if next, err := again.NextID(); err != nil || next != 42 {
		t.Errorf("next id %d, %v", next, err)
	}
}

// TestProgramsOfLostMapsAreReplaced: their tags are the same, but they work on maps
// that nobody writes any more.
func TestProgramsOfLostMapsAreReplaced(t *testing.T) {
	dir := mountBPFFS(t)
	mustLoad(t, dir).Close()
	if err := os.RemoveAll(filepath.Dir(MapPath(dir, "x"))); err != nil {
		t.Fatal(err)
	}
	rt := mustLoad(t, dir)
	defer rt.Close()
	if want := len(CgroupHooks) + len(TCHooks); len(rt.Replaced) != want {
		t.Errorf("replaced %v, want all of %d", rt.Replaced, want)
	}
}

func TestOtherLayoutIsRefused(t *testing.T) {
	dir := mountBPFFS(t)
	if err := os.MkdirAll(filepath.Dir(MapPath(dir, "x")), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "km_services", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Pin(MapPath(dir, "km_services")), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(LoadOptions{BPFFS: dir}); err == nil || !strings.Contains(err.Error(), "km_services") || !strings.Contains(err.Error(), "uninstall") {
		t.Errorf("got %v, want an error that names the map and the remedy", err)
	}
}

func TestSizesCanBeChosen(t *testing.T) {
	dir := mountBPFFS(t)
	for _, want := range []uint32{77, 77} { // what is pinned keeps its size
		rt, err := Load(LoadOptions{BPFFS: dir, MaxEntries: map[string]uint32{"km_services": 77}})
		if err != nil {
			t.Fatal(err)
		}
		if got := rt.Services.MaxEntries(); got != want {
			t.Errorf("%d entries, want %d", got, want)
		}
		rt.Close()
	}
}

// TestFlowsPerPodIsASetting: a helper that is started anew may change it, and one that
// does not name it leaves it; where another layout has taken over, it stays 0.
func TestFlowsPerPodIsASetting(t *testing.T) {
	dir := mountBPFFS(t)
	for _, tt := range []struct{ set, retired, want uint32 }{
		{set: 0, want: DefaultFlowsPerPod}, {set: 7, want: 7}, {set: 0, want: 7}, {set: 8, want: 8}, {set: 9, retired: 1, want: 0},
	} {
		rt, err := Load(LoadOptions{BPFFS: dir})
		if err != nil {
			t.Fatal(err)
		}
		if tt.retired != 0 {
			inPlace[abiLimits](rt.memory["km_limits"])[0].Quota = 0
		}
		rt.Close()
		if rt, err = Load(LoadOptions{BPFFS: dir, FlowsPerPod: tt.set}); err != nil {
			t.Fatal(err)
		}
		if got := inPlace[abiLimits](rt.memory["km_limits"])[0].Quota; got != tt.want {
			t.Errorf("set to %d, retired %d: the quota is %d, want %d", tt.set, tt.retired, got, tt.want)
		}
		rt.Close()
	}
}

func TestCheckBPFFS(t *testing.T) {
	good := mountBPFFS(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, ok := range map[string]bool{
		good: true, filepath.Join(good, "a", "b"): true, filepath.Dir(good): true,
		t.TempDir(): false, "/": false, "/nowhere/at/all": false, file: false,
	} {
		err := CheckBPFFS(dir)
		if (err == nil) != ok {
			t.Errorf("%s: %v", dir, err)
		}
		if err != nil && !strings.Contains(err.Error(), "mount -t bpf") {
			t.Errorf("%s: %q names no remedy", dir, err)
		}
	}
}

func TestPods(t *testing.T) {
	dir := mountBPFFS(t)
	mustLoad(t, dir).Close()
	pods, err := OpenPods(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer pods.Close()
	want := map[uint64]Pod{
		1: {Scope: 3, IPv4: netip.MustParseAddr("10.0.0.1"), IPv6: netip.MustParseAddr("fd00::1")},
		2: {},
	}
	for cookie, p := range want {
		if err := pods.Put(cookie, p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := pods.List()
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for range 2 {
		if err := pods.Delete(1); err != nil {
			t.Error(err)
		}
	}
}

func FuzzAddrWords(f *testing.F) {
	for _, s := range []string{"0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "::1", "fd00::1:2:3", "::ffff:10.0.0.1"} {
		b := netip.MustParseAddr(s).As16()
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != 16 {
			return
		}
		a := netip.AddrFrom16([16]byte(b))
		words, family := AddrWords(a)
		if back := AddrOf(words, family); back != a.Unmap() {
			t.Errorf("%v came back as %v", a, back)
		}
	})
}

// TestABI: the layout's number is the one of the header that describes it.
func TestABI(t *testing.T) {
	text, err := os.ReadFile("abi.h")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("\n#define KM_ABI %d\n", ABI); !strings.Contains(string(text), want) {
		t.Errorf("abi.h has no line %q", want)
	}
}
