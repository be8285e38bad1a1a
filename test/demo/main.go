// SPDX-License-Identifier: Apache-2.0

// Command demo shows Kmesh on a node inside this machine: real plugin, real helper, real connections, and no control
// plane but a directory of files.
//
// Invariant: it believes nothing that it prints. Every sentence marked "ok" was checked, the exit status is 0 only if
// all were true, and it ends by looking for whatever it may have left behind, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"kmesh/test/node"
)

func main() {
	bin := flag.String("bin", besideMe(), "`folder` of kmesh-cni and kmesh-helper; empty: build them")
	n := flag.Int("n", 1000, "connections for each split, and a third of the requests")
	name := flag.String("serve", "", "be the HTTP server of the pod of that `name` (the demo starts itself so)")
	flag.Parse()
	if *name != "" {
		if err := serve(*name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}

	// Caught for the whole of the run: a second interrupt does not end the clean-up, a closed pipe not the demo.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	s := newScreen(os.Stdout, os.Getenv("NO_COLOR"), os.Getenv("TERM"))
	began := time.Now()
	err := demo(ctx, s, node.Options{BinDir: *bin}, *n)
	interrupted := ctx.Err() != nil
	switch {
	case interrupted && s.verdict() == nil:
		s.printf("interrupted; nothing was left behind")
	case err != nil:
		s.printf("%s", s.paint(red, fmt.Sprintf("the demo failed: %v", err)))
	default:
		s.printf("\n%s (%.1f s)", s.paint(green, fmt.Sprintf("all %d claims were true, and nothing was left behind", s.ok)), time.Since(began).Seconds())
	}
	if err == nil && !interrupted {
		return
	}
	if interrupted {
		os.Exit(130)
	}
	os.Exit(1)
}

// besideMe is this program's folder, if the others are there (make build).
func besideMe() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	dir := filepath.Dir(exe)
	if _, err := os.Stat(filepath.Join(dir, "kmesh-cni")); err != nil {
		return ""
	}
	return dir
}

// demo makes the node, tells the story on it, and takes everything down again.
func demo(ctx context.Context, s *screen, opts node.Options, connections int) (err error) {
	s.printf("%s", s.paint(bold, "Kmesh: a node inside this machine, real traffic, no control plane"))
	s.working("making the node (the first time, its CNI plugins are built)")
	began := time.Now()
	n, err := node.New(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		s.working("taking everything down")
		report, cerr := n.Close(context.WithoutCancel(ctx))
		s.title("The end")
		s.claim(len(report.Left) == 0 && cerr == nil, "%s", report)
		err = errors.Join(err, cerr, s.verdict())
	}()
	st := &story{screen: s, n: n, connections: connections, began: began}
	return st.tell(ctx)
}
