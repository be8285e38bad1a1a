// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// heads of the columns.
var heads = []string{"program", "instructions", "states", "stack", "functions", "translated", "jited", "verification"}

func cells(p Program) []string {
	return []string{
		p.Name, fmt.Sprint(p.Instructions), fmt.Sprint(p.States), fmt.Sprint(p.Stack), fmt.Sprint(p.Functions),
		fmt.Sprint(p.Translated), fmt.Sprint(p.Jited), fmt.Sprintf("%.1f ms", p.Verification.Seconds()*1000),
	}
}

// Text is what a kernel says, for a terminal.
func Text(k *Kernel) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, strings.Join(heads, "\t")+"\t")
	for _, p := range k.Programs {
		fmt.Fprintln(w, strings.Join(cells(p), "\t")+"\t")
	}
	_ = w.Flush() // to memory
	return b.String() + missing(k)
}

func missing(k *Kernel) string {
	if len(k.Missing) == 0 {
		return ""
	}
	return fmt.Sprintf("Not on this kernel: %s.\n", strings.Join(slices.Sorted(maps.Keys(k.Missing)), ", "))
}

// Table is bpf/PROGRAMS.md: what is behind each program on several kernels, each with a word on where it ran.
func Table(at time.Time, kernels []*Kernel, where []string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# What the programs cost the verifier

Made by `+"`make programs`"+` on %s, by loading every program as a node does; do not edit.

- instructions: that the verifier walked. It gives up at %d.
- states: that it kept at the same time, at most.
- stack: bytes of the deepest chain of calls, callbacks included, each function rounded up to 32 as Linux 6.1 does. It
  gives up at %d.
- functions, with the callbacks of loops.
- translated, jited: bytes, as the kernel keeps the program and as the processor runs it.
- verification: the time that it took.

`, at.Format(time.DateOnly), MaxInstructions, MaxStack)
	for i, k := range kernels {
		fmt.Fprintf(&b, "## Linux %s\n\n%s\n\n| %s |\n|---|%s\n", k.Release, where[i], strings.Join(heads, " | "), strings.Repeat("---:|", len(heads)-1))
		for _, p := range k.Programs {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(cells(p), " | "))
		}
		if m := missing(k); m != "" {
			fmt.Fprintf(&b, "\n%s", m)
		}
		fmt.Fprintln(&b)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
