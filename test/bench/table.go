// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// row is one line of the table of numbers to reach.
type row struct {
	What    string  `json:"what"`
	HAProxy string  `json:"haproxy"`
	Kmesh   string  `json:"kmesh"`
	Must    string  `json:"must"`
	Reached verdict `json:"reached"`
	// The design's number, where it asks for more.
	Design string  `json:"design,omitempty"`
	There  verdict `json:"there,omitempty"`
}

type verdict string

const (
	reached    verdict = "reached"
	notReached verdict = "not reached"
	unknown    verdict = "unknown: too noisy"
)

// atLeast judges a ratio by its median. Where the middle half of the rounds lies on both sides, it says so: another
// run may judge otherwise.
func atLeast(s spread, must float64) verdict {
	v := reached
	switch {
	case s.N == 0:
		return unknown
	case s.Median < must:
		v = notReached
	}
	if s.Q1 < must && must <= s.Q3 {
		v += ", within the spread"
	}
	return v
}

// atMost is atLeast's other way round.
func atMost(s spread, must float64) verdict {
	v := reached
	switch {
	case s.N == 0:
		return unknown
	case s.Median > must:
		v = notReached
	}
	if s.Q1 <= must && must < s.Q3 {
		v += ", within the spread"
	}
	return v
}

func below(ms, must float64) verdict {
	if ms < must {
		return reached
	}
	return notReached
}

// What is asked of a flow that is not routed by request, and of one that is made for each request.
const (
	mustFlow  = 0.98
	mustClose = 0.95
	mustAdd   = 20 // ms
	mustPlain = 5  // ms
)

// What is asked where requests are routed.
const (
	mustRouted    = 0.90 // of direct's rate
	designRouted  = 0.95
	mustP50       = 1.05 // of direct's; where every request switches, of that of the same leg
	mustOver      = 2.5  // of HAProxy's rate
	mustSwitching = 1.8  // of HAProxy's rate, where every request switches
	mustForeign   = 40   // ns
)

func tableOf(outcomes []outcome, p []packets, a adds) []row {
	var rows []row
	for _, o := range outcomes {
		rows = append(rows, routedRows(o)...)
	}
	for _, p := range p {
		if p.What == allTraffic[0].what {
			rows = append(rows, row{
				What: "foreign packet through " + p.Program, Kmesh: figure(p.NS) + " ns", Must: fmt.Sprintf("<= %d ns", mustForeign), Reached: atMost(p.NS, mustForeign),
			})
		}
	}
	for _, o := range outcomes {
		must, what := mustFlow, "L4 flow in an enrolled pod, everything attached: "+o.What
		switch {
		case o.Key == "connect" || !slices.Contains(o.others, kmesh):
			continue
		case o.Key == "close":
			must, what = mustClose, "as L4: "+o.What
		}
		rows = append(rows, row{
			What: what + ", " + o.Unit, HAProxy: ratio(o.Ratios[haproxy].Rate), Kmesh: ratio(o.Ratios[kmesh].Rate),
			Must: fmt.Sprintf(">= %.2fx", must), Reached: atLeast(o.Ratios[kmesh].Rate, must),
		})
	}
	if a.N == 0 {
		return rows
	}
	return append(rows,
		row{
			What: "CNI ADD p99, enrolled", Kmesh: fmt.Sprintf("%.1f ms", a.Enrolled.P99),
			Must: fmt.Sprintf("< %d ms", mustAdd), Reached: below(a.Enrolled.P99, mustAdd),
		},
		row{
			What: "CNI ADD p99, not enrolled, over process start", Kmesh: fmt.Sprintf("%.1f ms", a.OverStart.P99),
			Must: fmt.Sprintf("< %d ms", mustPlain), Reached: below(a.OverStart.P99, mustPlain),
		},
	)
}

