// SPDX-License-Identifier: Apache-2.0

package match

import (
	"testing"
	"unsafe"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/head"
)

// kernel is the machine of bpf/table.h, in the kernel. One goroutine may use it.
type kernel struct {
	runner *bpf.HeadRunner
	used   int // bytes of the slab
}

func newKernel(t testing.TB) *kernel {
	t.Helper()
	if a, b := unsafe.Sizeof(automaton.State{}), unsafe.Sizeof(bpf.HeadResult{}.Machine); a != b {
		t.Fatalf("the state of the Go machine has %d bytes, of the kernel's %d", a, b)
	}
	runner, err := bpf.NewHeadRunner()
	if err != nil {
		t.Fatalf("the machine cannot be loaded (as root, on a kernel with bpf_loop): %v", err)
	}
	t.Cleanup(func() {
		if err := runner.Close(); err != nil {
			t.Error(err)
		}
	})
	return &kernel{runner: runner}
}

// load puts a program where the machine finds it, over those that were there long ago.
func (k *kernel) load(p *automaton.Program) (place uint32) {
	if k.used+len(p.Bytes) > len(k.runner.Slab) {
		k.used = 0
	}
	place = uint32(k.used)
	k.used += copy(k.runner.Slab[place:], p.Bytes)
	return place
}

// feed is the function feed, in the kernel. What it returns is a Go machine in the
// state in which the kernel's is.
func (k *kernel) feed(p *automaton.Program, place uint32, b []byte, cuts uint64) (*automaton.Machine, error) {
	piece := k.runner.Piece(0)
	b = b[:min(len(b), head.MaxHead+1)] // the last one is not read, but counted
	copy(piece.Bytes[:], b)
	piece.Program, piece.First, piece.Fresh = place, 0, 1
	run := func(end int) (*bpf.HeadResult, error) {
		piece.End = uint32(end)
		_, result, err := k.runner.Run(1, 1)
		piece.Fresh = 0
		return result, err
	}
	for i := range b {
		if cuts>>(i%64)&1 == 1 {
			if _, err := run(i); err != nil {
				return nil, err
			}
		}
	}
	result, err := run(len(b))
	if err != nil {
		return nil, err
	}
	m := automaton.NewMachine(p)
	m.State = *(*automaton.State)(unsafe.Pointer(&result.Machine))
	for w := range m.Candidates {
		if result.Found.Summary>>w&1 == 1 { // the others are left over
			m.Candidates[w] = result.Found.Words[w]
		}
	}
	return m, nil
}
