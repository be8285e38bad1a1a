// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"kmesh/helper/pods/cached"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

// Bounds of a late enrolment.
const (
	enrollTimeout = 10 * time.Second
	firstRetry    = time.Second
	lastRetry     = 5 * time.Minute
)

// lateNetwork is the network of a pod whose attachment the runtime does not remember: no
// real one is called so, and no DEL or GC of one will take it for its own. It goes when
// the sweep finds its cgroup or its interface gone.
const lateNetwork = "kmesh-late"

// enroll enrols a pod that runs already: by what its ADD would have been given, in the
// way of an ADD.
func (n *now) enroll(ctx context.Context, p plan.Pod, step plan.Step) {
	if !n.serving() {
		n.plan(p, "is enrolled as soon as the mesh is live: "+step.Reason)
		n.again(soonest)
		return
	}
	if r := n.retries[p.UID]; r != nil && time.Now().Before(r.at) {
		n.plan(p, fmt.Sprintf("is tried again within %v: %s", time.Until(r.at).Round(time.Second), r.why))
		n.again(time.Until(r.at))
		return
	}
	requests, err := n.requests(p)
	older := 0
	for _, req := range requests {
		if err == nil {
			var open int
			open, err = n.enrollOne(ctx, req)
			older += open
		}
	}
	if ctx.Err() != nil {
		return
	}
	switch {
	case err == nil:
		delete(n.retries, p.UID)
		n.opts.Counted("late_enrolled", 1)
		n.opts.Log.Info("pod enrolled late", "namespace", p.Namespace, "pod", p.Name, "reason", step.Reason, "older", older)
		n.tell(p, EnrolledLate, fmt.Sprintf("Governed from now on (%s). Connections that are open stay as they were: %d", step.Reason, older))
		return
	case errors.Is(err, errGone): // its end is under way
		n.again(soonest)
		return
	}
	r := n.retries[p.UID]
	if r == nil {
		r = &retry{}
		n.retries[p.UID] = r
	}
	r.at, r.why = time.Now().Add(min(firstRetry<<min(r.tries, 20), lastRetry)), err.Error()
	r.tries++
	n.again(time.Until(r.at))
	n.plan(p, fmt.Sprintf("is tried again: %s", err))
	if netns.CodeOf(err) == netns.CodeNotReady {
		return // the mesh's state, not the pod's
	}
	n.opts.Counted("enroll_failed", 1)
	n.opts.Log.Error("pod not enrolled late, trying again later", "namespace", p.Namespace, "pod", p.Name, "tries", r.tries, "err", err)
	if errors.Is(err, netns.ErrNoNetns) {
		n.tell(p, NotGoverned, fmt.Sprintf("It asks for enrolment and started without it: %s: recreate the pod", err))
	} else {
		n.tell(p, EnrollFailed, fmt.Sprintf("%s (tried again)", err))
	}
}

// requests are the enrolments that a pod needs, from what the runtime remembers; where it
// does not, from what the pod's processes lead to.
func (n *now) requests(p plan.Pod) ([]netns.Request, error) {
	if err := n.readCache(); err != nil {
		n.opts.Log.Warn("going by the pods' processes", "err", err)
		n.cache = make(map[string][]cached.Attachment)
	}
	var out []netns.Request
	for _, a := range cached.Of(n.cache[p.UID], p.Addrs) {
		out = append(out, a.Request)
	}
	if len(out) > 0 {
		return out, nil
	}
	path, ifName, err := n.opts.Node.FindNetns(p.UID, p.Addrs)
	if err != nil {
		return nil, fmt.Errorf("the container runtime's cache below %s has no attachment with its address, and %w", n.opts.CacheDir, err)
	}
	return []netns.Request{{
		Attachment: netns.Attachment{ContainerID: p.UID, Network: lateNetwork, IfName: ifName},
		Namespace:  p.Namespace, Name: p.Name, UID: p.UID, NetnsPath: path,
	}}, nil
}

// errGone: the attachment's DEL came in between.
var errGone = errors.New("the sandbox is being deleted")

// enrollOne enrols one attachment, and says how many connections are older.
func (n *now) enrollOne(ctx context.Context, req netns.Request) (older int, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrollTimeout)
	defer cancel()
	n.opts.Runtime.ShareLegPorts()
	pod, err := n.opts.Node.Enroll(ctx, req)
	if err != nil && ctx.Err() == nil && netns.CodeOf(err) != netns.CodeNotReady {
		_ = n.opts.Node.Record(ctx, req, netns.Failed, err.Error()) // for people
	}
	// The DEL of its sandbox may have passed between our look and our work: what that leaves,
	// the record of a failure also, goes now, and not only with the next sweep.
	if req.Network != lateNetwork && !cached.Has(n.opts.CacheDir, req.Attachment) {
		return 0, errors.Join(errGone, n.opts.Node.Release(ctx, req.Attachment))
	}
	if err != nil {
		return 0, err
	}
	k := netns.Known{Request: req, NetnsCookie: pod.NetnsCookie}
	stamped, err := n.stamped(k)
	if err != nil {
		return 0, nil // of no consequence
	}
	all, _ := n.sockets(k, func(_, remote netip.AddrPort) bool { return remote.Port() != 0 })
	return max(all-stamped, 0), nil
}
