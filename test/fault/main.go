// SPDX-License-Identifier: Apache-2.0

// Command fault runs the fault matrix: each row makes one kind of fault happen to a node (test/node: the real plugins,
// through libcni, in real network namespaces and cgroups) and counts what came of it. The figures go to standard output
// as they come, and as a whole into a file (-o).
//
// Invariant: in every row, whatever it does to pods that opted in and to ourselves, pods that did not opt in run beside
// it, and each is looked at: its result is its primary plugin's byte for byte, and no program is on its cgroup or its
// interface. A row that does not hold its target ends the command with status 1; a target that cannot hold is shown as
// not met, with the figure and the reason.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	only := flag.String("rows", "", "run these `rows` alone, such as F01,F07")
	short := flag.Bool("short", false, "make each row's fault happen less often")
	out := flag.String("o", "", "write the table to this `file`; with -rows into the table that is there")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %s", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for network namespaces, cgroups and bpf")
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	began := time.Now()
	fmt.Println(header)
	var results []*result
	for _, r := range chosen {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		res := r.do(ctx, *short)
		results = append(results, res)
		fmt.Print(res.text())
	}
	elapsed := time.Since(began)
	if *out != "" {
		if err := write(*out, results, *only != "", elapsed); err != nil {
			return err
		}
	}
	return verdict(results, elapsed)
}

// write writes the table; some rows take their places in a table that is there.
func write(path string, results []*result, some bool, elapsed time.Duration) error {
	text := markdown(results, command(), elapsed)
	if some {
		old, err := os.ReadFile(path)
		switch {
		case err == nil:
			if text, err = again(string(old), results, command()); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	// Where this program was built says nothing to a reader.
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	text = strings.ReplaceAll(text, self, filepath.Base(self))
	return os.WriteFile(path, []byte(text), 0o644)
}

// verdict says what does not hold.
func verdict(results []*result, elapsed time.Duration) error {
	var bad []string
	known := 0
	for _, r := range results {
		if !r.holds() {
			bad = append(bad, r.row.id)
		}
		for _, c := range r.claims {
			if !c.met && c.why != "" {
				known++
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d of %d rows do not hold: %s", len(bad), len(results), strings.Join(bad, " "))
	}
	fmt.Printf("fault: %d rows hold, %d figures beside their target for a reason that is given (%.0f s)\n", len(results), known, elapsed.Seconds())
	return nil
}

// choose picks rows by id; all of them where none is named.
func choose(ids string) ([]row, error) {
	if ids == "" {
		return rows, nil
	}
	var chosen []row
	for id := range strings.SplitSeq(ids, ",") {
		i := slices.IndexFunc(rows, func(r row) bool { return strings.EqualFold(r.id, id) })
		if i < 0 {
			return nil, fmt.Errorf("-rows: there is no row %q", id)
		}
		chosen = append(chosen, rows[i])
	}
	return chosen, nil
}

// command is what the table says it was made by.
func command() string {
	if len(os.Args) == 3 && os.Args[1] == "-o" {
		return "make fault"
	}
	return strings.Join(append([]string{"bin/fault"}, os.Args[1:]...), " ")
}
