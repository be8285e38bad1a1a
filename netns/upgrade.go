// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/ns"

	"kmesh/bpf"
)

// Upgrade puts the programs that progs gives into every link that has another one, each link at once: no packet and no connection meets a gap. Filters
// of kernels without TCX are replaced where their namespace can be found. It goes on after errors.
//
// connect comes last, since all others must know what it has marked for them. A pod is upgraded under its cgroup's lock, so that an enrolment
// that has opened other programs is upgraded whole or not yet at all.
func (n *Node) Upgrade(ctx context.Context, progs func(hook string) (*ebpf.Program, error)) error {
	loaded := make(programs)
	for _, h := range append(slices.Clone(bpf.CgroupHooks), bpf.TCHooks...) {
		prog, err := progs(h.Name)
		if err != nil {
			return fmt.Errorf("upgrade: program %s: %w", h.Name, err)
		}
		loaded[h.Name] = prog
	}
	of, err := n.byCgroup()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	var errs []error
	for inode, attachments := range of {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("upgrade: %w", err))...)
		}
		if err := n.upgradeCgroup(ctx, inode, attachments, loaded); err != nil {
			errs = append(errs, fmt.Errorf("upgrade cgroup %d: %w", inode, err))
		}
	}
	return errors.Join(errs...)
}

// byCgroup lists the cgroups that have links, and the attachments of each.
func (n *Node) byCgroup() (map[uint64][]Attachment, error) {
	inodes, err := n.cgroups()
	if err != nil {
		return nil, err
	}
	of := make(map[uint64][]Attachment)
	for _, inode := range inodes {
		of[inode] = nil
	}
	all, err := n.attachments()
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		dir, err := n.podDir(a)
		if err != nil {
			return nil, err
		}
		m, err := readMarkers(dir)
		if ignoreMissing(err) != nil {
			return nil, err
		}
		if m.cgroup != 0 {
			of[m.cgroup] = append(of[m.cgroup], a)
		}
	}
	return of, nil
}

func (n *Node) upgradeCgroup(ctx context.Context, inode uint64, attachments []Attachment, progs programs) error {
	alive, unlock, err := n.lockInode(ctx, inode)
	if err != nil {
		return err
	}
	defer unlock()
	if alive == nil {
		return nil // the sweep's
	}
	// Those that came while the lock was waited for.
	owners, err := names(n.ownersDir(inode))
	if err != nil {
		return err
	}
	for _, id := range owners {
		of, err := n.attachmentsOf(id)
		if err != nil {
			return err
		}
		for _, a := range of {
			if !slices.Contains(attachments, a) {
				attachments = append(attachments, a)
			}
		}
	}
	for _, a := range attachments {
		if err := n.upgradeTC(a, progs); err != nil {
			return err
		}
	}
	var errs []error
	for _, h := range slices.Backward(bpf.CgroupHooks) {
		errs = append(errs, upgradeLink(hookPath(n.cgroupDir(inode), h), progs[h.Name]))
	}
	return errors.Join(errs...)
}

func (n *Node) upgradeTC(a Attachment, progs programs) error {
	dir, err := n.podDir(a)
	if err != nil {
		return err
	}
	if err := n.upgradeClsact(a, dir, progs); err != nil {
		return err
	}
	var errs []error
	for _, h := range bpf.TCHooks {
		errs = append(errs, upgradeLink(hookPath(dir, h), progs[h.Name]))
	}
	return errors.Join(errs...)
}

func upgradeLink(path string, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if c, t := info.Cgroup(), info.TCX(); c != nil && c.CgroupId == 0 || t != nil && t.Ifindex == 0 {
		return nil // severed: the sweep's
	}
	var tx undo
	defer tx.close()
	return update(&tx, l, info, path, prog)
}

func (n *Node) upgradeClsact(a Attachment, dir string, progs programs) error {
	m, err := readMarkers(dir)
	if err != nil || m.clsact == 0 {
		return ignoreMissing(err)
	}
	pod, err := n.netnsOf(a, m, "")
	if err != nil || pod == nil {
		return err
	}
	defer pod.Close()
	return pod.Do(func(ns.NetNS) error {
		var tx undo
		defer tx.close()
		return attachClsact(&tx, m.clsact, progs, true, true)
	})
}

// Cookies are the network namespaces of all attachments, also of those at work.
func (n *Node) Cookies() (map[uint64]bool, error) {
	all, err := n.attachments()
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]bool)
	for _, a := range all {
		dir, err := n.podDir(a)
		if err != nil {
			return nil, err
		}
		m, err := readMarkers(dir)
		if ignoreMissing(err) != nil {
			return nil, err
		}
		if m.netns != 0 {
			out[m.netns] = true
		}
	}
	return out, nil
}
