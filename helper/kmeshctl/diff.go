// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"kmesh/helper/mesh"
	"kmesh/helper/routediff"
)

// exitDiffers is diff's code for two configurations that differ. Like diff(1), it has
// exitUsage for every trouble, so that no trouble is taken for a difference.
const exitDiffers = 1

// errDiffers is no failure: what differs has been printed.
var errDiffers = errors.New("the configurations differ")

// troubleError is why two configurations were not compared.
type troubleError struct{ err error }

func (e troubleError) Error() string { return e.err.Error() }

func diffCommand(opts *options, stdout, stderr io.Writer) *cobra.Command {
	var unenforceable string
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show which requests two directories of xDS files decide otherwise",
		Long: `Show which requests two directories of xDS files decide otherwise: every change of
a decision, with one request that shows it, and the routes that no request reaches.

The files are read as the helper reads them; no helper is asked. Listeners are
compared by name. The answer is exact: routes are automata, so the set of requests
whose decision changes is computed, not sampled, and every request that is shown
was tried. What clusters and endpoints are is not compared, and a route that is
never reached is no difference by itself.

Exit codes, as of diff(1): 0 every request is decided as before, 1 some are not,
2 trouble: wrong usage, or files that cannot be read or compared. Files with
mistakes are trouble too, because what they would have said is not known.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("diff takes two directories, OLD and NEW, %d arguments are given", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, dirs []string) error {
			var services [2][]*mesh.Service
			problems := 0
			for side, dir := range dirs {
				cfg, err := load(cmd.Context(), dir, unenforceable)
				if err != nil {
					return troubleError{err}
				}
				services[side] = slices.Concat(cfg.scope.HTTP, cfg.scope.Services)
				for _, p := range cfg.problems {
					problems++
					fmt.Fprintf(stderr, "kmeshctl: %s: to repair: %s\n", dir, printable(p.Error()))
				}
			}
			report, err := routediff.Services(services[0], services[1], routediff.Limits{})
			if err != nil {
				return troubleError{err}
			}
			if opts.output == "json" {
				enc := json.NewEncoder(stdout)
				enc.SetIndent("", "  ")
				enc.SetEscapeHTML(false)
				err = enc.Encode(report)
			} else {
				err = printReport(stdout, report)
			}
			switch {
			case err != nil:
				return troubleError{err}
			case problems > 0:
				return troubleError{fmt.Errorf("%d problems: what is not used because of them is not compared", problems)}
			case report.Different():
				return errDiffers
			}
			return nil
		},
	}
	unenforceableFlag(cmd, &unenforceable)
	return cmd
}

// printReport writes the report for people.
func printReport(w io.Writer, r *routediff.Report) error {
	t := newTable(w)
	for _, name := range r.Removed {
		t.row("listener " + name + " is gone")
	}
	for _, name := range r.Added {
		t.row("listener " + name + " is new")
	}
	for _, s := range r.Services {
		t.row("listener " + s.Name)
		turn := func(what string, turn *routediff.Turn) {
			if turn != nil {
				t.row("  " + what + ": " + turn.Old + " -> " + turn.New)
			}
		}
		turn("frontends", s.Frontends)
		turn("requests", s.Requests)
		turn("connections that are not routed by request", s.Connections)
		for i := range s.Changes {
			c := &s.Changes[i]
			t.row("  " + c.Old.String() + " -> " + c.New.String())
			t.row("    old", decidedBy(&c.Old))
			t.row("    new", decidedBy(&c.New))
			t.row("    as", c.Witness.Curl())
		}
		never := func(when string, n routediff.Never) {
			t.row("  " + when + "route " + n.Route.String() + " is never reached: " + n.Reason)
		}
		both := func(list []routediff.Never, n routediff.Never) bool {
			return slices.ContainsFunc(list, func(o routediff.Never) bool { return o.Route == n.Route && o.Reason == n.Reason })
		}
		for _, n := range s.NeverOld {
			if !both(s.NeverNew, n) {
				never("old ", n)
			}
		}
		for _, n := range s.NeverNew {
			if both(s.NeverOld, n) {
				never("", n)
			} else {
				never("new ", n)
			}
		}
	}
	if !r.Different() {
		t.row("every request is decided as before")
	}
	return t.flush()
}

// decidedBy names the routes of a decision.
func decidedBy(d *routediff.Decision) string {
	if !d.FoundHost {
		return "no virtual host"
	}
	text := ""
	for i, r := range d.Routes {
		if i > 0 {
			text += ", then "
		}
		text += r.String()
	}
	if text == "" {
		text = "no route of " + d.VirtualHost
	}
	return text
}
