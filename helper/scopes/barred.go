// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"kmesh/cni/optin"
	"kmesh/helper/mesh"
	"kmesh/helper/pods/plan"
	"kmesh/helper/translate/workload"
)

// Unenforced returns the authorization policies of inbound traffic, which nobody enforces, in
// the view that pods of a scope get; false while there has been no word of them. Of pods that
// have no view of their own only the workload API tells: in the default view they are the
// helper's.
func (m *Manager) Unenforced(key mesh.ScopeKey) ([]string, bool) {
	m.mu.Lock()
	v := m.views[mesh.ScopeKey{}]
	if m.opts.Open != nil {
		get, ok := m.gets[key]
		if !ok {
			get = key
		}
		if v = m.views[get]; get == (mesh.ScopeKey{}) {
			v = nil
		}
	}
	m.mu.Unlock()
	if v == nil {
		return nil, false
	}
	return v.store.Unenforced()
}

// Sources are who tells of policies that are not enforced.
type Sources struct {
	// API is the workload API's word, false before there is one; nil: it is not followed.
	// Until then is how long pods that run wait for it.
	API   func() (workload.Selection, bool)
	Until time.Time
	// One: there is one view of the mesh, which is every pod's.
	One bool
	// Inbound are those of a view; false: not known.
	Inbound func(mesh.ScopeKey) ([]string, bool)
}

// Barred tells which of these policies keep the pods out of the mesh that they select. A pod
// is known by the workload API's word of it where that is followed, since what it says of
// policies is all of them; else by its view's. What is not known yet does not end what was
// known last: a control plane that is away takes no policy away.
func Barred(view plan.View, from Sources) plan.Policies {
	out := plan.Policies{Policies: optin.Policies{Namespaces: map[string][]string{}, Some: map[string][]string{}}, Pods: map[string]plan.Selected{}}
	var local map[string]workload.Selected
	if from.API != nil {
		all, heard := from.API()
		if heard {
			out.Everywhere, local = slices.Clone(all.Everywhere), all.Local
			maps.Copy(out.Namespaces, all.Namespaces)
			maps.Copy(out.Some, all.Some)
		} else if out.Last = true; time.Now().Before(from.Until) {
			out.Unknown = "no word yet from the workload API about policies"
		}
	}
	if from.One {
		names, ok := from.Inbound(mesh.ScopeKey{})
		out.Everywhere, out.Last = append(out.Everywhere, names...), out.Last || !ok
	}
	for _, p := range view.Pods {
		var of plan.Selected
		if !from.One {
			of.Policies, of.Known = from.Inbound(KeyOf(p.Namespace, p.ServiceAccount, p.Labels))
			out.Some[p.Namespace] = slices.Concat(out.Some[p.Namespace], of.Policies)
		}
		if from.API != nil {
			// A pod that was made anew has its name of before, and another address.
			w, ok := local[p.Namespace+"/"+p.Name]
			of.Known = ok && slices.ContainsFunc(w.Addrs, func(a netip.Addr) bool { return slices.Contains(p.Addrs, a) })
			if of.Known {
				of.Policies = slices.Concat(of.Policies, w.Policies)
			}
		}
		slices.Sort(of.Policies)
		of.Policies = slices.Compact(of.Policies)
		out.Pods[p.UID] = of
	}
	return out
}
