// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf/asm"
)

// loopExtra is what a function's stack grows by when the kernel puts bpf_loop into it; the bound was checked before
// (optimize_bpf_loop).
const loopExtra = 3 * 8

// frame is what a function takes of the limit: as Linux 6.1 rounds it; later kernels round to 16 bytes.
func frame(depth int) int { return (max(depth, 1) + 31) / 32 * 32 }

// call is one function that calls another, or has bpf_loop call it.
type call struct {
	at     int  // the instruction
	to     int  // the function's number
	goes   int  // where that begins
	handed bool // to bpf_loop, or to what was put in place of it
}

// callOf tells whether an instruction is a call, as the kernel shows them of a program that it has compiled: beside
// where it leads to there is the number of the function.
func callOf(ins *asm.Instruction, at int) (call, bool) {
	switch {
	case ins.OpCode.JumpOp() == asm.Call && ins.Src == asm.PseudoCall:
		return call{at, int(int32(ins.Constant)), at + 1 + int(ins.Offset), false}, true
	case ins.OpCode.IsDWordLoad() && ins.Src == asm.PseudoFunc:
		return call{at, int(ins.Constant >> 32), at + 1 + int(int32(ins.Constant)), true}, true
	}
	return call{}, false
}

// deepest is the stack of the deepest chain of calls, as the verifier bounds it (check_max_stack_depth). insns are the
// program's as the kernel runs them, depths the stack of each function.
func deepest(insns asm.Instructions, depths []int) (int, error) {
	var calls []call
	starts := make([]int, len(depths)) // of functions; the first is at 0
	for iter := insns.Iterate(); iter.Next(); {
		c, ok := callOf(iter.Ins, int(iter.Offset))
		if !ok {
			continue
		}
		if c.to <= 0 || c.to >= len(depths) || starts[c.to] != 0 && starts[c.to] != c.goes {
			return 0, fmt.Errorf("instruction %d calls function %d at %d: there are %d, and it was at %d before",
				c.at, c.to, c.goes, len(depths), starts[max(0, min(c.to, len(depths)-1))])
		}
		starts[c.to] = c.goes
		calls = append(calls, c)
	}
	callees := make([][]int, len(depths))
	bound := slices.Clone(depths)
	for f, called := range byCaller(calls, starts) {
		for to, how := range called {
			callees[f] = append(callees[f], to)
			if how.handed && how.called { // the loop is in the function itself
				bound[f] = depths[f] - loopExtra
			}
		}
	}
	for f := 1; f < len(starts); f++ {
		if starts[f] == 0 {
			return 0, fmt.Errorf("nobody calls function %d", f)
		}
	}
	below := make([]int, len(depths)) // of a function and what it calls; recursion is not allowed
	var walk func(f int) int
	walk = func(f int) int {
		if below[f] == 0 {
			most := 0
			for _, to := range callees[f] {
				most = max(most, walk(to))
			}
			below[f] = frame(bound[f]) + most
		}
		return below[f]
	}
	return walk(0), nil
}

type manner struct{ called, handed bool }

// byCaller tells for each function which others it calls, and how.
func byCaller(calls []call, starts []int) []map[int]manner {
	out := make([]map[int]manner, len(starts))
	for i := range out {
		out[i] = make(map[int]manner)
	}
	for _, c := range calls {
		from := 0
		for f, start := range starts {
			if start <= c.at && start >= starts[from] {
				from = f
			}
		}
		how := out[from][c.to]
		how.called = how.called || !c.handed
		how.handed = how.handed || c.handed
		out[from][c.to] = how
	}
	return out
}
