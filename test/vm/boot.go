// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"kmesh/test/vm/plan"
)

// qemu is an emulator: the system's own, or one that was unpacked.
type qemu struct {
	path string
	arch architecture
	args []string // where it finds its files
	env  []string
}

// architecture is a kind of machine: its name is Go's and Debian's.
type architecture struct {
	name    string
	qemu    string // program
	pack    string // of Debian
	machine []string
	console string
	// results is how the port that the results go out by is put in: plan.Port says how the guest calls it.
	results []string
}

var architectures = []architecture{
	{"amd64", "qemu-system-x86_64", "qemu-system-x86", nil, "ttyS0", []string{"-serial", "chardev:results"}},
	{"arm64", "qemu-system-aarch64", "qemu-system-arm", []string{"-machine", "virt"}, "ttyAMA0", []string{"-device", "pci-serial,chardev=results"}},
}

// findQemu takes the one that is installed, or unpacks Debian's in the cache.
func findQemu(ctx context.Context, cache string, arch architecture) (*qemu, error) {
	if path, err := exec.LookPath(arch.qemu); err == nil {
		return &qemu{path: path, arch: arch}, nil
	}
	root := filepath.Join(cache, arch.qemu)
	if err := fetch(ctx, root, arch.pack, debian(nil).downloadAll); err != nil {
		return nil, err
	}
	q := &qemu{path: filepath.Join(root, "usr/bin", arch.qemu), arch: arch}
	for _, d := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		q.args = append(q.args, "-L", filepath.Join(root, d))
	}
	q.env = []string{"LD_LIBRARY_PATH=" + filepath.Join(root, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(root, "lib/x86_64-linux-gnu")}
	return q, nil
}

// machine is what to boot.
type machine struct {
	kernel, initrd string
	memory         int // MiB
	console        io.Writer
}

// boot runs a machine until it turns itself off, and tells each result. It is emulated, not virtualised: that works
// wherever this machine is virtual itself, and does the same everywhere.
func (q *qemu) boot(ctx context.Context, m machine, tell func(plan.Result)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := slices.Concat(q.args, q.arch.machine, []string{"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(m.memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-nographic", "-serial", "stdio",
		"-chardev", "file,id=results,path=/dev/fd/3",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", "console=" + q.arch.console + " quiet panic=-1 mitigations=off"}, q.arch.results)
	cmd := exec.CommandContext(ctx, q.path, args...)
	cmd.Env = append(os.Environ(), q.env...)
	cmd.Stdout, cmd.Stderr = m.console, m.console
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	w.Close()
	done := false
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var res plan.Result
		if err := json.Unmarshal(lines.Bytes(), &res); err != nil {
			return errors.Join(fmt.Errorf("the machine says %q: %w", lines.Bytes(), err), cmd.Cancel(), cmd.Wait())
		}
		done = res.Done
		tell(res)
	}
	if err := errors.Join(lines.Err(), cmd.Wait(), ctx.Err()); err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	if !done {
		return errors.New("the machine was turned off before all was done")
	}
	return nil
}
