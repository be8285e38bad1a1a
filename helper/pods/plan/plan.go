// SPDX-License-Identifier: Apache-2.0

// Package plan decides what is to be done with a pod that lives: the rule by which a
// change of annotations or labels reaches pods that have started.
//
// The rule, whole. What a pod and its namespace say is read as at the pod's creation
// (package optin), whenever either changes:
//
//   - says yes, is not enrolled: enrolled late. What it opens from then on is governed;
//     what is open stays as it is.
//   - says no, is enrolled: drained. What it opens from then on is not governed; what is
//     open stays governed until it has ended, however long that takes; then the programs go.
//   - bears another mesh's mark, is enrolled, and its namespace requires it: as it was. At its
//     creation the mark counts, since its containers tell it; no container comes later, but
//     an annotation may, by which a pod would take itself out.
//   - says yes again while it drains: governed again, at once.
//   - says what cannot be obeyed, or cannot be known (its namespace is not seen yet): as it was.
//   - ends, or has no address yet: left to the plugin, which creation and deletion belong to.
//
// Where authorization policies that are not enforced keep the pods that they select out
// (Policies), such a pod is as one that says no, also where its namespace requires it; and one
// of which it is not known whether they select it is not enrolled before it is.
//
// Invariant: nothing is done to a pod whose wish is not known.
package plan

import (
	"net/netip"

	"kmesh/cni/optin"
)

// Pod is what the API server says of a pod.
type Pod struct {
	// UID is the one that cgroup and plugin know it by. A static pod has another one at
	// the API server: APIUID.
	UID, APIUID     string
	Namespace, Name string
	Annotations     map[string]string // those that optin.Decide reads
	HostNetwork     bool
	// Ending: it is being deleted, or its containers have ended for good.
	Ending bool
	// Addrs are its addresses; none before its sandbox is made.
	Addrs []netip.Addr
	// Labels and ServiceAccount are what its view of the mesh depends on.
	Labels         map[string]string
	ServiceAccount string
}

// Namespaces are the modes of all namespaces there are, "" for those without one.
type Namespaces map[string]optin.Mode

// View is all that the API server says.
type View struct {
	Pods       []Pod
	Namespaces Namespaces
}

// State is how a pod is.
type State struct {
	Enrolled bool
	Draining bool // and opted out
}

// Action is what is to be done.
type Action int

// The actions.
const (
	Nothing Action = iota
	Enroll         // late
	Drain          // stop governing what is opened from now on
	Finish         // let go what drains, once nothing of it is open
	Resume         // take a Drain back
	Refuse         // it asks for what it cannot have; it stays as it is
	Bar            // it is not enrolled, for policies select it that are not enforced
	Wait           // it is not enrolled before it is known whether such policies select it
)

func (a Action) String() string {
	return [...]string{"nothing", "enroll", "drain", "finish", "resume", "refuse", "bar", "wait"}[a]
}

// Step is an action with its reason, in words.
type Step struct {
	Action Action
	Reason string
	// Policies are the reason.
	Policies []string
}

// Next decides for a pod. own are namespaces that are never enrolled beside the built-in ones;
// policies keep pods out, nil: none does.
func Next(p Pod, namespaces Namespaces, own []string, policies *Policies, st State) Step {
	mode, known := namespaces[p.Namespace]
	if p.Ending || !known {
		return Step{}
	}
	d, err := decide(p, mode, own)
	switch {
	case err != nil:
		return Step{Action: Refuse, Reason: err.Error()}
	case d.Enroll && p.HostNetwork:
		return Step{Action: Refuse, Reason: d.Reason + ", but it has the node's network (hostNetwork): such a pod cannot be governed"}
	}
	if d.Enroll && policies != nil {
		names, wait := policies.of(p)
		switch {
		case len(names) > 0:
			return barred(p, names, st)
		case wait != "" && (st.Enrolled || len(p.Addrs) == 0):
			return Step{}
		case wait != "":
			return Step{Action: Wait, Reason: wait}
		}
	}
	switch {
	case d.Enroll && st.Draining:
		return Step{Action: Resume, Reason: d.Reason}
	case d.Enroll && (st.Enrolled || len(p.Addrs) == 0):
		return Step{}
	case d.Enroll:
		return Step{Action: Enroll, Reason: d.Reason}
	case st.Draining:
		return Step{Action: Finish, Reason: d.Reason}
	case st.Enrolled && mode == optin.Required:
		return Step{Action: Refuse, Reason: d.Reason + ", but namespace " + p.Namespace + " requires enrolment"}
	case st.Enrolled:
		return Step{Action: Drain, Reason: d.Reason}
	}
	return Step{}
}

// barred decides for a pod that policies keep out.
func barred(p Pod, names []string, st State) Step {
	step := Step{Reason: optin.Unenforced(names), Policies: names}
	switch {
	case st.Draining:
		step.Action = Finish
	case st.Enrolled:
		step.Action = Drain
	case len(p.Addrs) == 0:
		return Step{}
	default:
		step.Action = Bar
	}
	return step
}

// Wants says whether a pod is to be governed, now or once it has been made.
func Wants(p Pod, namespaces Namespaces, own []string) bool {
	mode, known := namespaces[p.Namespace]
	if p.Ending || !known || p.HostNetwork {
		return false
	}
	d, err := decide(p, mode, own)
	return err == nil && d.Enroll
}

func decide(p Pod, mode optin.Mode, own []string) (optin.Decision, error) {
	set := optin.Set{Namespaces: map[string]optin.Mode{p.Namespace: mode}, ControlPlane: own}
	if mode == "" {
		set.Namespaces = nil
	}
	return optin.Decide(p.Namespace, p.Annotations, set)
}

// Set is the set that the plugin reads, as the namespaces and the policies say.
func (n Namespaces) Set(own []string, policies *Policies) optin.Set {
	s := optin.Set{Namespaces: make(map[string]optin.Mode), ControlPlane: own}
	if policies != nil {
		s.Policies = policies.Policies.Whole()
	}
	for name, mode := range n {
		if mode != "" {
			s.Namespaces[name] = mode
		}
	}
	return s
}
