// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"kmesh/bpf"
	"kmesh/netns/failpoint"
)

// Enroll attaches the programs to the pod and pins the links. It may be repeated. When the pod's cgroup already has links, of an older sandbox, they are
// taken over. An error leaves what was there before, and is an *Error with a code where a caller can do something about it.
func (n *Node) Enroll(ctx context.Context, req Request) (Pod, error) {
	return n.enrollAndRecord(ctx, req, false)
}

// Repair is Enroll for an attachment that is enrolled and is not as it was. One that is released, or whose cgroup a newer sandbox has taken over, is left
// alone, with ErrNotEnrolled; one that drains goes on draining.
func (n *Node) Repair(ctx context.Context, req Request) (Pod, error) {
	return n.enrollAndRecord(ctx, req, true)
}

func (n *Node) enrollAndRecord(ctx context.Context, req Request, repair bool) (Pod, error) {
	if err := n.enroll(ctx, req, repair); err != nil {
		return Pod{}, err
	}
	// The record is for people; the enrolment stands without it.
	_ = n.Record(ctx, req, Enrolled, "")
	if err := failpoint.Here("end"); err != nil {
		return Pod{}, fmt.Errorf("enrol: %w", err)
	}
	return n.Get(ctx, req.Attachment)
}

// enrolment is one Enroll at work.
type enrolment struct {
	ctx context.Context // of the one Enroll that this is
	*Node
	Request
	undo
	dir    string // the attachment's directory
	progs  programs
	cgroup *cgroupDir
	netns  *podNetns
	index  int // of the interface
	addrs  []netip.Addr
	was    markers // what an earlier enrolment left; zero if there was none
	repair bool    // nobody asks for it anew
	moved  bool    // dropStale has released what there was
}

func (n *Node) enroll(ctx context.Context, req Request, repair bool) (err error) {
	e := &enrolment{ctx: ctx, Node: n, Request: req, repair: repair}
	defer e.close()
	if e.dir, err = n.podDir(req.Attachment); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if err := failpoint.Here("begin"); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if err := n.checkReady(); err != nil {
		return err
	}
	if e.progs, err = n.openPrograms(); err != nil {
		return err
	}
	e.onClose(e.progs.Close)
	if e.cgroup, err = n.finder.find(req.CgroupPath, req.UID); err != nil {
		return err
	}
	e.onClose(func() { e.cgroup.Close() })
	if e.netns, err = openNetns(req.NetnsPath); err != nil {
		return err
	}
	e.onClose(func() { e.netns.Close() })
	if err := e.netns.Do(func(ns.NetNS) error { return e.readInterface() }); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if err := e.dropStale(ctx); err != nil {
		return err
	}
	unlock, err := lock(ctx, e.cgroup.File)
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.run(ctx); err != nil {
		return errors.Join(err, e.rollback())
	}
	return nil
}

func (e *enrolment) readInterface() (err error) {
	if e.index, err = ifindex(e.IfName); err != nil {
		return err
	}
	i := net.Interface{Index: e.index, Name: e.IfName}
	addrs, err := i.Addrs()
	if err != nil {
		return fmt.Errorf("addresses of interface %s: %w", e.IfName, err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			e.addrs = append(e.addrs, p.Addr().Unmap())
		}
	}
	return nil
}

