// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// ErrNotEnrolled: the bpffs has nothing of the attachment.
var ErrNotEnrolled = errors.New("pod is not enrolled")

// Verify checks in the kernel that the attachment is governed as it was enrolled.
func (n *Node) Verify(ctx context.Context, a Attachment) error {
	p, err := n.Get(ctx, a)
	if err != nil {
		return err
	}
	if len(p.Drift) > 0 {
		return fmt.Errorf("verify %s: %s: recreate the pod, or let kmesh-helper repair it", a, strings.Join(p.Drift, "; "))
	}
	return nil
}

// List gives every attachment as the kernel has it.
func (n *Node) List(ctx context.Context) ([]Pod, error) {
	all, err := n.attachments()
	if err != nil {
		return nil, err
	}
	l := newLook()
	defer l.close()
	var out []Pod
	for _, a := range all {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		p, err := n.inspect(a, l)
		if errors.Is(err, ErrNotEnrolled) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// Get gives one attachment as the kernel has it. The error wraps ErrNotEnrolled when there is none.
func (n *Node) Get(_ context.Context, a Attachment) (Pod, error) {
	l := newLook()
	defer l.close()
	return n.inspect(a, l)
}

// look is what a look at pods needs to know only once. It asks for nothing before there is an attachment: of a pod that is not enrolled the kernel is not asked.
type look struct {
	tags   map[ebpf.ProgramID]string
	opened bool
	pods   *bpf.Pods // nil while this layout's table is not the one that is used
}

func newLook() *look { return &look{tags: make(map[ebpf.ProgramID]string)} }

func (l *look) open(bpffs string) {
	if l.opened {
		return
	}
	l.opened = true
	if state, err := bpf.ReadState(bpffs); err == nil && state.Phase == bpf.PhaseLive {
		l.pods, _ = bpf.OpenPods(bpffs)
	}
}

func (l *look) close() {
	if l.pods != nil {
		l.pods.Close()
	}
}

func (n *Node) inspect(a Attachment, l *look) (Pod, error) {
	p := Pod{Request: Request{Attachment: a}}
	dir, err := n.podDir(a)
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrNotEnrolled, err)
	}
	m, err := readMarkers(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("%s: %w", a, ErrNotEnrolled)
	}
	if err != nil {
		return p, err
	}
	if r, err := n.record(a); err == nil && r.Attachment == a {
		p.Request, p.Time = r.Request, r.Time
	}
	p.Cgroup, p.NetnsCookie, p.Ready = m.cgroup, m.netns, m.ready
	if !p.Ready {
		p.Drift = append(p.Drift, "enrolment was not finished")
	}
	id, _, _, err := a.escaped()
	if err != nil {
		return p, err
	}
	owners, err := names(n.ownersDir(p.Cgroup))
	if err != nil {
		return p, err
	}
	p.Owner = slices.Contains(owners, id)
	for _, h := range bpf.CgroupHooks {
		if err := p.addLink(hookPath(n.cgroupDir(p.Cgroup), h), h, l.tags); err != nil {
			return p, err
		}
	}
	if m.clsact != 0 {
		err = n.addFilters(&p, m)
	} else {
		for _, h := range bpf.TCHooks {
			err = errors.Join(err, p.addLink(hookPath(dir, h), h, l.tags))
		}
	}
	if err != nil {
		return p, err
	}
	n.checkInode(&p)
	return p, l.checkTable(n.opts.BPFFS, &p)
}

// checkTable looks for the pod in the table by which the programs know it.
func (l *look) checkTable(bpffs string, p *Pod) error {
	l.open(bpffs)
	if l.pods == nil || !p.Ready {
		return nil
	}
	pod, ok, err := l.pods.Get(p.NetnsCookie)
	if err != nil {
		return err
	}
	if !ok {
		p.Drift = append(p.Drift, "the table of pods does not have it")
	}
	p.Draining, p.Scope = ok && pod.Scope == bpf.ScopeNone, pod.Scope
	return nil
}

