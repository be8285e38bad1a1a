// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// result is what one run has measured.
type result struct {
	opts    options
	began   time.Time
	elapsed time.Duration
	rows    []row
	err     error
}

// row is a figure, or a note beside figures.
type row struct {
	what, figure, target string
	missed               bool
}

// add enters a time; a target of 0 is none.
func (r *result) add(what string, d, target time.Duration) {
	out := row{what: what, figure: ms(d)}
	if target > 0 {
		out.target, out.missed = "< "+ms(target), d >= target
	}
	r.rows = append(r.rows, out)
}

func (r *result) addBytes(what string, n, target int64) {
	out := row{what: what, figure: mib(n)}
	if target > 0 {
		out.target, out.missed = "< "+mib(target), n >= target
	}
	r.rows = append(r.rows, out)
}

// addChanges enters the distribution of changes. The target is for the median from the server's response.
func (r *result) addChanges(what string, changes []change, target time.Duration) {
	var told, sent []time.Duration
	for _, c := range changes {
		told = append(told, c.told)
		if c.sent != 0 {
			sent = append(sent, c.sent)
		}
	}
	if len(sent) > 0 {
		out := row{what: what + ", from the server's response to the maps: p50, p99, max", figure: spread(sent)}
		if target > 0 {
			out.target, out.missed = "< "+ms(target), percentile(sent, 50) >= target
		}
		r.rows = append(r.rows, out)
	}
	r.rows = append(r.rows, row{what: what + ", from telling the server: p50, p99, max", figure: spread(told)})
}

func (r *result) note(format string, args ...any) {
	what, figure, _ := strings.Cut(fmt.Sprintf(format, args...), ": ")
	r.rows = append(r.rows, row{what: what, figure: figure})
}

func spread(of []time.Duration) string {
	return fmt.Sprintf("%s, %s, %s", ms(percentile(of, 50)), ms(percentile(of, 99)), ms(percentile(of, 100)))
}

func percentile(of []time.Duration, p int) time.Duration {
	of = slices.Sorted(slices.Values(of))
	return of[min(len(of)-1, len(of)*p/100)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// largest names the maps that take most.
func largest(each map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(each), func(a, b string) int { return cmp.Compare(each[b], each[a]) })
	var out []string
	for _, n := range names[:min(8, len(names))] {
		out = append(out, n+" "+mib(each[n]))
	}
	return strings.Join(out, ", ")
}

func (r *result) title() string {
	return fmt.Sprintf("%d services, %d endpoints, %d scopes", r.opts.services, r.opts.services*perService, r.opts.scopes)
}

// text is for the terminal.
func (r *result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%.0f s)\n", r.title(), r.elapsed.Seconds())
	for _, x := range r.rows {
		fmt.Fprintf(&b, "  %-100s %s", x.what, x.figure)
		if x.target != "" {
			fmt.Fprintf(&b, "   %s: %s", x.target, x.state())
		}
		b.WriteByte('\n')
	}
	if r.err != nil {
		fmt.Fprintf(&b, "  FAILED: %v\n", r.err)
	}
	return b.String()
}

func (x row) state() string {
	switch {
	case x.target == "":
		return ""
	case x.missed:
		return "not met"
	}
	return "met"
}

// markdown is the file.
func markdown(all []*result, command string) string {
	var b strings.Builder
	var u unix.Utsname
	_ = unix.Uname(&u)
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(&b, "# A large mesh\n\nWritten by `%s` on %s, on Linux %s, %d CPUs (%s), which others use too: load averages at its end %s.\n\n",
		command, time.Now().UTC().Format(time.DateOnly), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.GOARCH,
		strings.Join(strings.Fields(string(load))[:3], ", "))
	b.WriteString(`A real ADS server (go-control-plane, delta, one linear cache for each type) sends one HTTP listener for all addresses,
whose routes are one RouteConfiguration with a virtual host for each service, and a cluster with ten endpoints for each.
All times end at what the pinned maps hold (looked at every 0.2 ms), and what came is looked at: by a request of the
pod after each single change, and in the maps after all changes. Times from the server's response leave out what the
server itself takes to work out what has changed, on the same CPUs. What is not met, and why: [LIMITS.md](LIMITS.md).
`)
	for _, r := range all {
		fmt.Fprintf(&b, "\n## %s\n\nIn %.0f s.\n\n| what | measured | target | |\n|---|--:|--:|---|\n", r.title(), r.elapsed.Seconds())
		for _, x := range r.rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", x.what, x.figure, x.target, x.state())
		}
		if r.err != nil {
			fmt.Fprintf(&b, "\nIt did not go on: %v\n", r.err)
		}
	}
	return b.String()
}
