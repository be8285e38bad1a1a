// SPDX-License-Identifier: Apache-2.0

// Command vm boots another kernel in an emulated machine, loads every program there and routes requests through them.
// The kernel and the emulator are Debian's packages, fetched by apt and unpacked in a cache; nothing is installed.
//
// Invariant: it succeeds only when the machine has said that all was done, and that nothing failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"kmesh/test/programs"
	"kmesh/test/vm/plan"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// rows are those of test/l7 that are run in the machine: not those that measure time, and not those that a client's
// timer changes, since all is slow there. In names of tests "_" is for blanks.
const rows = "^(one_request|routed_per_request|by_host,_method,_header_and_query|no_route,_no_host|answers_of_the_program's_own|" +
	"every_endpoint_refuses|other_options_of_TCP|a_head_of_almost_8_KiB|a_chunked_request_body|HEAD,_204,_304_and_hints|Upgrade|" +
	"half_close_after_the_request|sticky_by_a_header|sticky_by_source|more_than_four_endpoints)$"

func run(ctx context.Context) error {
	version := flag.String("kernel", "6.1", "`version` of Debian's kernel")
	name := flag.String("arch", "amd64", "`architecture`, amd64 or arm64")
	traffic := flag.Bool("traffic", true, "route requests, too")
	table := flag.String("table", "", "write the table of all programs, on this kernel and on the other one, to this `file` (as root)")
	limit := flag.Duration("limit", 10*time.Minute, "the longest that the machine may run")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %s", flag.Arg(0))
	}
	i := slices.IndexFunc(architectures, func(a architecture) bool { return a.name == *name })
	if i < 0 {
		return fmt.Errorf("-arch: %q is none: use amd64 or arm64", *name)
	}
	arch := architectures[i]
	var here *programs.Kernel
	var err error
	if *table != "" {
		if here, err = programs.Measure(); err != nil {
			return err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	cache = filepath.Join(cache, "kmesh", "vm")
	q, err := findQemu(ctx, cache, arch)
	if err != nil {
		return err
	}
	from, err := debianOf(ctx, arch.name, filepath.Join(cache, "apt-"+arch.name))
	if err != nil {
		return err
	}
	pack, err := from.kernelOf(ctx, *version, arch.name)
	if err != nil {
		return err
	}
	kernel := filepath.Join(cache, pack)
	if err := fetch(ctx, kernel, pack, from.download, "./boot/vmlinuz-*", "./lib/modules/*/kernel/net", "./lib/modules/*/kernel/drivers/net/veth.ko"); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("package %s has the kernels %q", pack, images)
	}
	work, err := os.MkdirTemp("", "vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	initrd := filepath.Join(work, "initrd")
	if err := build(ctx, work, kernel, initrd, arch.name, *traffic); err != nil {
		return err
	}
	fmt.Printf("vm: booting %s\n", strings.TrimPrefix(pack, "linux-image-"))
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	var there *programs.Kernel
	var failed []error
	began := time.Now()
	err = q.boot(ctx, machine{kernel: images[0], initrd: initrd, memory: 3072, console: os.Stdout}, func(r plan.Result) {
		if r.Kernel != nil {
			there = r.Kernel
			fmt.Printf("%s", programs.Text(r.Kernel))
		}
		switch {
		case r.Err != "":
			failed = append(failed, fmt.Errorf("%s: %s", r.Step, r.Err))
			fmt.Printf("vm: FAILED %s (%.1f s)\n", r.Step, r.Seconds)
		case r.Step != "":
			fmt.Printf("vm: ok %s (%.1f s)\n", r.Step, r.Seconds)
		}
	})
	if err := errors.Join(append(failed, err)...); err != nil {
		return err
	}
	fmt.Printf("vm: all of it worked on %s (%.0f s)\n", there.Release, time.Since(began).Seconds())
	if *table != "" {
		return os.WriteFile(*table, programs.Table(time.Now(), []*programs.Kernel{here, there}, []string{
			"On the machine that made this table.",
			"In an emulated machine (`make vm`): its times do not compare.",
		}), 0o644)
	}
	return nil
}

// build makes what runs in the machine.
func build(ctx context.Context, work, kernel, initrd, arch string, traffic bool) error {
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	goTool := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
		return nil
	}
	guest := filepath.Join(work, "guest")
	if err := goTool("build", "-trimpath", "-ldflags", "-s -w", "-o", guest, "kmesh/test/vm/guest"); err != nil {
		return err
	}
	var steps []plan.Step
	if traffic {
		if err := goTool("test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, "l7.test"), "kmesh/test/l7"); err != nil {
			return err
		}
		const plugins = "github.com/containernetworking/plugins/plugins/"
		if err := goTool("build", "-trimpath", "-ldflags", "-s -w", "-o", bin+"/", plugins+"main/bridge", plugins+"ipam/host-local", plugins+"main/loopback",
			"kmesh/cni/kmesh-cni", "kmesh/helper/kmesh-helper", "kmesh/test/node/agent"); err != nil {
			return err
		}
		// By the plugin, as it comes: it takes clsact where there is no TCX.
		run := "^TestMatrix$/^tcx$/^v4$/^guess$/" + rows + "|^TestMatrix$/^tcx$/^v6$/^local$/" + rows
		steps = append(steps, plan.Step{Name: "route requests", Limit: 6 * time.Minute, Args: []string{
			filepath.Join(plan.Bin, "l7.test"), "-test.v", "-test.parallel=4", "-test.run", run}})
	}
	return makeImage(initrd, guest, bin, kernel, steps)
}