// dropStale removes what this attachment has of another cgroup or namespace, or unfinished: it cannot be in two places.
func (e *enrolment) dropStale(ctx context.Context) error {
	was, err := readMarkers(e.dir)
	if errors.Is(err, fs.ErrNotExist) && !e.repair {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.repair && !was.ready {
		return fmt.Errorf("repair %s: %w", e.Attachment, ErrNotEnrolled)
	}
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if was.ready && was.cgroup == e.cgroup.inode && was.netns == e.netns.cookie {
		return nil
	}
	e.moved = true
	return e.release(ctx, e.Attachment, e.NetnsPath)
}

// stillOurs looks again, under the lock, whether there is something to repair.
func (e *enrolment) stillOurs() error {
	if !e.repair {
		return nil
	}
	id, err := escape(e.ContainerID)
	if err != nil {
		return err
	}
	owners, err := names(e.ownersDir(e.cgroup.inode))
	if err != nil {
		return err
	}
	was, err := readMarkers(e.dir)
	if ignoreMissing(err) != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if !e.moved && !was.ready || len(owners) > 0 && !slices.Contains(owners, id) {
		return fmt.Errorf("repair %s: %w", e.Attachment, ErrNotEnrolled)
	}
	return nil
}

// run does the work under the cgroup's lock. Each step adds how it is taken back.
func (e *enrolment) run(ctx context.Context) error {
	steps := []func() error{e.stillOurs, e.mark, e.putPod, e.attachCgroup, e.attachTC, e.claim, e.finish}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("enrol %s: %w", e.Attachment, err)
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (e *enrolment) mark() error {
	was, err := readMarkers(e.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("enrol: %w", err)
	}
	e.was = was
	// The cgroup's marker comes with the directory, so that a sweep knows which lock guards it.
	for _, m := range []string{markCgroup + strconv.FormatUint(e.cgroup.inode, 10), markNetns + strconv.FormatUint(e.netns.cookie, 10)} {
		if err := e.mkdir(filepath.Join(e.dir, m), e.podsDir()); err != nil {
			return err
		}
	}
	return nil
}

// putPod enters the pod into the table that the programs look pods up in. An entry that is there belongs to another attachment of this sandbox, or to
// an earlier enrolment of this one, and the helper may have given it a scope since: it stays, but for that of a pod which had opted out.
func (e *enrolment) putPod() error {
	pods, err := bpf.OpenPods(e.opts.BPFFS)
	if err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	e.onClose(func() { pods.Close() })
	id := filepath.Base(filepath.Dir(filepath.Dir(e.dir)))
	of, err := e.attachmentsOf(id)
	if err != nil {
		return err
	}
	if e.was.ready || len(of) > 1 {
		old, ok, err := pods.Get(e.netns.cookie)
		if err != nil {
			return fmt.Errorf("enrol: %w", err)
		}
		if ok && (old.Scope != bpf.ScopeNone || e.repair) {
			return nil
		}
		if ok {
			e.add(func() error { return bpf.SetPodScope(e.opts.BPFFS, e.netns.cookie, bpf.ScopeNone) })
			return bpf.SetPodScope(e.opts.BPFFS, e.netns.cookie, 0)
		}
	}
	pod := bpf.Pod{}
	for _, a := range e.addrs {
		switch {
		case a.Is4() && !pod.IPv4.IsValid():
			pod.IPv4 = a
		case a.Is6() && !pod.IPv6.IsValid():
			pod.IPv6 = a
		}
	}
	if err := failpoint.Here("put pod"); err != nil {
		return fmt.Errorf("enrol: %w", err)
	}
	if err := pods.Put(e.netns.cookie, pod); err != nil {
		var full *bpf.FullError
		if errors.As(err, &full) {
			return fail(CodeFull, err, "%v: check that kmesh-helper runs, which removes those that are gone, or move pods to another node; the pod is tried again", full)
		}
		return fmt.Errorf("enrol: %w", err)
	}
	e.add(func() error { return pods.Delete(e.netns.cookie) })
	return nil
}

func (e *enrolment) attachCgroup() error {
	dir := e.cgroupDir(e.cgroup.inode)
	if err := e.mkdir(filepath.Join(dir, "owners"), e.cgroupsDir()); err != nil {
		return err
	}
	for _, h := range bpf.CgroupHooks {
		if err := attachCgroup(&e.undo, e.cgroup, h, e.progs[h.Name], hookPath(dir, h)); err != nil {
			return err
		}
	}
	return nil
}

func (e *enrolment) attachTC() error {
	return e.netns.Do(func(ns.NetNS) error {
		if !e.opts.ForceClsact {
			err := e.attachTCX()
			if !lacksTCX(err) {
				return err
			}
		}
		return e.attachClsact()
	})
}

func (e *enrolment) attachTCX() error {
	for _, h := range bpf.TCHooks {
		path := hookPath(e.dir, h)
		for {
			err := attachTCX(&e.undo, e.index, h, e.progs[h.Name], path)
			if !errors.Is(err, fs.ErrExist) {
				if err != nil {
					return err
				}
				break
			}
			// The interface has the program already: by a link of an older sandbox in this very namespace, or by one that was let go a moment ago.
			if err := e.takeTC(h); err != nil {
				return err
			}
			select {
			case <-e.ctx.Done():
				return fmt.Errorf("%w: %w", err, e.ctx.Err())
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

// takeTC moves a hook's link here from another attachment that had this interface: the kernel refuses a program twice on one.
func (e *enrolment) takeTC(h bpf.Hook) error {
	all, err := e.attachments()
	if err != nil {
		return err
	}
	for _, a := range all {
		if a == e.Attachment || a.IfName != e.IfName {
			continue
		}
		dir, err := e.podDir(a)
		if err != nil {
			return err
		}
		if m, err := readMarkers(dir); err != nil || m.netns != e.netns.cookie {
			continue
		}
		from, to := hookPath(dir, h), hookPath(e.dir, h)
		if err := failpoint.Here("take over link"); err != nil {
			return fmt.Errorf("take over %s: %w", from, err)
		}
		switch err := os.Rename(from, to); {
		case err == nil:
			e.add(func() error { return os.Rename(to, from) })
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("take over %s: %w", from, err)
		}
	}
	return nil
}

func (e *enrolment) attachClsact() error {
	hadQdisc, err := hasClsact(e.index)
	if err != nil {
		return err
	}
	hadFilters := e.was.clsact == e.index
	if e.was.clsact != 0 && !hadFilters {
		// The interface was made anew, and its filters went with the old one.
		for _, m := range []string{markClsact, markClsactOwn} {
			if err := remove(filepath.Join(e.dir, m+strconv.Itoa(e.was.clsact))); err != nil {
				return err
			}
		}
	}
	mark := markClsact
	if !hadQdisc || (hadFilters && e.was.clsactOwn) {
		mark = markClsactOwn
	}
	if err := e.mkdir(filepath.Join(e.dir, mark+strconv.Itoa(e.index)), e.podsDir()); err != nil {
		return err
	}
	var tx undo
	err = attachClsact(&tx, e.index, e.progs, hadQdisc, hadFilters)
	// A rollback may come after this namespace was left.
	e.add(func() error { return e.netns.Do(func(ns.NetNS) error { return tx.rollback() }) })
	return err
}

// claim makes this sandbox the owner of the cgroup's links and ends the older sandboxes' claims.
func (e *enrolment) claim() error {
	owners := e.ownersDir(e.cgroup.inode)
	id, err := escape(e.ContainerID)
	if err != nil {
		return err
	}
	if err := e.mkdir(filepath.Join(owners, id), e.cgroupsDir()); err != nil {
		return err
	}
	all, err := names(owners)
	if err != nil {
		return fmt.Errorf("owners of cgroup %d: %w", e.cgroup.inode, err)
	}
	for _, other := range all {
		if other == id {
			continue
		}
		path := filepath.Join(owners, other)
		if err := remove(path); err != nil {
			return fmt.Errorf("take over cgroup %d: %w", e.cgroup.inode, err)
		}
		e.add(func() error { _, err := mkdir(path); return err })
	}
	return nil
}

func (e *enrolment) finish() error {
	return e.mkdir(filepath.Join(e.dir, markReady), e.podsDir())
}
