// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"strings"

	"kmesh/cni/optin"
)

// Policies are authorization policies that are not enforced, and keep the pods that they
// select out of the mesh.
type Policies struct {
	// Policies are what is known of them without the pods, as the plugin is told.
	optin.Policies
	// Pods are the pods of this node, by UID.
	Pods map[string]Selected
	// Last: not all of them are known yet, and those that were known last hold beside these.
	Last bool
	// Unknown is why a pod that runs is not enrolled before they are known; "": it is.
	Unknown string
}

// Selected is what is known of a pod.
type Selected struct {
	// Known: whoever has the policies knows the pod as it is now, and Policies are all that
	// select it.
	Known    bool
	Policies []string
}

// With returns them with those that were known last, where these hold.
func (p Policies) With(last optin.Policies) Policies {
	if p.Last {
		p.Policies = p.Policies.And(last)
	}
	return p
}

// of returns the policies that select a pod; or why it is not known yet whether any does.
func (p *Policies) of(pod Pod) (names []string, wait string) {
	s := p.Pods[pod.UID]
	if len(s.Policies) > 0 {
		return s.Policies, ""
	}
	if names := p.All(pod.Namespace); len(names) > 0 {
		return names, ""
	}
	some := p.Some[pod.Namespace]
	switch {
	case p.Unknown != "":
		return nil, p.Unknown
	case len(some) == 0 || s.Known:
		return nil, ""
	}
	return nil, "the control plane has not said yet whether policies select it that Kmesh does not enforce (" + strings.Join(some, ", ") + ")"
}
