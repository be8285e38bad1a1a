// SPDX-License-Identifier: Apache-2.0

// Package spoil does to a pod what others on its node may do: programs of theirs that leave no room for ours.
//
// Each function returns how it is taken back.
package spoil

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Connect4 is a program that lets every connect pass.
func Connect4() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
}

// Exclusive attaches a program to a cgroup in the way that lets no cgroup below have one of its type.
func Exclusive(cgroup string) (undo func() error, err error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	p, err := Connect4()
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	closeBoth := func() error { return errors.Join(p.Close(), dir.Close()) }
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attaching to %s alone: %w", cgroup, err), closeBoth())
	}
	return func() error {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect})
		return errors.Join(err, closeBoth())
	}, nil
}

// FillCgroup attaches programs to a cgroup until the kernel takes no more of them.
func FillCgroup(cgroup string) (undo func() error, err error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return fill(unix.E2BIG, func() (link.Link, error) {
		p, err := Connect4()
		if err != nil {
			return nil, err
		}
		defer p.Close()
		return link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: p, Attach: ebpf.AttachCGroupInet4Connect})
	})
}

// FillInterface attaches programs to the egress of an interface, in the calling thread's network namespace, until the
// kernel takes no more of them.
func FillInterface(index int) (undo func() error, err error) {
	return fill(unix.ERANGE, func() (link.Link, error) {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		})
		if err != nil {
			return nil, err
		}
		defer p.Close()
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXEgress})
	})
}

func fill(full unix.Errno, attach func() (link.Link, error)) (undo func() error, err error) {
	var links []link.Link
	undo = func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for {
		l, err := attach()
		if errors.Is(err, full) {
			return undo, nil
		}
		if err != nil {
			return nil, errors.Join(err, undo())
		}
		links = append(links, l)
	}
}
