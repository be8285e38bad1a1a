// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"kmesh/helper/mesh"
	"kmesh/helper/pods/plan"
	"kmesh/netns"
)

// Pod is a pod of this node that is governed, or is to be.
type Pod struct {
	Namespace, Name string
	// Scope is the one that it asks for. Unknown: the API server has not said; it keeps
	// the one that it has.
	Scope   mesh.ScopeKey
	Unknown bool
	// Spaces are its network namespaces with the ids of the scopes that they have; none
	// before it is enrolled.
	Spaces map[uint64]uint32
}

// PodsOf joins what is enrolled with what the API server says, nil if it has said nothing
// yet. A pod that is to be governed is there before it is enrolled, so that its scope may
// be there in time. own are namespaces that are never enrolled.
func PodsOf(known []netns.Known, view *plan.View, own []string) []Pod {
	enrolled := make(map[string]bool)
	for _, k := range known {
		if k.UID != "" && k.Ready && !k.Draining {
			enrolled[k.UID] = true
		}
	}
	var out []Pod
	at := make(map[string]int) // by UID
	if view != nil {
		for _, p := range view.Pods {
			if enrolled[p.UID] || plan.Wants(p, view.Namespaces, own) {
				at[p.UID] = len(out)
				out = append(out, Pod{Namespace: p.Namespace, Name: p.Name, Scope: KeyOf(p.Namespace, p.ServiceAccount, p.Labels)})
			}
		}
	}
	for _, k := range known {
		if !k.Ready || k.Draining {
			continue // opted out: it has no scope
		}
		i, ok := at[k.UID]
		if !ok || k.UID == "" {
			i = len(out)
			out = append(out, Pod{Namespace: k.Namespace, Name: k.Name, Unknown: true})
		}
		if out[i].Spaces == nil {
			out[i].Spaces = make(map[uint64]uint32)
		}
		out[i].Spaces[k.NetnsCookie] = k.Scope
	}
	return out
}
