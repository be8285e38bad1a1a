// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// usage is what was used of the processors since some time in the past, in microseconds.
//
// Of the pods: their cgroups' cpu.stat, which the scheduler keeps to the nanosecond for all of a pod's processes, the
// load generator and the sidecar too. A packet's way through a bridge is walked in softirqs on the back of whoever
// sent it; where the kernel does not account interrupts apart (CONFIG_IRQ_TIME_ACCOUNTING), that time is therefore in
// the cgroups already, and what ksoftirqd does is added. Where it does, the machine's irq and softirq time is added
// instead, which counts other work's too.
//
// Invariant: one method for all variants of a run, and the result names it.
type usage struct {
	pods    float64
	kernel  float64 // ksoftirqd, or all softirqs and interrupts
	softirq float64 // of the machine, by /proc/stat
	busy    float64 // of the machine, by /proc/stat
	stolen  float64 // by the hypervisor
}

func (u usage) minus(before usage) usage {
	return usage{u.pods - before.pods, u.kernel - before.kernel, u.softirq - before.softirq, u.busy - before.busy, u.stolen - before.stolen}
}

// accountant reads usage.
type accountant struct {
	irqApart  bool
	ksoftirqd []string // their folders in /proc
}

func newAccountant() (*accountant, error) {
	a := &accountant{irqApart: kernelSays("CONFIG_IRQ_TIME_ACCOUNTING=y")}
	if a.irqApart {
		return a, nil
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		if name, err := os.ReadFile(p + "/comm"); err == nil && bytes.HasPrefix(name, []byte("ksoftirqd/")) {
			a.ksoftirqd = append(a.ksoftirqd, p)
		}
	}
	return a, nil
}

func (a *accountant) method() string {
	if a.irqApart {
		return "cpu.stat of both pods' cgroups (sidecars and load generator are in them), plus the machine's irq and softirq time"
	}
	return "cpu.stat of both pods' cgroups (sidecars and load generator are in them, and the softirqs they raised), plus ksoftirqd"
}

// kernelSays looks for a line in the kernel's configuration. Not found anywhere: no.
func kernelSays(line string) bool {
	var text []byte
	if f, err := os.Open("/proc/config.gz"); err == nil {
		defer f.Close()
		if z, err := gzip.NewReader(f); err == nil {
			text, _ = io.ReadAll(z)
		}
	}
	if text == nil {
		var uts unix.Utsname
		if unix.Uname(&uts) == nil {
			text, _ = os.ReadFile("/boot/config-" + unix.ByteSliceToString(uts.Release[:]))
		}
	}
	return bytes.Contains(text, []byte("\n"+line+"\n"))
}

func (a *accountant) read(cgroups ...string) (usage, error) {
	var u usage
	for _, cg := range cgroups {
		us, err := cgroupUsage(cg)
		if err != nil {
			return u, err
		}
		u.pods += us
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	var irq float64
	if u.busy, irq, u.softirq, u.stolen, err = machineUsage(stat); err != nil {
		return u, err
	}
	if a.irqApart {
		u.kernel = irq + u.softirq
		return u, nil
	}
	for _, p := range a.ksoftirqd {
		us, err := threadUsage(p)
		if err != nil {
			return u, err
		}
		u.kernel += us
	}
	return u, nil
}

func cgroupUsage(cgroup string) (float64, error) {
	b, err := os.ReadFile(filepath.Join(cgroup, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			return strconv.ParseFloat(strings.TrimSpace(v), 64)
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat: no usage_usec", cgroup)
}

// threadUsage is schedstat's, in nanoseconds there; where the kernel has none, stat's, in ticks.
func threadUsage(proc string) (float64, error) {
	b, err := os.ReadFile(proc + "/schedstat")
	if err == nil {
		f := strings.Fields(string(b))
		if len(f) == 0 {
			return 0, fmt.Errorf("%s/schedstat: empty", proc)
		}
		ns, err := strconv.ParseFloat(f[0], 64)
		return ns / 1e3, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if b, err = os.ReadFile(proc + "/stat"); err != nil {
		return 0, err
	}
	// PID (NAME) STATE ...; utime and stime are the 14th and 15th.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("%s/stat: %d fields", proc, len(f))
	}
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(f[12], 64)
	return (user + system) * tick, err
}

// tick is USER_HZ's, in microseconds: 100 in a second, on all that Go runs on.
const tick = 1e4

// machineUsage reads the first line of /proc/stat.
func machineUsage(stat []byte) (busy, irq, softirq, stolen float64, err error) {
	sc := bufio.NewScanner(bytes.NewReader(stat))
	sc.Buffer(nil, 1<<20)
	sc.Scan()
	// cpu user nice system idle iowait irq softirq steal guest guest_nice
	f := strings.Fields(sc.Text())
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, 0, 0, fmt.Errorf("/proc/stat begins with %q", sc.Text())
	}
	var v [9]float64
	for i := 1; i < 9; i++ {
		if v[i], err = strconv.ParseFloat(f[i], 64); err != nil {
			return 0, 0, 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		v[i] *= tick
	}
	return v[1] + v[2] + v[3] + v[6] + v[7], v[6], v[7], v[8], nil
}
