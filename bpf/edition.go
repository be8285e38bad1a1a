// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What the linker may set, for tests of an update: -X kmesh/bpf.layout=5 makes a program
// of another layout, -X kmesh/bpf.edition=1 one with other programs.
var (
	layout  = "4"
	edition = "0"
)

// ABI is the number of the layout that abi.h describes.
var ABI = number(layout)

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		panic("kmesh/bpf: set by the linker: " + err.Error())
	}
	return uint32(n)
}

// changed makes programs others that do the same: the second instruction of each writes
// a register that nothing has been put into yet.
func changed(spec *ebpf.CollectionSpec, edition uint32) *ebpf.CollectionSpec {
	if spec == nil || edition == 0 {
		return spec
	}
	for _, p := range spec.Programs {
		first := p.Instructions[0]
		unused := asm.R5
		if first.Dst == unused {
			unused = asm.R4
		}
		p.Instructions = append(asm.Instructions{first, asm.Mov.Imm(unused, int32(edition))}, p.Instructions[1:]...)
	}
	return spec
}
