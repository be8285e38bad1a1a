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
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
)

// Swept counts what a sweep removed.
type Swept struct {
	Pods    int `json:"pods"`    // attachments
	Cgroups int `json:"cgroups"` // cgroups' sets of links that nobody claimed
	Links   int `json:"links"`   // links among the latter
}

// Sweep removes what missed DELs and interrupted ADDs left: attachments whose cgroup or interface is gone or that were never finished, and links of
// cgroups that nobody claims. The kernel tells: a severed link has cgroup id or ifindex 0. An attachment at work is locked and left alone.
//
// A cgroup that still has processes is the exception: it is not let go because its interface vanished, or a pod could end its own governance by
// deleting it. List shows it as drift.
func (n *Node) Sweep(ctx context.Context) (Swept, error) {
	var s Swept
	var errs []error
	all, err := n.attachments()
	if err != nil {
		return s, fmt.Errorf("sweep: %w", err)
	}
	for _, a := range all {
		if err := ctx.Err(); err != nil {
			return s, errors.Join(append(errs, fmt.Errorf("sweep: %w", err))...)
		}
		removed, err := n.sweepPod(ctx, a)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", a, err))
		}
		if removed {
			s.Pods++
		}
	}
	inodes, err := n.cgroups()
	if err != nil {
		return s, errors.Join(append(errs, fmt.Errorf("sweep: %w", err))...)
	}
	for _, inode := range inodes {
		links, err := n.sweepCgroup(ctx, inode)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep cgroup %d: %w", inode, err))
		}
		if links >= 0 {
			s.Cgroups++
			s.Links += links
		}
	}
	errs = append(errs, n.sweepEmpty(), n.sweepRecords(ctx))
	return s, errors.Join(errs...)
}

// cgroups lists the inodes that have links.
func (n *Node) cgroups() ([]uint64, error) {
	entries, err := names(n.cgroupsDir())
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range entries {
		inode, err := strconv.ParseUint(e, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("cgroup directory %q: %w", e, err)
		}
		out = append(out, inode)
	}
	return out, nil
}

// sweepPod removes the attachment if it is dead.
func (n *Node) sweepPod(ctx context.Context, a Attachment) (removed bool, err error) {
	dir, err := n.podDir(a)
	if err != nil {
		return false, err
	}
	m, err := readMarkers(dir)
	if err != nil {
		return false, ignoreMissing(err)
	}
	if m.cgroup == 0 {
		// Made a moment ago, or interrupted. Only an empty directory goes this way, and an ADD at work makes it again.
		return false, prune(dir, n.podsDir())
	}
	alive, unlock, err := n.lockInode(ctx, m.cgroup)
	if err != nil {
		return false, err
	}
	defer unlock()
	if m, err = readMarkers(dir); err != nil {
		return false, ignoreMissing(err)
	}
	dead, err := n.dead(a, dir, m, alive)
	if err != nil || !dead {
		return false, err
	}
	return true, errors.Join(n.releaseLocked(a, dir, "", alive), n.dropRecord(a))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// dead judges an attachment under its cgroup's lock.
func (n *Node) dead(a Attachment, dir string, m markers, alive *os.File) (bool, error) {
	if alive == nil || !m.ready {
		return true, nil
	}
	severed, err := n.severed(a, dir, m)
	if err != nil || !severed {
		return false, err
	}
	id, _, _, err := a.escaped()
	if err != nil {
		return false, err
	}
	owners, err := names(n.ownersDir(m.cgroup))
	if err != nil {
		return false, err
	}
	if !slices.Contains(owners, id) {
		return true, nil // a newer sandbox governs the cgroup
	}
	busy, err := populated(alive)
	return !busy, err
}

// severed says whether the attachment's interface is gone.
func (n *Node) severed(a Attachment, dir string, m markers) (bool, error) {
	if m.clsact != 0 {
		pod, err := n.netnsOf(a, m, "")
		if pod != nil {
			pod.Close()
		}
		return pod == nil, err
	}
	for _, h := range bpf.TCHooks {
		l, err := link.LoadPinnedLink(hookPath(dir, h), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			return false, err
		}
		if t := info.TCX(); t == nil || t.Ifindex != 0 {
			return false, nil
		}
	}
	return true, nil
}

// populated says whether a process lives in the cgroup or below it.
func populated(dir *os.File) (bool, error) {
	fd, err := unix.Openat(int(dir.Fd()), "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, ignoreGone(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 256)
	k, err := unix.Read(fd, buf)
	if err != nil {
		return false, ignoreGone(err)
	}
	return strings.Contains(string(buf[:k]), "populated 1"), nil
}

// ignoreGone: a removed cgroup has no processes.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("cgroup.events: %w", err)
}

// sweepCgroup removes claims without an attachment, and the links when no claim is left. links is -1 when they stay.
func (n *Node) sweepCgroup(ctx context.Context, inode uint64) (links int, err error) {
	alive, unlock, err := n.lockInode(ctx, inode)
	if err != nil {
		return -1, err
	}
	defer unlock()
	owners, err := names(n.ownersDir(inode))
	if err != nil {
		return -1, err
	}
	claims := 0
	for _, o := range owners {
		of, err := n.attachmentsOf(o)
		if err != nil {
			return -1, err
		}
		if len(of) > 0 {
			claims++
			continue
		}
		if err := remove(filepath.Join(n.ownersDir(inode), o)); err != nil {
			return -1, err
		}
	}
	if alive != nil && claims > 0 {
		return -1, nil
	}
	return n.dropCgroup(inode)
}

// sweepEmpty removes directories that interrupted work left empty.
func (n *Node) sweepEmpty() error {
	ids, err := names(n.podsDir())
	if err != nil {
		return err
	}
	for _, id := range ids {
		nets, err := names(filepath.Join(n.podsDir(), id))
		if err != nil {
			return err
		}
		for _, net := range nets {
			if err := prune(filepath.Join(n.podsDir(), id, net), n.podsDir()); err != nil {
				return err
			}
		}
		if err := prune(filepath.Join(n.podsDir(), id), n.podsDir()); err != nil {
			return err
		}
	}
	return nil
}

// Retain releases every attachment of the network that is not among the valid ones, and says which. Other networks are not touched.
func (n *Node) Retain(ctx context.Context, network string, valid []Attachment) ([]Attachment, error) {
	all, err := n.attachments()
	if err != nil {
		return nil, fmt.Errorf("retain: %w", err)
	}
	var gone []Attachment
	var errs []error
	for _, a := range all {
		if a.Network != network || slices.Contains(valid, a) {
			continue
		}
		if err := n.Release(ctx, a); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, a)
	}
	return gone, errors.Join(errs...)
}
