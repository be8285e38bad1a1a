// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"kmesh/bpf"
	"kmesh/test/spoil"
)

// What others, or a fault, may do to a pod.

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func attachExclusive(t testing.TB, cgroup string) { taken(t)(spoil.Exclusive(cgroup)) }

func fillCgroup(t testing.TB, cgroup string) { taken(t)(spoil.FillCgroup(cgroup)) }

// fillInterface attaches to eth0's egress until the kernel takes no more.
func fillInterface(t testing.TB, path string) {
	t.Helper()
	inNetns(t, path, func() error {
		index, err := ifindex("eth0")
		if err != nil {
			return err
		}
		taken(t)(spoil.FillInterface(index))
		return nil
	})
}

// taken takes what was done back when the test ends.
func taken(t testing.TB) func(undo func() error, err error) {
	return func(undo func() error, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := undo(); err != nil {
				t.Error(err)
			}
		})
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
