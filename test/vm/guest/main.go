// SPDX-License-Identifier: Apache-2.0

// Command guest is all that runs in the virtual machine: it is the first process, makes what a node has (mounts,
// modules, loopback), loads every program and measures it, runs the steps of the plan, and turns the machine off.
//
// Invariant: whatever goes wrong is a result, and the machine is turned off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/test/node"
	"kmesh/test/programs"
	"kmesh/test/vm/plan"
)

// worker marks the process that does the work: the first one only reaps, as orphans are given to it.
const worker = "worker"

func main() {
	if len(os.Args) > 1 && os.Args[1] == worker {
		work()
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: it is the first process of a virtual machine (make vm), and turns it off when it is done")
		os.Exit(2)
	}
	if err := reap(); err != nil {
		fmt.Println("guest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// reap starts the worker and collects every process that ends until it does.
func reap() error {
	if err := mounts(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", worker)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=" + plan.Bin, "HOME=/root", node.BuiltPrograms + "=" + plan.Bin}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) || pid == cmd.Process.Pid {
			return err
		}
	}
}

// mounts makes what a Debian node has.
func mounts() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}, {"tmpfs", "/run", ""}, {"tmpfs", "/tmp", ""},
		{"cgroup2", "/sys/fs/cgroup", ""}, {"bpf", "/sys/fs/bpf", "mode=0700"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

func work() {
	port, err := openPort()
	if err != nil {
		fmt.Println("guest:", err)
		return
	}
	results := json.NewEncoder(port)
	tell := func(r plan.Result, began time.Time, err error) bool {
		r.Seconds = time.Since(began).Seconds()
		if err != nil {
			r.Err = explain(err)
		}
		return results.Encode(r) == nil && err == nil
	}
	began := time.Now()
	p, err := prepare()
	ok := tell(plan.Result{Step: "prepare"}, began, err)
	if ok {
		began := time.Now()
		k, err := programs.Measure()
		ok = tell(plan.Result{Step: "load every program", Kernel: k}, began, err)
	}
	if ok {
		for _, s := range p.Steps {
			began := time.Now()
			tell(plan.Result{Step: s.Name}, began, run(s))
		}
	}
	tell(plan.Result{Done: ok}, began, nil)
	_ = port.Close() // a serial port is drained before it is closed
}

// explain has all that the verifier says, for programs that it refuses.
func explain(err error) string {
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		return fmt.Sprintf("%v\n%+v", err, v)
	}
	return err.Error()
}

// openPort opens the results' port: bytes go out as they are.
func openPort() (*os.File, error) {
	f, err := os.OpenFile(plan.Port(runtime.GOARCH), os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	return f, err
}

func prepare() (*plan.Plan, error) {
	raw, err := os.ReadFile(plan.Path)
	if err != nil {
		return nil, err
	}
	p := new(plan.Plan)
	if err := json.Unmarshal(raw, p); err != nil {
		return nil, fmt.Errorf("%s: %w", plan.Path, err)
	}
	for _, path := range p.Modules {
		if err := insert(path); err != nil {
			return nil, fmt.Errorf("module %s: %w", path, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	return p, netlink.LinkSetUp(lo)
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func run(s plan.Step) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("it took longer than %v", s.Limit)
	}
	return err
}
