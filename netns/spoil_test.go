// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// What others, or a fault, may do to a pod.

func connect4(t testing.TB) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func attachExclusive(t testing.TB, cgroup string) {
	t.Helper()
	dir, p := openDir(t, cgroup), connect4(t)
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect}); err != nil {
			t.Error(err)
		}
	})
}

// fillInterface attaches to eth0's egress until the kernel takes no more.
func fillInterface(t testing.TB, path string) {
	t.Helper()
	inNetns(t, path, func() error {
		index, err := ifindex("eth0")
		if err != nil {
			return err
		}
		for {
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
			})
			if err != nil {
				return err
			}
			t.Cleanup(func() { p.Close() })
			l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXEgress})
			if errors.Is(err, unix.ERANGE) {
				return nil
			}
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
		}
	})
}

func fillCgroup(t testing.TB, cgroup string) {
	t.Helper()
	dir := openDir(t, cgroup)
	for {
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: connect4(t), Attach: ebpf.AttachCGroupInet4Connect})
		if errors.Is(err, unix.E2BIG) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

// replacePrograms pins copies of the programs in the place of the pinned ones.
func replacePrograms(t testing.TB, n *node) {
	t.Helper()
	if err := os.RemoveAll(filepath.Dir(bpf.ProgPath(n.bpffs, "x"))); err != nil {
		t.Fatal(err)
	}
	n.load()
}

func inNetns(t testing.TB, path string, f func() error) {
	t.Helper()
	h, err := ns.GetNS(path)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Do(func(ns.NetNS) error { return f() }); err != nil {
		t.Fatal(err)
	}
}
