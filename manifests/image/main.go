// SPDX-License-Identifier: Apache-2.0

// Command image builds the image that runs on every node, without a container engine: an
// OCI layout in one tar, for several platforms, as `ctr images import` and registries'
// tools take it.
//
// The invariant: the same sources, version and Go release give the same bytes, wherever
// and whenever they are built. What is in the image is in the table of programs, and no
// shell, package or library besides.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	var platforms string
	flag.StringVar(&o.Out, "o", "bin/image.tar", "file to write")
	flag.StringVar(&o.Name, "name", "kmesh.net/kmesh:devel", "name of the image, with its tag")
	flag.StringVar(&o.Version, "version", "devel", "version that the programs say they are")
	flag.StringVar(&platforms, "platforms", "linux/amd64,linux/arm64", "platforms, with commas between them")
	flag.StringVar(&o.Go, "go", "go", "the go command")
	flag.Parse()
	o.Platforms = strings.Split(platforms, ",")
	digest, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
	fmt.Printf("%s %s %s\n", o.Out, o.Name, digest)
}
