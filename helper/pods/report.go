// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"kmesh/helper/pods/plan"
)

// Reason is an event's, on a pod.
type Reason string

// The reasons. That a pod is enrolled as it starts is not among them: it is the rule.
const (
	Enrolled      Reason = "Enrolled"      // governed again, before it was let go
	EnrolledLate  Reason = "EnrolledLate"  // while it ran
	EnrollFailed  Reason = "EnrollFailed"  // and is tried again
	NotGoverned   Reason = "NotGoverned"   // asks for what it cannot have
	Draining      Reason = "Draining"      // opted out
	Released      Reason = "Released"      // and has nothing open any more
	DriftRepaired Reason = "DriftRepaired" // was not as it had been enrolled
	DriftRemains  Reason = "DriftRemains"  // and cannot be repaired
	NotEnforced   Reason = "NotEnforced"   // policies select it that nobody enforces; it is told of them, or kept out
)

var warnings = map[Reason]bool{EnrollFailed: true, NotGoverned: true, DriftRepaired: true, DriftRemains: true, NotEnforced: true}

// Cluster is the API server; package kube has the real one.
type Cluster interface {
	// View is what it said last; false: nothing whole yet.
	View() (plan.View, bool)
	// Changed gets a value when there is another view.
	Changed() <-chan struct{}
	// Event tells of a pod.
	Event(p plan.Pod, warning bool, reason, message string)
}

// Plan is what will become of a pod that is not as it asks to be, in words.
type Plan struct {
	Namespace, Name, What string
	// Policies keep it out of the mesh.
	Policies []string
}

// Plans are those of all pods, by name.
func (k *Keeper) Plans() []Plan {
	k.told.Lock()
	defer k.told.Unlock()
	return slices.Clone(k.plans)
}

func (k *Keeper) setPlans(plans []Plan) {
	slices.SortFunc(plans, func(a, b Plan) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	k.told.Lock()
	defer k.told.Unlock()
	k.plans = plans
}

func (n *now) plan(p plan.Pod, what string) {
	n.plans = append(n.plans, Plan{Namespace: p.Namespace, Name: p.Name, What: what})
}

// maxMessage is the API server's bound of an event's message.
const maxMessage = 1024

// tell makes an event of what is new: what was said last of a pod is not said again.
func (k *Keeper) tell(p plan.Pod, reason Reason, message string) {
	if k.opts.Cluster == nil {
		return
	}
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
	}
	k.told.Lock()
	was := k.said[p.UID]
	k.said[p.UID] = said{reason, message}
	k.told.Unlock()
	if was != (said{reason, message}) {
		k.opts.Cluster.Event(p, warnings[reason], string(reason), message)
	}
}

// tellPolicies tells of policies that select enrolled pods and are not enforced. A pod's
// set is told once, and again when it is another one.
func (n *now) tellPolicies() {
	if n.opts.Policies == nil {
		return
	}
	all := n.opts.Policies()
	next := make(map[string]string)
	for _, p := range n.view.Pods {
		names := all[p.Namespace+"/"+p.Name]
		if len(names) == 0 || !stateOf(n.known[p.UID]).Enrolled {
			continue
		}
		next[p.UID] = strings.Join(names, ", ")
		if n.policies[p.UID] == next[p.UID] {
			continue
		}
		message := "NOT ENFORCED by Kmesh: connections to it are let through whatever these policies say: " + next[p.UID]
		if len(message) > maxMessage {
			message = strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
		}
		n.opts.Cluster.Event(p, true, string(NotEnforced), message)
	}
	n.policies = next
}

// bar leaves a pod out that policies keep out, and says so.
func (n *now) bar(p plan.Pod, step plan.Step) {
	n.plan(p, "is not enrolled: "+step.Reason)
	n.tell(p, NotEnforced, "Not enrolled, as policy.unenforced: refuse-enrolment asks for. Take the policies away, or leave the pod to a sidecar, which enforces them: "+step.Reason)
}

// said is a word about a pod.
type said struct {
	reason  Reason
	message string
}

// unsay forgets what was said of pods that are gone.
func (k *Keeper) unsay(there map[string]bool) {
	k.told.Lock()
	defer k.told.Unlock()
	maps.DeleteFunc(k.said, func(uid string, _ said) bool { return !there[uid] })
}
