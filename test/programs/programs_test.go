// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"

	"kmesh/bpf"
)

// TestRoom: on this kernel no program comes near what the verifier takes. Another kernel's may need more.
func TestRoom(t *testing.T) {
	k, err := Measure()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Linux %s\n%s", k.Release, Text(k))
	var names []string
	for _, p := range k.Programs {
		names = append(names, p.Name)
		if p.Instructions == 0 || p.Stack == 0 || p.Translated == 0 || p.Jited == 0 {
			t.Errorf("%+v: the kernel does not tell", p)
		}
		if p.Instructions > MaxInstructions*8/10 {
			t.Errorf("%s: the verifier walks %d instructions, of %d", p.Name, p.Instructions, MaxInstructions)
		}
		// Newer kernels round less, and would load what 6.1 does not.
		if p.Stack > MaxStack {
			t.Errorf("%s: a chain of calls takes %d bytes of stack, of %d: Linux 6.1 does not load it", p.Name, p.Stack, MaxStack)
		}
	}
	for _, h := range append(slices.Clone(bpf.CgroupHooks), bpf.TCHooks...) {
		if !slices.Contains(names, h.Name) {
			t.Errorf("nothing is told of %s", h.Name)
		}
	}
}

func TestParse(t *testing.T) {
	log := "verification time 318563 usec\nstack depth 96+16+0\n" +
		"processed 129949 insns (limit 1000000) max_states_per_insn 14 total_states 3673 peak_states 2129 mark_read 0\n"
	m, depths, err := parse(log)
	want := Program{Instructions: 129949, States: 2129, Verification: 318563 * time.Microsecond}
	if err != nil || m != want || !slices.Equal(depths, []int{96, 16, 0}) {
		t.Errorf("%+v, %v, %v", m, depths, err)
	}
	if _, _, err := parse("processed 3 insns"); err == nil {
		t.Error("a log without statistics was read")
	}
}

// called is a call as the kernel shows it, at an instruction, of a function that begins at another.
func called(function, at, start int) asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall, Offset: int16(start - at - 1), Constant: int64(function)}
}

// handed is a function's address, which takes the place of two instructions.
func handed(function, at, start int) asm.Instruction {
	return asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Src: asm.PseudoFunc, Constant: int64(function)<<32 | int64(uint32(start-at-1))}
}

func TestDeepest(t *testing.T) {
	ret := asm.Return()
	tests := []struct {
		name   string
		insns  asm.Instructions
		depths []int
		want   int
		err    string
	}{
		{"alone", asm.Instructions{ret}, []int{40}, 64, ""},
		{"without a stack", asm.Instructions{ret}, []int{0}, 32, ""},
		{"the deeper of two", asm.Instructions{called(1, 0, 3), called(2, 1, 4), ret, ret, ret}, []int{8, 32, 33}, 96, ""},
		{"a chain", asm.Instructions{called(1, 0, 2), ret, called(2, 2, 4), ret, ret}, []int{8, 8, 8}, 96, ""},
		{"backwards", asm.Instructions{called(2, 0, 3), ret, ret, called(1, 3, 2), ret}, []int{8, 64, 8}, 128, ""},
		{"a callback", asm.Instructions{handed(1, 0, 4), asm.FnLoop.Call(), ret, ret}, []int{56, 8}, 96, ""},
		{"a loop in place", asm.Instructions{handed(1, 0, 4), called(1, 2, 4), ret, ret}, []int{56, 8}, 64, ""},
		{"nobody calls", asm.Instructions{ret, ret}, []int{8, 8}, 0, "nobody calls function 1"},
		{"too many", asm.Instructions{called(1, 0, 2), ret, ret}, []int{8}, 0, "there are 1"},
		{"in two places", asm.Instructions{called(1, 0, 3), called(1, 1, 4), ret, ret, ret}, []int{8, 8}, 0, "it was at 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := deepest(tt.insns, tt.depths)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%d, %v; want %d, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestTable(t *testing.T) {
	k := &Kernel{Release: "6.1.0", Programs: []Program{{Name: "connect4", Instructions: 12, Stack: 96, Verification: 1500 * time.Microsecond}},
		Missing: map[string]string{"sock-destroy": "no such kfunc"}}
	got := string(Table(time.Unix(0, 0).UTC(), []*Kernel{k}, []string{"In an emulator."}))
	for _, want := range []string{"1970-01-01", "## Linux 6.1.0\n\nIn an emulator.\n", "| connect4 | 12 | 0 | 96 | 0 | 0 | 0 | 1.5 ms |\n", "Not on this kernel: sock-destroy.\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
