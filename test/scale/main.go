// SPDX-License-Identifier: Apache-2.0

// Command scale measures a large mesh from outside: a real ADS server, the real helper and an enrolled pod on a node of
// test/node, and what DESIGN says a change, a cold start and the helper's memory may cost.
//
// Invariant: every time ends at what the kernel's maps hold or a pod's own request shows, never at what the helper says
// of itself; and a figure counts only after what it stands for was looked at: the endpoint that came, the status that
// the route answers, all of the changes that were made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options say how much is measured.
type options struct {
	services int
	scopes   int           // 1: one view for all pods; else a view for each of as many pods
	singles  int           // changes that are made one at a time, of each kind
	rate     int           // changes a second
	lasting  time.Duration // for so long
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o := options{}
	flag.IntVar(&o.services, "services", 10_000, "services, with 10 endpoints each")
	flag.IntVar(&o.singles, "singles", 20, "changes of each kind that are made one at a time")
	flag.IntVar(&o.rate, "rate", 100, "changes a second")
	flag.DurationVar(&o.lasting, "for", time.Minute, "how long they are made")
	scopes := flag.String("scopes", "1", "numbers of `scopes`, one run for each, such as 1,20")
	out := flag.String("o", "", "write the table to this `file`")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %s", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for network namespaces, cgroups and bpf")
	}
	var all []*result
	var failed []error
	for field := range strings.SplitSeq(*scopes, ",") {
		var err error
		if o.scopes, err = strconv.Atoi(field); err != nil || o.scopes < 1 {
			return fmt.Errorf("-scopes: %q is no number of scopes", field)
		}
		if err := o.check(); err != nil {
			return err
		}
		r := measure(ctx, o)
		fmt.Print(r.text())
		if r.err != nil {
			failed = append(failed, fmt.Errorf("%d scopes: %w", o.scopes, r.err))
		}
		all = append(all, r)
	}
	if *out != "" {
		if err := os.WriteFile(*out, []byte(markdown(all, command())), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// check says what is wrong with the options.
func (o options) check() error {
	if o.services <= firstFar || o.services > 1<<16 {
		return fmt.Errorf("-services is %d: give %d to %d", o.services, firstFar+1, 1<<16)
	}
	// Each change is of a service of its own, so that each can be looked for at the end.
	if n := o.changes(); n < 1 || n > o.services-firstFar {
		return fmt.Errorf("-rate and -for make %d changes: give such as make 1 to %d, for each is of another service", n, o.services-firstFar)
	}
	return nil
}

func (o options) changes() int { return int(float64(o.rate) * o.lasting.Seconds()) }

// command is what the table says it was made by.
func command() string {
	if len(os.Args) == 5 && os.Args[1] == "-scopes" && os.Args[3] == "-o" {
		return "make scale"
	}
	return strings.Join(append([]string{"bin/scale"}, os.Args[1:]...), " ")
}
