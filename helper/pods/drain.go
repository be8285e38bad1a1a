// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kmesh/bpf"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

// lastPackets is how long nothing must be open of a pod that is let go.
const lastPackets = time.Second

// drain makes a pod that opted out stop being governed in what it opens from now on.
func (n *now) drain(ctx context.Context, p plan.Pod, step plan.Step) {
	if !n.serving() {
		n.plan(p, "is drained as soon as the mesh is live: "+step.Reason)
		n.again(soonest)
		return
	}
	if !n.each(ctx, p, "pod not drained, trying again later", n.opts.Node.Drain) {
		return
	}
	n.opts.Log.Info("pod drains", "namespace", p.Namespace, "pod", p.Name, "reason", step.Reason)
	open := n.openOf(ctx, n.known[p.UID])
	n.plan(p, draining(step, open))
	n.tell(p, Draining, fmt.Sprintf("Not governed in what it opens from now on (%s). What is open stays governed until it has ended: %s", step.Reason, open))
	n.again(soonest)
}

// finish lets a pod go that drains, when nothing of it is open any more, and has not been
// for a while: a connection's last packets come a little after its end.
func (n *now) finish(ctx context.Context, p plan.Pod, step plan.Step) {
	open, done := n.openOf(ctx, n.known[p.UID]), false
	if _, ok := n.drains[p.UID]; !ok {
		n.drains[p.UID] = time.Now()
	}
	since, quiet := n.quiet[p.UID]
	switch {
	case !open.known || open.n > 0:
		delete(n.quiet, p.UID)
		// What has lasted for long will last.
		n.again(min(time.Since(n.drains[p.UID])/10, latest))
	case !quiet:
		n.quiet[p.UID] = time.Now()
		n.again(lastPackets)
	case time.Since(since) >= lastPackets:
		done = true
	default:
		n.again(lastPackets - time.Since(since))
	}
	if !done {
		n.plan(p, draining(step, open))
		return
	}
	if !n.each(ctx, p, "pod not let go, trying again later", n.opts.Node.Release) {
		return
	}
	n.opts.Counted("released", 1)
	n.opts.Log.Info("pod let go", "namespace", p.Namespace, "pod", p.Name, "reason", step.Reason)
	n.tell(p, Released, fmt.Sprintf("Not governed any more (%s)", step.Reason))
	if len(step.Policies) > 0 {
		n.again(soonest) // to say what keeps it out
	}
}

// resume takes a drain back.
func (n *now) resume(ctx context.Context, p plan.Pod, step plan.Step) {
	if !n.each(ctx, p, "pod not governed again, trying again later", n.opts.Node.Resume) {
		return
	}
	n.opts.Log.Info("pod governed again", "namespace", p.Namespace, "pod", p.Name, "reason", step.Reason)
	n.tell(p, Enrolled, fmt.Sprintf("Governed again (%s)", step.Reason))
}

// each does something with all attachments of a pod; those that are gone are as good.
func (n *now) each(ctx context.Context, p plan.Pod, trouble string, f func(context.Context, netns.Attachment) error) (ok bool) {
	var errs []error
	for _, a := range n.known[p.UID] {
		if err := f(ctx, a.Attachment); err != nil && !errors.Is(err, netns.ErrNotEnrolled) {
			errs = append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if err != nil && ctx.Err() == nil {
		n.opts.Log.Error(trouble, "namespace", p.Namespace, "pod", p.Name, "err", err)
		n.plan(p, trouble)
		n.again(soonest)
	}
	return err == nil
}

// openCount is what a pod has open that is governed.
type openCount struct {
	n     int
	known bool // false: it cannot be told
}

func (o openCount) String() string {
	if !o.known {
		return "not known"
	}
	return fmt.Sprint(o.n)
}

func draining(step plan.Step, open openCount) string {
	return fmt.Sprintf("drains, and is let go when nothing of it is open any more (open: %s): %s", open, step.Reason)
}

// openOf counts what is open of a pod: sockets that the programs know, and flows whose
// client has ended before them.
func (n *now) openOf(ctx context.Context, of []netns.Known) openCount {
	layouts, err := n.readLayouts()
	if err != nil {
		n.opts.Log.Error("it cannot be told what is open of pods that drain", "err", err)
		return openCount{}
	}
	total, seen := 0, make(map[uint64]bool)
	for _, a := range of {
		if seen[a.NetnsCookie] {
			continue
		}
		seen[a.NetnsCookie] = true
		stamped, err := n.stamped(a)
		if err != nil || ctx.Err() != nil {
			return openCount{}
		}
		flows := 0
		for _, f := range layouts {
			flows += n.needed(f, a)
		}
		total += max(stamped, flows)
	}
	return openCount{total, true}
}

// readLayouts reads, once for all pods that drain, the flows of every layout.
func (n *now) readLayouts() ([]flows, error) {
	if n.layouts != nil {
		return n.layouts, nil
	}
	layouts := []bpf.Other{bpf.This(n.opts.Runtime.BPFFS)}
	others, err := bpf.Others(n.opts.Runtime.BPFFS)
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if o.Flows() && o.Whole() {
			layouts = append(layouts, o)
		}
	}
	var out []flows
	for _, o := range layouts {
		f, err := n.readFlows(o)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	n.layouts = out
	return out, nil
}

// stamped counts a pod's sockets that the programs have decided something for.
func (k *Keeper) stamped(a netns.Known) (count int, err error) {
	err = k.opts.Node.Within(a, func() error {
		all, err := k.opts.Runtime.SocketsHere()
		count = len(all)
		return err
	})
	return count, err
}