// addLink reads one pinned link and judges it.
func (p *Pod) addLink(path string, h bpf.Hook, tags map[ebpf.ProgramID]string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		p.Drift = append(p.Drift, h.Name+" is not attached")
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read link %s: %w", path, err)
	}
	out := Link{Hook: h.Name, ID: uint32(info.ID), ProgramID: uint32(info.Program), ProgramTag: tagOf(info.Program, tags)}
	switch {
	case info.Cgroup() != nil:
		out.CgroupID = info.Cgroup().CgroupId
		out.Live = out.CgroupID != 0
		if out.Live && out.CgroupID != p.Cgroup {
			p.Drift = append(p.Drift, fmt.Sprintf("%s is on cgroup %d instead of %d", h.Name, out.CgroupID, p.Cgroup))
		}
	case info.TCX() != nil:
		out.Ifindex = info.TCX().Ifindex
		out.Live = out.Ifindex != 0
	}
	if !out.Live {
		p.Drift = append(p.Drift, h.Name+" is severed")
	}
	p.Links = append(p.Links, out)
	return nil
}

// tagOf looks a program's tag up once.
func tagOf(id ebpf.ProgramID, tags map[ebpf.ProgramID]string) string {
	if tag, ok := tags[id]; ok {
		return tag
	}
	tag := ""
	if prog, err := programByID(id); err == nil {
		if info, err := prog.Info(); err == nil {
			tag = info.Tag
		}
		prog.Close()
	}
	tags[id] = tag
	return tag
}

// addFilters looks for our clsact filters inside the namespace, if it can still be found.
func (n *Node) addFilters(p *Pod, m markers) error {
	pod, err := n.netnsOf(p.Attachment, m, p.NetnsPath)
	if err != nil {
		return err
	}
	if pod == nil {
		p.Drift = append(p.Drift, "network namespace is gone")
		return nil
	}
	defer pod.Close()
	return pod.Do(func(ns.NetNS) error {
		for _, h := range bpf.TCHooks {
			ours, _, err := filters(m.clsact, h)
			if err != nil || len(ours) == 0 {
				p.Drift = append(p.Drift, h.Name+" is not attached")
				continue
			}
			p.Links = append(p.Links, Link{Hook: h.Name, ProgramID: uint32(ours[0].Id), ProgramTag: ours[0].Tag, Ifindex: uint32(m.clsact), Live: true})
		}
		return nil
	})
}

// checkInode sees a cgroup that is gone, some time before its links say so, and one that was made anew at the same path: the links are on the old one.
func (n *Node) checkInode(p *Pod) {
	if dir, err := n.finder.openInode(p.Cgroup); err == nil {
		dir.Close()
	} else if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		p.Drift = append(p.Drift, fmt.Sprintf("cgroup %d is gone", p.Cgroup))
	}
	if p.CgroupPath == "" || p.UID == "" {
		return
	}
	dir, err := n.finder.find(p.CgroupPath, p.UID)
	if err != nil {
		return
	}
	defer dir.Close()
	if dir.inode != p.Cgroup {
		p.Drift = append(p.Drift, fmt.Sprintf("the pod's cgroup is %d now, the links are on %d", dir.inode, p.Cgroup))
	}
}

// Uninstall releases every attachment and removes what is left of ours, claimed or not. Programs and maps are their owner's to remove.
func (n *Node) Uninstall(ctx context.Context) error {
	all, err := n.attachments()
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	var errs []error
	for _, a := range all {
		errs = append(errs, n.Release(ctx, a))
	}
	inodes, err := n.cgroups()
	errs = append(errs, err)
	for _, inode := range inodes {
		_, unlock, err := n.lockInode(ctx, inode)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		_, err = n.dropCgroup(inode)
		unlock()
		errs = append(errs, err)
	}
	errs = append(errs, n.sweepEmpty(), remove(n.podsDir()), remove(n.cgroupsDir()))
	if n.opts.RunDir != "" {
		errs = append(errs, os.RemoveAll(filepath.Clean(n.recordsDir())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}
