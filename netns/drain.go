// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/plugins/pkg/ns"

	"kmesh/bpf"
)

// Drain ends the governing of what the attachment's pod opens from now on: it has the view of the mesh in which there is nothing. The programs stay, for
// what is open already. It may be repeated, and Enroll takes it back. The error wraps ErrNotEnrolled when there is no such attachment.
func (n *Node) Drain(ctx context.Context, a Attachment) error {
	return n.setScope(ctx, "drain", a, bpf.ScopeNone)
}

// Resume takes a Drain back.
func (n *Node) Resume(ctx context.Context, a Attachment) error {
	return n.setScope(ctx, "resume", a, 0)
}

func (n *Node) setScope(ctx context.Context, verb string, a Attachment, scope uint32) error {
	dir, err := n.podDir(a)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", verb, ErrNotEnrolled, err)
	}
	m, err := readMarkers(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %s: %w", verb, a, ErrNotEnrolled)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, a, err)
	}
	// Not between a release's look at the table and its end.
	_, unlock, err := n.lockInode(ctx, m.cgroup)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, a, err)
	}
	defer unlock()
	if err := bpf.SetPodScope(n.opts.BPFFS, m.netns, scope); err != nil {
		return fmt.Errorf("%s %s: %w", verb, a, err)
	}
	return nil
}

// Within runs f on a thread in the network namespace of a known attachment. The error wraps ErrNoNetns when that is not where it was any more, or is not
// known because the record is gone.
func (n *Node) Within(k Known, f func() error) error {
	pod, err := n.netnsOf(k.Attachment, markers{netns: k.NetnsCookie}, k.NetnsPath)
	if err != nil {
		return err
	}
	if pod == nil {
		return fmt.Errorf("%s: %w", k.Attachment, ErrNoNetns)
	}
	defer pod.Close()
	return pod.Do(func(ns.NetNS) error { return f() })
}

// CgroupDir is where the cgroup with this inode is. A removed one is unix.ESTALE.
func (n *Node) CgroupDir(inode uint64) (string, error) {
	dir, err := n.finder.openInode(inode)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
}

// Known is what the pins alone tell of an attachment, without a look at its links.
type Known struct {
	Request            // of its record; without one only the attachment
	NetnsCookie uint64 // key in the table of pods
	Cgroup      uint64 // inode of the cgroup
	Ready       bool   // the enrolment was finished
	Draining    bool   // opted out
	Scope       uint32 // id of its view of the mesh
}

// Known lists all attachments. It costs a fraction of List.
func (n *Node) Known(ctx context.Context) ([]Known, error) {
	all, err := n.attachments()
	if err != nil {
		return nil, err
	}
	scopes := make(map[uint64]bpf.Pod)
	pods, err := bpf.OpenPods(n.opts.BPFFS)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		scopes, err = pods.List()
		pods.Close()
		if err != nil {
			return nil, err
		}
	}
	var out []Known
	for _, a := range all {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		dir, err := n.podDir(a)
		if err != nil {
			return nil, err
		}
		m, err := readMarkers(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, err
		}
		k := Known{Request: Request{Attachment: a}, NetnsCookie: m.netns, Cgroup: m.cgroup, Ready: m.ready}
		if r, err := n.record(a); err == nil && r.Attachment == a {
			k.Request = r.Request
		}
		if p, ok := scopes[m.netns]; ok {
			k.Draining, k.Scope = p.Scope == bpf.ScopeNone, p.Scope
		}
		out = append(out, k)
	}
	return out, nil
}
