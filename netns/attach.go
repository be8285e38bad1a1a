// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/netns/failpoint"
)

// programs are the pinned programs by hook, open.
type programs map[string]*ebpf.Program

// Close closes them; the pins stay.
func (p programs) Close() {
	for _, prog := range p {
		prog.Close()
	}
}

// openPrograms opens what the helper pinned. That something is missing means: not ready, try again.
func (n *Node) openPrograms() (programs, error) {
	progs := make(programs)
	for _, hooks := range [][]bpf.Hook{bpf.CgroupHooks, bpf.TCHooks} {
		for _, h := range hooks {
			prog, err := ebpf.LoadPinnedProgram(bpf.ProgPath(n.opts.BPFFS, h.Name), &ebpf.LoadPinOptions{})
			if err != nil {
				progs.Close()
				return nil, fail(CodeNotReady, err, "program %s is not pinned below %s: start kmesh-helper on this node; the pod is tried again", h.Name, short(n.opts.BPFFS))
			}
			progs[h.Name] = prog
		}
	}
	return progs, nil
}

// checkReady reads the state word: an enrolled pod must find a mesh.
func (n *Node) checkReady() error {
	if err := bpf.CheckBPFFS(n.opts.BPFFS); err != nil {
		return fail(CodeNotReady, err, "%s is not on a bpf filesystem: run 'mount -t bpf bpf /sys/fs/bpf' on the node, then start kmesh-helper", short(n.opts.BPFFS))
	}
	state, err := bpf.ReadState(n.opts.BPFFS)
	if err == nil && state.Phase == bpf.PhaseLive {
		return nil
	}
	others, _ := bpf.Others(n.opts.BPFFS)
	for _, o := range others {
		if o.Live() {
			return fail(CodeNotReady, nil, "kmesh-helper has ABI %d and this plugin %d: install the same version of both; the pod is tried again", o.ABI, bpf.ABI)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(CodeNotReady, err, "kmesh is not loaded on this node (%s is empty): start kmesh-helper; the pod is tried again", short(n.opts.BPFFS))
	case err != nil:
		return fail(CodeNotReady, err, "the state word below %s cannot be read (%v): restart kmesh-helper", short(n.opts.BPFFS), err)
	}
	return fail(CodeNotReady, nil, "kmesh has no configuration yet: check kmesh-helper's xDS source; the pod is tried again, or set kmesh.net/on-unready: pass")
}

// attachCgroup makes sure that the hook's program is attached to the cgroup by the pinned link at path, once. It runs under the cgroup's lock.
func attachCgroup(tx *undo, dir *cgroupDir, h bpf.Hook, prog *ebpf.Program, path string) error {
	live := func(i *link.Info) bool { return i.Cgroup() != nil && i.Cgroup().CgroupId == dir.inode }
	if kept, err := reuse(tx, path, prog, live); kept || err != nil {
		return err
	}
	if err := failpoint.Here("attach to cgroup"); err != nil {
		return attachError(err, h.Name, dir.path)
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: h.Attach})
	if err != nil {
		return attachError(err, h.Name, dir.path)
	}
	defer l.Close()
	return pin(tx, l, path, unpin)
}

// attachTCX does the same for an interface of the calling thread's network namespace.
func attachTCX(tx *undo, index int, h bpf.Hook, prog *ebpf.Program, path string) error {
	live := func(i *link.Info) bool { return i.TCX() != nil && i.TCX().Ifindex == uint32(index) }
	if kept, err := reuse(tx, path, prog, live); kept || err != nil {
		return err
	}
	if err := failpoint.Here("attach tcx"); err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", h.Name, index, err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: h.Attach})
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", h.Name, index, err)
	}
	defer l.Close()
	return pin(tx, l, path, remove)
}

// reuse takes a link over that is already pinned and still where it should be; a severed one is unpinned.
func reuse(tx *undo, path string, prog *ebpf.Program, live func(*link.Info) bool) (kept bool, err error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open link %s: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read link %s: %w", path, err)
	}
	if !live(info) {
		return false, remove(path)
	}
	return true, update(tx, l, info, path, prog)
}

// update puts prog into a link, unless it is there. Programs are compared by id: two with one tag may use different maps.
func update(tx *undo, l link.Link, info *link.Info, path string, prog *ebpf.Program) error {
	want, err := prog.Info()
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	if id, _ := want.ID(); id == info.Program {
		return nil
	}
	old, err := programByID(info.Program)
	if err != nil {
		return fmt.Errorf("open program %d of link %s: %w", info.Program, path, err)
	}
	if err = failpoint.Here("update link"); err == nil {
		err = l.Update(prog)
	}
	if err != nil {
		old.Close()
		return fmt.Errorf("update link %s: %w", path, err)
	}
	tx.onClose(func() { old.Close() })
	tx.add(func() error {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Update(old)
	})
	return nil
}

func pin(tx *undo, l link.Link, path string, undo func(string) error) error {
	if err := failpoint.Here("pin"); err != nil {
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	tx.add(func() error { return undo(path) })
	return nil
}

// unpin detaches a cgroup's link and removes the pin. Removing alone would do, but only some time later, when the kernel frees the link: until then the
// program would run beside its successor. An interface's link is only removed: it refuses a second one, and detaching it waits for all CPUs.
func unpin(path string) error {
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		if err := failpoint.Here("detach"); err != nil {
			l.Close()
			return err
		}
		_ = l.Detach() // a severed link has nothing to detach from
		l.Close()
	}
	return remove(path)
}

// attachError names the causes that an administrator can do something about.
func attachError(err error, hook, path string) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fail(CodeForeign, err, "%s: a cgroup above %s has an exclusive program of this type: attach it with BPF_F_ALLOW_MULTI, or give us CAP_BPF and CAP_NET_ADMIN", hook, short(path))
	case errors.Is(err, unix.E2BIG):
		return fail(CodeForeign, err, "%s: cgroup %s already has the kernel's limit of 64 programs: detach those that are not needed", hook, short(path))
	case errors.Is(err, unix.EINVAL), errors.Is(err, link.ErrNotSupported):
		return fail(CodeUnsupported, err, "%s: the kernel cannot attach it to a cgroup (%v): use Linux 6.1 or newer with CONFIG_CGROUP_BPF", hook, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fail(CodeCgroup, err, "cgroup %s went away during enrolment: the pod is tried again", short(path))
	}
	return fmt.Errorf("attach %s to cgroup %s: %w", hook, short(path), err)
}

// undo takes back, newest first, what an enrolment has done so far.
type undo struct {
	steps  []func() error
	closes []func()
}

func (u *undo) add(step func() error) { u.steps = append(u.steps, step) }

func (u *undo) onClose(f func()) { u.closes = append(u.closes, f) }

func (u *undo) rollback() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](); err != nil {
			errs = append(errs, fmt.Errorf("roll back: %w", err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}

func (u *undo) close() {
	for _, f := range u.closes {
		f()
	}
}

// mkdir makes a directory that rollback removes.
func (u *undo) mkdir(dir, top string) error {
	made, err := mkdir(dir)
	if err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", dir, err), prune(filepath.Dir(dir), top)) // the parents may have been made
	}
	if made {
		u.add(func() error { return prune(dir, top) })
	}
	return nil
}

func hookPath(dir string, h bpf.Hook) string { return filepath.Join(dir, h.Name) }
