// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// HeadResult is what the machine of table.h knows after a run, HeadPiece what it reads,
// PlainResult what plain.h says of a piece.
type (
	HeadResult  = headHeadResult
	HeadPiece   = headHeadPiece
	PlainResult = headPlainResult
)

// Sizes of table.h and plain.h.
const (
	// SlabSize is that of a slab, in which compiled virtual hosts lie.
	SlabSize = 1 << 22
	// MaxPieces is the number of pieces that a HeadRunner holds.
	MaxPieces = 1024
	// PlainBytes is the length of the longest head that plain.h reads.
	PlainBytes = 1024
)

// HeadRunner runs the machine, and plain.h, over heads in the kernel, by BPF_PROG_TEST_RUN: for
// tests and measurements, not for traffic. Nothing of it is pinned.
type HeadRunner struct {
	coll        *ebpf.Collection
	prog, plain *ebpf.Program
	maps        [][]byte
	// Slab is the slab's memory.
	Slab   []byte
	pieces []HeadPiece
	result *HeadResult
	plains []PlainResult
	turn   *[2]uint32
}

// NewHeadRunner loads the programs.
func NewHeadRunner() (*HeadRunner, error) {
	spec, err := loadHead()
	if err != nil {
		return nil, fmt.Errorf("head program: %w", err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		return nil, fmt.Errorf("load head program: %w", err)
	}
	h := &HeadRunner{coll: coll, prog: coll.Programs["head_run"], plain: coll.Programs["plain_run"]}
	memory := func(name string) []byte {
		m := coll.Maps[name]
		if err != nil {
			return nil
		}
		size := int(m.MaxEntries()) * (int(m.ValueSize()+7) &^ 7)
		size = (size + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
		var mem []byte
		if mem, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			err = fmt.Errorf("map %s: mmap: %w", name, err)
			return nil
		}
		h.maps = append(h.maps, mem)
		return mem
	}
	slab, pieces, result, turn := memory("head_slabs"), memory("head_pieces"), memory("head_results"), memory("head_turns")
	plains := memory("plain_results")
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.Slab = slab
	h.pieces = unsafe.Slice((*HeadPiece)(unsafe.Pointer(&pieces[0])), MaxPieces)
	h.result = (*HeadResult)(unsafe.Pointer(&result[0]))
	h.plains = unsafe.Slice((*PlainResult)(unsafe.Pointer(&plains[0])), MaxPieces)
	h.turn = (*[2]uint32)(unsafe.Pointer(&turn[0]))
	return h, nil
}

// Program is the program that runs the machine; it keeps what the verifier says of it.
func (h *HeadRunner) Program() *ebpf.Program { return h.prog }

// Piece returns a piece, to be filled in.
func (h *HeadRunner) Piece(i int) *HeadPiece { return &h.pieces[i] }

// Run reads the first n pieces in turn, repeat of them all in all, and returns the
// time that the kernel took for each, and what the machine knows after the last one.
func (h *HeadRunner) Run(n, repeat int) (time.Duration, *HeadResult, error) {
	took, err := h.run(h.prog, n, repeat)
	return took, h.result, err
}

// RunPlain reads each of the first n pieces by plain.h, in turn, repeat of them all in
// all: as the beginning of a response, of which End bytes are there. It returns the time
// that the kernel took for each, and what was said of each.
func (h *HeadRunner) RunPlain(n, repeat int) (time.Duration, []PlainResult, error) {
	took, err := h.run(h.plain, n, repeat)
	return took, h.plains[:n], err
}

func (h *HeadRunner) run(prog *ebpf.Program, n, repeat int) (time.Duration, error) {
	*h.turn = [2]uint32{uint32(n), 0}
	var packet [64]byte
	ret, took, err := prog.Benchmark(packet[:], repeat, nil)
	if err != nil {
		return 0, fmt.Errorf("run head program: %w", err)
	}
	if ret != 0 {
		return 0, fmt.Errorf("run head program: it returned %d", ret)
	}
	return took, nil
}

// Close frees everything.
func (h *HeadRunner) Close() error {
	var errs []error
	for _, mem := range h.maps {
		errs = append(errs, unix.Munmap(mem))
	}
	h.coll.Close()
	return errors.Join(errs...)
}
