// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const header = "row, n, broken_opted_out, unenrolled_opted_in, leaked_fd, leaked_link, leaked_prog, leaked_map, leaked_pin, leaked_netns, leaked_file, p50, p99"

// percentile of what was timed, 0 where nothing was.
func (r *result) percentile(p int) time.Duration { return percentile(r.took, p) }

func percentile(of []time.Duration, p int) time.Duration {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return of[min(len(of)-1, len(of)*p/100)]
}

func ms(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func (r *result) columns() []string {
	l := r.leaked
	var out []string
	for _, k := range []int{r.n, r.broken, r.unenrolled, l.FDs, l.Links, l.Programs, l.Maps, l.Pins, l.Netns, l.Files} {
		out = append(out, fmt.Sprint(k))
	}
	return append(out, ms(r.percentile(50)), ms(r.percentile(99)))
}

// state of a row, in a word or two.
func (r *result) state() string {
	missed := 0
	for _, c := range r.claims {
		if !c.met {
			missed++
		}
	}
	switch {
	case !r.holds():
		return "FAILED"
	case missed > 0:
		return "target not met"
	}
	return "met"
}

// text is a row on the terminal.
func (r *result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s    %s, %.0f s: %s\n", r.row.id, strings.Join(r.columns(), ", "), r.state(), r.elapsed.Seconds(), r.row.fault)
	for _, c := range r.claims {
		if !c.met {
			fmt.Fprintf(&b, "    not met: %s: %s%s\n", c.what, c.measured, reason(c.why))
		}
	}
	if !r.holds() {
		for _, n := range some(r.notes) {
			fmt.Fprintf(&b, "    %s\n", n)
		}
	}
	if r.err != nil {
		fmt.Fprintf(&b, "    it could not be run: %v\n", r.err)
	}
	return b.String()
}

func reason(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// some of many lines.
func some(lines []string) []string {
	const most = 12
	if len(lines) <= most {
		return lines
	}
	return append(slices.Clone(lines[:most]), fmt.Sprintf("... and %d more", len(lines)-most))
}

// markdown is the table of all rows.
func markdown(results []*result, command string, elapsed time.Duration) string {
	var b strings.Builder
	now := time.Now().UTC()
	fmt.Fprintf(&b, "# Fault matrix\n\nWritten by `%s` on %s, in %.0f s, on Linux %s, %d CPUs (%s), which others use too.\n\n",
		command, now.Format("2006-01-02"), elapsed.Seconds(), release(), runtime.NumCPU(), runtime.GOARCH)
	b.WriteString(`Each row makes one kind of fault happen to a node inside one machine: the real plugin binary through libcni, behind the
real bridge plugin, in real network namespaces and cgroups, beside a real helper.

| column | is |
|---|---|
| n | how often the fault happened, or how many pods it met |
| broken | pods that did not opt in and were not left alone: ADD or DEL failed or took 2 s, the result is not the primary's byte for byte, or a program is on the cgroup or the interface |
| unenrolled | pods that opted in, were started, and were not governed, as the kernel says it |
| fd ... file | what is there after the row that was not before: descriptors of the helper and of this command, links, programs, maps, pins, network namespaces, and files (records, addresses, cached results, mounts, cgroups) |
| p50, p99 | times of what the row's section names; with nothing named, of the plugin's process at the ADD of pods that opt in, on a machine with all the load that the row makes |

A target that is not met is one that cannot be met, or not yet, for the reason that is given; the row holds in all else.

`)
	b.WriteString("| row | fault | n | broken | unenrolled | fd | link | prog | map | pin | netns | file | p50 | p99 | target |\n")
	b.WriteString("|---|---|" + strings.Repeat("--:|", 12) + "---|\n")
	for _, r := range results {
		b.WriteString(r.line())
	}
	for _, r := range results {
		b.WriteString("\n")
		r.section(&b)
	}
	return b.String()
}

// line is a row of the table.
func (r *result) line() string {
	return fmt.Sprintf("| %s | %s | %s | %s |\n", r.row.id, r.row.fault, strings.Join(r.columns(), " | "), r.state())
}

// again puts rows that were run again in their places, and says so there.
func again(text string, results []*result, command string) (string, error) {
	for _, r := range results {
		line := regexp.MustCompile(`(?m)^\| ` + r.row.id + ` \|.*\n`)
		section := regexp.MustCompile(`(?ms)^## ` + r.row.id + `:.*?(\n## |\z)`)
		at := section.FindStringSubmatchIndex(text)
		if at == nil || !line.MatchString(text) {
			return "", fmt.Errorf("it has no row %s: run all rows first", r.row.id)
		}
		var b strings.Builder
		r.section(&b)
		fmt.Fprintf(&b, "- run again by `%s` on %s, on Linux %s\n", command, time.Now().UTC().Format("2006-01-02"), release())
		text = text[:at[0]] + b.String() + text[at[2]:]
		text = line.ReplaceAllLiteralString(text, r.line())
	}
	return text, nil
}

func (r *result) section(b *strings.Builder) {
	fmt.Fprintf(b, "## %s: %s\n\nTarget: %s. ", r.row.id, r.row.fault, r.row.target)
	fmt.Fprintf(b, "Timed: %s. Versions of CNI: %s. (%.0f s)\n\n", cmp.Or(r.row.timed, "ADD of pods that opt in"), cmp.Or(r.row.versions, "in rotation over the pods"), r.elapsed.Seconds())
	for _, c := range r.claims {
		word := "met"
		if !c.met {
			word = "**not met**"
		}
		fmt.Fprintf(b, "- %s: %s: %s%s\n", word, c.what, c.measured, reason(c.why))
	}
	if len(r.beside) > 0 {
		fmt.Fprintf(b, "- beside it %d pods that did not opt in: the plugin took %s for them, p99 %s\n", len(r.beside), ms(percentile(r.beside, 50)), ms(percentile(r.beside, 99)))
	}
	for _, n := range some(r.notes) {
		fmt.Fprintf(b, "- %s\n", n)
	}
	if r.err != nil {
		fmt.Fprintf(b, "- it could not be run: %v\n", r.err)
	}
}

// release is the kernel's.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return string(bytes.TrimRight(u.Release[:], "\x00"))
}