// routedRows are those of a workload whose requests are routed one by one; none for others.
func routedRows(o outcome) []row {
	if !slices.Contains(o.others, l7) {
		return nil
	}
	of, to := "L7: "+o.What+", ", o.Ratios
	over := o.between(l7, haproxy).Rate
	if o.switches {
		leg := o.between(l7, same)
		return []row{
			{What: of + "p50 to the same endpoint's", Kmesh: ratio(leg.P50), Must: fmt.Sprintf("<= %.2fx", mustP50), Reached: atMost(leg.P50, mustP50)},
			{
				What: of + o.Unit + " to HAProxy x2's", HAProxy: "1", Kmesh: ratio(over),
				Must: fmt.Sprintf(">= %.1fx", mustSwitching), Reached: atLeast(over, mustSwitching),
			},
		}
	}
	rows := []row{{
		What: of + o.Unit, HAProxy: ratio(to[haproxy].Rate), Kmesh: ratio(to[l7].Rate),
		Must: fmt.Sprintf(">= %.2fx", mustRouted), Reached: atLeast(to[l7].Rate, mustRouted),
		Design: fmt.Sprintf(">= %.2fx", designRouted), There: atLeast(to[l7].Rate, designRouted),
	}}
	if strings.HasPrefix(o.Key, "keepalive") || strings.HasPrefix(o.Key, "fortio") {
		rows = append(rows, row{
			What: of + "p50", HAProxy: ratio(to[haproxy].P50), Kmesh: ratio(to[l7].P50),
			Must: fmt.Sprintf("<= %.2fx", mustP50), Reached: atMost(to[l7].P50, mustP50),
		}, row{
			What: of + o.Unit + " to HAProxy x2's", HAProxy: "1", Kmesh: ratio(over),
			Must: fmt.Sprintf(">= %.1fx", mustOver), Reached: atLeast(over, mustOver),
		})
	}
	return rows
}

// ratio with its middle half.
func ratio(s spread) string {
	if s.N == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx (%.2f-%.2f)", s.Median, s.Q1, s.Q3)
}

// figure with its middle half, to about three digits.
func figure(s spread) string {
	if s.N == 0 || s.Max == 0 {
		return ""
	}
	format := "%.0f (%.0f-%.0f)"
	switch {
	case s.Median < 10:
		format = "%.2f (%.2f-%.2f)"
	case s.Median < 1000:
		format = "%.1f (%.1f-%.1f)"
	}
	return fmt.Sprintf(format, s.Median, s.Q1, s.Q3)
}

