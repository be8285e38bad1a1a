// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/netns/failpoint"
)

// Release removes what the attachment has: its TC links, its entry in the pods map, its claim, and the cgroup's links when no claim is left. It may be
// repeated, for attachments that never were, after the namespace and the cgroup are gone.
func (n *Node) Release(ctx context.Context, a Attachment) error {
	return n.ReleaseIn(ctx, a, "")
}

// ReleaseIn is Release with the path of the network namespace, where it is known. Only filters of kernels without TCX need it, and do without when the
// namespace is gone or another one stands at the path.
func (n *Node) ReleaseIn(ctx context.Context, a Attachment, netnsPath string) error {
	if err := n.release(ctx, a, netnsPath); err != nil {
		return err
	}
	// The record is for people: that it cannot be removed holds no pod back.
	_ = n.dropRecord(a)
	return nil
}

func (n *Node) release(ctx context.Context, a Attachment, netnsPath string) error {
	dir, err := n.podDir(a)
	if err != nil {
		return nil // no enrolment ever had such a name
	}
	m, err := readMarkers(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	alive, unlock, err := n.lockInode(ctx, m.cgroup)
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	defer unlock()
	return n.releaseLocked(a, dir, netnsPath, alive)
}

// releaseLocked does the work. alive is nil when the cgroup is gone.
func (n *Node) releaseLocked(a Attachment, dir, netnsPath string, alive *os.File) error {
	m, err := readMarkers(dir) // again: the lock may have taken its time
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	// Not ready from here on: what comes after an interruption starts over.
	errs := []error{remove(filepath.Join(dir, markReady))}
	if m.clsact != 0 {
		errs = append(errs, n.releaseClsact(a, m, netnsPath))
	}
	for _, pin := range m.pins {
		errs = append(errs, remove(filepath.Join(dir, pin)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	if err := n.forgetPod(a, m); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	if err := n.dropClaim(a, m.cgroup, alive == nil); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	// The cgroup's marker goes last: until then a sweep knows the lock, and finds the rest.
	entries, err := names(dir)
	if err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	last := ""
	for _, e := range entries {
		path := filepath.Join(dir, e)
		if len(e) > len(markCgroup) && e[:len(markCgroup)] == markCgroup {
			last = path
			continue
		}
		if err := remove(path); err != nil {
			return fmt.Errorf("release %s: %w", a, err)
		}
	}
	if last != "" {
		if err := remove(last); err != nil {
			return fmt.Errorf("release %s: %w", a, err)
		}
	}
	if err := prune(dir, n.podsDir()); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	return nil
}

// forgetPod removes the pods map's entry, unless another attachment in the same namespace needs it: one of this container, or of the sandbox that took
// the cgroup over.
func (n *Node) forgetPod(a Attachment, m markers) error {
	if m.netns == 0 {
		return nil
	}
	id, _, _, err := a.escaped()
	if err != nil {
		return err
	}
	ids := []string{id}
	if m.cgroup != 0 {
		owners, err := names(n.ownersDir(m.cgroup))
		if err != nil {
			return err
		}
		ids = append(ids, owners...)
	}
	for _, id := range ids {
		others, err := n.attachmentsOf(id)
		if err != nil {
			return err
		}
		for _, o := range others {
			if o == a {
				continue
			}
			dir, err := n.podDir(o)
			if err != nil {
				return err
			}
			om, err := readMarkers(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if om.netns == m.netns {
				return nil
			}
		}
	}
	if err := failpoint.Here("forget pod"); err != nil {
		return err
	}
	return bpf.ForgetPod(n.opts.BPFFS, m.netns)
}

// dropClaim ends the container's claim on the cgroup, unless another attachment of it is on the same one, and removes the cgroup's links when nobody
// claims them any more or the cgroup is gone.
func (n *Node) dropClaim(a Attachment, inode uint64, gone bool) error {
	if inode == 0 {
		return nil
	}
	id, _, _, err := a.escaped()
	if err != nil {
		return err
	}
	others, err := n.attachmentsOf(id)
	if err != nil {
		return err
	}
	for _, o := range others {
		if o == a {
			continue
		}
		dir, err := n.podDir(o)
		if err != nil {
			return err
		}
		om, err := readMarkers(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if om.cgroup == inode && !gone {
			return nil
		}
	}
	if err := remove(filepath.Join(n.ownersDir(inode), id)); err != nil {
		return err
	}
	owners, err := names(n.ownersDir(inode))
	if err != nil {
		return err
	}
	if len(owners) > 0 && !gone {
		return nil
	}
	_, err = n.dropCgroup(inode)
	return err
}

// dropCgroup detaches and unpins all of a cgroup's links, and counts them.
func (n *Node) dropCgroup(inode uint64) (links int, err error) {
	dir := n.cgroupDir(inode)
	entries, err := names(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if e == "owners" {
			continue
		}
		if err := unpin(filepath.Join(dir, e)); err != nil {
			return links, err
		}
		links++
	}
	owners, err := names(n.ownersDir(inode))
	if err != nil {
		return links, err
	}
	for _, o := range owners {
		if err := remove(filepath.Join(n.ownersDir(inode), o)); err != nil {
			return links, err
		}
	}
	if err := remove(n.ownersDir(inode)); err != nil {
		return links, err
	}
	return links, remove(dir)
}

// releaseClsact removes our filters if the namespace can still be found: at the path given, or where the record says it was.
func (n *Node) releaseClsact(a Attachment, m markers, netnsPath string) error {
	pod, err := n.netnsOf(a, m, netnsPath)
	if err != nil || pod == nil {
		return err
	}
	defer pod.Close()
	return pod.Do(func(ns.NetNS) error { return detachClsact(m.clsact, m.clsactOwn) })
}

// netnsOf opens the attachment's namespace by path and proves it by its cookie; nil when it is not there any more.
func (n *Node) netnsOf(a Attachment, m markers, netnsPath string) (*podNetns, error) {
	if netnsPath == "" {
		r, err := n.record(a)
		if err != nil {
			return nil, nil
		}
		netnsPath = r.NetnsPath
	}
	pod, err := openNetns(netnsPath)
	if err != nil {
		return nil, nil
	}
	if pod.cookie != m.netns {
		pod.Close()
		return nil, nil
	}
	return pod, nil
}
