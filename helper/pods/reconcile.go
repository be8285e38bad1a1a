// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"kmesh/bpf"
	"kmesh/cni/optin"
	"kmesh/helper/pods/cached"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

// How often the pods are compared with what they ask for.
const (
	// gather is how long changes that come together are waited for.
	gather = 200 * time.Millisecond
	// soonest and latest bound the time between two looks while something is under way.
	soonest = time.Second
	latest  = 15 * time.Second
)

// follow does what the API server's pods and namespaces ask for, whenever they change,
// until ctx ends.
func (k *Keeper) follow(ctx context.Context) error {
	r := &reconciler{Keeper: k, retries: make(map[string]*retry), drains: make(map[string]time.Time), quiet: make(map[string]time.Time)}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.opts.Cluster.Changed():
			k.opts.Noticed()
			timer.Reset(gather)
			continue
		case <-k.poked:
			timer.Reset(gather)
			continue
		case <-timer.C:
		}
		timer.Reset(min(k.opts.Every, r.reconcile(ctx)))
	}
}

// reconciler is the follower's memory. Without it things would be tried and told more
// often, and no more.
type reconciler struct {
	*Keeper
	retries map[string]*retry    // by UID
	drains  map[string]time.Time // by UID: since when a pod drains, as far as is remembered
	quiet   map[string]time.Time // by UID: since when nothing is open of it
	// policies are those that were told of, by UID.
	policies map[string]string
}

// retry is a pod that could not be enrolled.
type retry struct {
	tries int
	at    time.Time
	why   string
}

// now is one comparison at work.
type now struct {
	*reconciler
	view  plan.View
	known map[string][]netns.Known // by UID
	cache map[string][]cached.Attachment
	// layouts are the flows of all of them, read when a pod drains.
	layouts []flows
	barred  *plan.Policies // nil: none keeps a pod out
	plans   []Plan
	next    time.Duration
}

// again makes the next look come within d.
func (n *now) again(d time.Duration) { n.next = min(n.next, max(d, soonest)) }

// never is longer than any time that is waited for.
const never = time.Duration(math.MaxInt64)

// reconcile compares once. It says when to look again, if nothing changes until then.
func (r *reconciler) reconcile(ctx context.Context) time.Duration {
	view, ok := r.opts.Cluster.View()
	if !ok {
		return never // a view's coming is a change
	}
	n := &now{reconciler: r, view: view, next: never, barred: r.publishSet(view)}
	defer func() { r.setPlans(n.plans) }()
	if err := n.look(ctx); err != nil {
		if ctx.Err() == nil {
			r.opts.Log.Error("pods are not compared with what they ask for, trying again later", "err", err)
		}
		return soonest
	}
	r.forget(n)
	for _, p := range view.Pods {
		if ctx.Err() != nil {
			break
		}
		n.do(ctx, p, plan.Next(p, view.Namespaces, r.opts.Own, n.barred, stateOf(n.known[p.UID])))
	}
	if n.barred == nil {
		n.tellPolicies()
	}
	return n.next
}

// publishSet gives the plugin the set of namespaces, and of policies that keep pods out, where
// that on disk is another; it returns those policies. A last good set stays when the API
// server is away, since there is no view then; and its policies while these are not known.
func (r *reconciler) publishSet(view plan.View) *plan.Policies {
	has, err := optin.Read(r.opts.StateDir)
	var barred *plan.Policies
	if r.opts.Barred != nil {
		now := r.opts.Barred(view).With(has.Policies)
		barred = &now
	}
	want := view.Namespaces.Set(r.opts.Own, barred)
	if err == nil && has.Equal(want) {
		return barred
	}
	log := r.opts.Log
	if barred != nil {
		log = log.With("policiesEverywhere", len(want.Policies.Everywhere), "policiesInNamespaces", len(want.Policies.Namespaces)+len(want.Policies.Some))
		if err != nil {
			log.Warn("the set of namespaces on disk cannot be read, and is written anew", "err", err)
		}
	}
	if err := optin.Write(r.opts.StateDir, want); err != nil {
		r.opts.Log.Error("the set of namespaces that opted in is not on disk; the plugin goes by the old one", "err", err)
		return barred
	}
	log.Info("wrote the set of namespaces that opted in", "namespaces", len(want.Namespaces))
	return barred
}

// look finds out how the pods are.
func (n *now) look(ctx context.Context) error {
	all, err := n.opts.Node.Known(ctx)
	if err != nil {
		return err
	}
	n.known = make(map[string][]netns.Known)
	var unnamed []netns.Known
	for _, a := range all {
		if a.UID == "" {
			unnamed = append(unnamed, a)
			continue
		}
		n.known[a.UID] = append(n.known[a.UID], a)
	}
	if len(unnamed) == 0 {
		return nil
	}
	// Whose record is gone is known to the runtime.
	if err := n.readCache(); err != nil {
		return err
	}
	for _, a := range unnamed {
		for uid, of := range n.cache {
			i := slices.IndexFunc(of, func(c cached.Attachment) bool { return c.Attachment == a.Attachment })
			if i >= 0 {
				a.Request = of[i].Request
				n.known[uid] = append(n.known[uid], a)
			}
		}
	}
	return nil
}

func (n *now) readCache() (err error) {
	if n.cache == nil {
		n.cache, err = cached.List(n.opts.CacheDir)
	}
	return err
}

// stateOf is how a pod is that has these attachments.
func stateOf(of []netns.Known) plan.State {
	var st plan.State
	for _, a := range of {
		st.Enrolled = st.Enrolled || a.Ready
		st.Draining = st.Draining || a.Ready && a.Draining
	}
	return st
}

// forget drops what is remembered of pods that are gone.
func (r *reconciler) forget(n *now) {
	there := make(map[string]bool)
	for _, p := range n.view.Pods {
		there[p.UID] = true
	}
	r.unsay(there)
	maps.DeleteFunc(r.retries, func(uid string, _ *retry) bool { return !there[uid] })
	maps.DeleteFunc(r.drains, func(uid string, _ time.Time) bool { return !there[uid] })
	maps.DeleteFunc(r.quiet, func(uid string, _ time.Time) bool { return !there[uid] })
}

// do takes one step.
func (n *now) do(ctx context.Context, p plan.Pod, step plan.Step) {
	if step.Action != plan.Enroll {
		delete(n.retries, p.UID)
	}
	if step.Action != plan.Finish {
		delete(n.drains, p.UID)
		delete(n.quiet, p.UID)
	}
	before := len(n.plans)
	defer func() {
		for i := range n.plans[before:] {
			n.plans[before+i].Policies = step.Policies
		}
	}()
	switch step.Action {
	case plan.Enroll:
		n.enroll(ctx, p, step)
	case plan.Drain:
		n.drain(ctx, p, step)
	case plan.Finish:
		n.finish(ctx, p, step)
	case plan.Resume:
		n.resume(ctx, p, step)
	case plan.Refuse:
		n.plan(p, "stays as it is: "+step.Reason)
		n.tell(p, NotGoverned, "It stays as it is: "+step.Reason)
	case plan.Bar:
		n.bar(p, step)
	case plan.Wait:
		n.plan(p, "is not enrolled yet: "+step.Reason)
		n.again(latest) // a word of it comes as a change
	}
}

// serving says whether the programs that pods run are this layout's, with a configuration.
func (k *Keeper) serving() bool {
	state, err := k.opts.Runtime.State()
	if err != nil || state.Phase != bpf.PhaseLive {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ours || !k.othersServe()
}