// markdown is the report for people.
func (r report) markdown() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line := func(cells ...string) { say("| %s |", strings.Join(cells, " | ")) }
	head := func(cells ...string) {
		line(cells...)
		say("|%s", strings.Repeat("---|", len(cells)))
	}

	say("# Kmesh, measured\n")
	say("    %s\n", r.Command)
	say("%s, %s, %s, Linux %s, %d x %s, %s.", r.Version, r.Began.Format(time.DateTime), strings.Join(r.Machine.Tools, ", "), r.Machine.Kernel, r.Machine.CPUs, r.Machine.CPU, r.Machine.Go)
	say("%d rounds of %s wanted for each workload, a round refused when direct before and after it vary by more than %.0f %%; %d were refused, %.0f s in all. Load before: %s; stolen by the hypervisor: %.1f %%.",
		r.Settings.Rounds, r.Settings.Duration, 100*r.Settings.Noise, r.refused(), r.Took, r.Machine.Load, 100*r.Machine.Stolen)
	switch {
	case r.Machine.Clients == "":
		say("Processes run where the scheduler puts them.")
	case r.Machine.Clients == r.Machine.Servers:
		say("All clients and servers, and HAProxy, run on CPU %s.", r.Machine.Clients)
	default:
		say("Clients' pods run on CPU %s, servers' on CPU %s.", r.Machine.Clients, r.Machine.Servers)
	}
	say("\nRatios to direct pod-to-pod with nothing attached: the median of the rounds, and their middle half.\n")
	head("what", "HAProxy x2", "Kmesh", "must", "", "design", "")
	for _, row := range r.Table {
		line(row.What, row.HAProxy, row.Kmesh, row.Must, string(row.Reached), row.Design, string(row.There))
	}
	say("\nL7: each request is routed; that it was, and how many switched endpoints, is counted and checked. L4: the connection is bound to an endpoint once.")
	say("HAProxy routes requests where Kmesh does at L7.\n")

	say("## Figures\n")
	head("workload", "variant", "rate", "p50, us", "p99, us", "CPU", "softirq", "p50 to direct", "CPU to direct", "rounds (refused)")
	for _, o := range r.Workloads {
		for _, name := range append([]string{direct}, o.others...) {
			v, to := o.Variants[name], o.Ratios[name]
			cpu := figure(v.CPU)
			if cpu != "" {
				cpu += " us/" + o.Work
			}
			rate, soft := figure(v.Rate), ""
			if rate != "" {
				rate += " " + o.Unit
				soft = fmt.Sprintf("%.0f %%", 100*v.Soft.Median)
			}
			p50, counts := ratio(to.P50), ""
			if v.P50.Max == 0 {
				p50 = "" // not told by this workload
			}
			if name == direct {
				counts = fmt.Sprintf("%d (%d)", o.Accepted, o.Refused)
			}
			line(o.What, title(o.workload, name), rate, figure(v.P50), figure(v.P99), cpu, soft, p50, ratio(to.CPU), counts)
		}
	}
	say("\nCPU: %s. A connect's CPU holds the making and the end of its connection too. Softirq: their share of the machine's busy time, by /proc/stat's ticks.", r.CPUMethod)
	say("p50 and p99 of HTTP are wrk's, which knows whole microseconds only, and adds what a stalled connection would have sent.")
	say("fortio's are its own: it knows buckets, below a millisecond 10 to 25 %% wide, and takes a line within one. Its rows tell of a usual client and server, the others of the way between two that cost as little as they can.\n")

	r.sayPackets(say, line, head)
	if r.Adds.N == 0 {
		return b.String()
	}
	say("## CNI ADD, the plugin alone, ms\n")
	head(fmt.Sprintf("%d each, in turn", r.Adds.N), "p50", "p99", "max")
	for _, l := range []struct {
		what string
		latency
	}{
		{"process start (VERSION)", r.Adds.Start},
		{"not enrolled", r.Adds.Plain},
		{"not enrolled, over process start's p50", r.Adds.OverStart},
		{"enrolled", r.Adds.Enrolled},
	} {
		line(l.what, fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99), fmt.Sprintf("%.1f", l.Max))
	}
	return b.String()
}

// sayPackets is the report's part about single packets.
func (r report) sayPackets(say func(string, ...any), line, head func(...string)) {
	if len(r.Packets) == 0 {
		return
	}
	say("## What a packet costs in the TC programs of an enrolled pod\n")
	head("traffic of the pod", "program", "ns", "packets")
	for _, p := range r.Packets {
		line(p.What, p.Program, figure(p.NS), figure(p.Each)+" / "+p.Unit)
	}
	say("\nThe kernel's own statistics (BPF_ENABLE_STATS): the mean of each round, less the %.0f ns that a program of one instruction takes by the same clock. The server's pod has no programs.\n", r.ClockNS)
}

func (r report) refused() (n int) {
	for _, o := range r.Workloads {
		n += o.Refused
	}
	return n
}

// title of a variant for people.
func title(w workload, name string) string {
	switch {
	case name == haproxy:
		return "HAProxy x2"
	case name == kmesh:
		return "Kmesh L4"
	case name == l7:
		return "Kmesh L7"
	case name == same:
		return "Kmesh L7, one endpoint"
	case name == passing:
		return "Kmesh, not a service's address"
	case w.Key == "connect":
		return "not enrolled"
	}
	return name
}
