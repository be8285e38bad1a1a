// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/helper/pods/cached"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

// mender is what repairs remember. It belongs to Run's goroutine.
type mender struct {
	*Keeper
	retries map[netns.Attachment]*retry
	// lost are pods whose cgroup is gone while their sandbox is there: the sweep takes what
	// they had, and they are enrolled again when the cgroup comes back.
	lost map[netns.Attachment]netns.Request
	// looked are pods that were looked at since they are watched: what happened to one before
	// that, nothing has told of.
	looked map[netns.Attachment]bool
	atWork bool // some are being enrolled, and are to be looked at soon
}

// lookedAt remembers the pods that were there at a look, and were watched before it.
func (m *mender) lookedAt(known []netns.Known) {
	clear(m.looked)
	m.atWork = false
	for _, k := range known {
		m.looked[k.Attachment] = k.Ready
		m.atWork = m.atWork || !k.Ready
	}
}

// repair looks at every pod, and puts right those that are not as they were enrolled.
func (m *mender) repair(ctx context.Context) {
	if !m.serving() {
		return
	}
	all, err := m.opts.Node.List(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.opts.Log.Error("pods are not looked at for drift, trying again later", "err", err)
		}
		return
	}
	there := make(map[netns.Attachment]bool)
	for _, p := range all {
		there[p.Attachment] = true
		m.mend(ctx, p, false)
	}
	for a := range m.retries {
		if !there[a] {
			delete(m.retries, a)
		}
	}
	m.recover(ctx)
}

// repairWhere looks at some pods, of which something was heard: what failed for them is
// tried again before its time.
func (m *mender) repairWhere(ctx context.Context, known []netns.Known, where func(netns.Known) bool) {
	if !m.serving() {
		return
	}
	for _, k := range known {
		if !where(k) {
			continue
		}
		p, err := m.opts.Node.Get(ctx, k.Attachment)
		if err == nil {
			m.mend(ctx, p, true)
		}
	}
	m.recover(ctx)
}

// unfinished says whether something is to be tried again soon.
func (m *mender) unfinished() bool {
	for _, r := range m.retries {
		if r.tries <= soonTries {
			return true
		}
	}
	return len(m.lost) > 0
}

// soonTries is how often a repair is tried again without waiting for the next round.
const soonTries = 3

// cgroupGone says whether a pod's cgroup was removed.
func (m *mender) cgroupGone(k netns.Known) bool {
	_, err := m.opts.Node.CgroupDir(k.Cgroup)
	return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT)
}

// mend repairs one pod, in the way of an enrolment.
func (m *mender) mend(ctx context.Context, p netns.Pod, heard bool) {
	// What is not ready is at work or the sweep's, and what a newer sandbox has taken over
	// is this one's no more.
	if !p.Ready || !p.Owner || len(p.Drift) == 0 {
		delete(m.retries, p.Attachment)
		return
	}
	r := m.retries[p.Attachment]
	if r != nil && !heard && time.Now().Before(r.at) {
		return
	}
	why := strings.Join(p.Drift, "; ")
	if p.NetnsPath == "" {
		p.Request = m.remembered(p.Request)
	}
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	_, err := m.opts.Node.Repair(ctx, p.Request)
	log := m.opts.Log.With("namespace", p.Namespace, "pod", p.Name, "containerID", p.ContainerID, "drift", why)
	switch {
	case err == nil:
		delete(m.retries, p.Attachment)
		m.repaired(p.Request, why)
	case errors.Is(err, netns.ErrNotEnrolled), ctx.Err() != nil:
	case netns.CodeOf(err) == netns.CodeCgroup && m.hasNetns(p.Request):
		if _, ok := m.lost[p.Attachment]; !ok {
			log.Warn("the pod's cgroup is gone; it is governed again when it comes back", "err", err)
		}
		m.lost[p.Attachment] = p.Request
	default:
		if r == nil {
			r = &retry{}
			m.retries[p.Attachment] = r
		}
		r.at = time.Now().Add(min(firstRetry<<min(r.tries, 20), lastRetry))
		if r.tries++; r.tries > 1 { // a pod that ends drifts for a moment
			log.Error("drift not repaired, trying again later", "tries", r.tries, "err", err)
			m.tell(m.podOf(p.Request), DriftRemains, why+": "+err.Error()+" (tried again)")
		}
	}
}

func (m *mender) repaired(req netns.Request, why string) {
	m.opts.Counted("drift_repaired", 1)
	m.opts.Log.Warn("pod was not as it had been enrolled, and is again", "namespace", req.Namespace, "pod", req.Name, "containerID", req.ContainerID, "drift", why)
	m.tell(m.podOf(req), DriftRepaired, "It was not as it had been enrolled, and is again: "+why)
}

// remembered completes a request whose record is gone by what the runtime remembers.
func (m *mender) remembered(req netns.Request) netns.Request {
	all, err := cached.List(m.opts.CacheDir)
	if err != nil {
		return req
	}
	for _, of := range all {
		i := slices.IndexFunc(of, func(c cached.Attachment) bool { return c.Attachment == req.Attachment })
		if i >= 0 {
			return of[i].Request
		}
	}
	return req
}

func (m *mender) hasNetns(req netns.Request) bool {
	_, err := os.Stat(req.NetnsPath)
	return req.NetnsPath != "" && !errors.Is(err, fs.ErrNotExist)
}

// recover enrols pods whose cgroup was gone and came back.
func (m *mender) recover(ctx context.Context) {
	if len(m.lost) == 0 {
		return
	}
	known, err := m.opts.Node.Known(ctx)
	if err != nil {
		return
	}
	for a, req := range m.lost {
		// Another sandbox of the pod is newer than this one.
		if !m.hasNetns(req) || slices.ContainsFunc(known, func(k netns.Known) bool { return k.UID == req.UID && k.Ready && !m.cgroupGone(k) }) {
			delete(m.lost, a)
			continue
		}
		if _, err := m.opts.Node.Enroll(ctx, req); err == nil {
			delete(m.lost, a)
			m.repaired(req, "its cgroup was gone and came back")
		}
	}
}

// podOf is what the API server calls the pod of an attachment.
func (k *Keeper) podOf(req netns.Request) plan.Pod {
	if k.opts.Cluster != nil {
		view, _ := k.opts.Cluster.View()
		for _, p := range view.Pods {
			if p.UID == req.UID {
				return p
			}
		}
	}
	return plan.Pod{UID: req.UID, APIUID: req.UID, Namespace: req.Namespace, Name: req.Name}
}
