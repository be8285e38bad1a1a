// SPDX-License-Identifier: Apache-2.0

// Package programs tells what every kernel program costs the verifier of the kernel it is loaded on: instructions,
// states, stack, size. bpf/PROGRAMS.md is made of it.
//
// Invariant: it measures what a node gets. Programs are loaded by package bpf's own Load, with everything that a
// kernel does to them (kfuncs that are missing, code that is never reached), and what is told is the kernel's word.
package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// Limits of the verifier.
const (
	// MaxInstructions that it walks for one program (BPF_COMPLEXITY_LIMIT_INSNS).
	MaxInstructions = 1_000_000
	// MaxStack of a chain of calls, in bytes (MAX_BPF_STACK).
	MaxStack = 512
)

// Program is one program on one kernel.
type Program struct {
	Name         string        `json:"name"`
	Instructions int           `json:"instructions"` // that the verifier walked
	States       int           `json:"states"`       // that it kept at once, at most
	Stack        int           `json:"stack"`        // bytes, of the deepest chain of calls
	Functions    int           `json:"functions"`
	Translated   int           `json:"translated"` // bytes
	Jited        int           `json:"jited"`      // bytes
	Verification time.Duration `json:"verification_ns"`
}

// Kernel is all programs on one kernel.
type Kernel struct {
	Release  string            `json:"release"`
	Programs []Program         `json:"programs"`
	Missing  map[string]string `json:"missing"` // features that this kernel lacks
}

// Measure loads every program on this kernel, and takes them away again. Needs root.
func Measure() (_ *Kernel, err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	k := &Kernel{Release: unix.ByteSliceToString(uts.Release[:]), Missing: make(map[string]string)}
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return nil, fmt.Errorf("mount a bpf filesystem: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	opts := bpf.LoadOptions{BPFFS: filepath.Join(dir, "kmesh"), Statistics: true}
	rt, err := bpf.Load(opts)
	if err != nil {
		// Asked for statistics only, the verifier does not say what it objects to.
		opts.Statistics = false
		if rt, why := bpf.Load(opts); why != nil {
			return nil, why
		} else {
			return nil, errors.Join(err, rt.Close())
		}
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	for feature, why := range rt.Unsupported {
		k.Missing[feature] = why.Error()
	}
	all := rt.Programs()
	head, err := bpf.NewHeadRunner()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, head.Close()) }()
	all["head_run"] = head.Program()
	for name, p := range all {
		m, err := measure(name, p)
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		k.Programs = append(k.Programs, m)
	}
	slices.SortFunc(k.Programs, func(a, b Program) int { return strings.Compare(a.Name, b.Name) })
	return k, nil
}

func measure(name string, p *ebpf.Program) (Program, error) {
	info, err := p.Info()
	if err != nil {
		return Program{}, err
	}
	m, depths, err := parse(p.VerifierLog)
	if err != nil {
		return Program{}, err
	}
	m.Name = name
	m.Functions = len(depths)
	if m.Translated, err = info.TranslatedSize(); err != nil {
		return Program{}, err
	}
	jited, err := info.JitedSize()
	if err != nil {
		return Program{}, err
	}
	m.Jited = int(jited)
	insns, err := info.Instructions()
	if err != nil {
		return Program{}, err
	}
	m.Stack, err = deepest(insns, depths)
	return m, err
}

var (
	statProcessed = regexp.MustCompile(`(?m)^processed (\d+) insns .* peak_states (\d+) `)
	statStack     = regexp.MustCompile(`(?m)^stack depth ([0-9+]+)`)
	statTime      = regexp.MustCompile(`(?m)^verification time (\d+) usec$`)
)

// parse reads the verifier's statistics: with them, the stack of each function.
func parse(log string) (m Program, depths []int, err error) {
	processed, stack, took := statProcessed.FindStringSubmatch(log), statStack.FindStringSubmatch(log), statTime.FindStringSubmatch(log)
	if processed == nil || stack == nil || took == nil {
		return m, nil, fmt.Errorf("the verifier's statistics read otherwise: %q", log)
	}
	number := func(s string) int {
		n, e := strconv.Atoi(s)
		err = errors.Join(err, e)
		return n
	}
	m.Instructions, m.States = number(processed[1]), number(processed[2])
	m.Verification = time.Duration(number(took[1])) * time.Microsecond
	for s := range strings.SplitSeq(stack[1], "+") {
		depths = append(depths, number(s))
	}
	return m, depths, err
}
