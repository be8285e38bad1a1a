// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"kmesh/helper/mesh"
)

// Unenforced returns what the policies and waypoints of this node's workloads and the
// known services ask for and do not get: a verdict for each policy that selects a workload
// of this node, for each policy that one of them names and nobody has sent, and for each
// service whose waypoint is not known. Sorted by type and name. Of this node's workloads
// only those count that enrolled tells; nil: all of them.
func (x *Index) Unenforced(enrolled func(*mesh.Workload) bool) []mesh.Verdict {
	var out []mesh.Verdict
	local := sorted(x.local)
	if enrolled != nil {
		local = slices.DeleteFunc(local, func(w *Workload) bool { return !enrolled(&w.Workload) })
	}
	for _, name := range slices.Sorted(maps.Keys(x.policies)) {
		p := x.policies[name]
		var selected []*Workload
		for _, w := range local {
			if selects(p, name, w) {
				selected = append(selected, w)
			}
		}
		if len(selected) == 0 {
			continue
		}
		v := mesh.Verdict{Source: x.sources[name], Type: TypeAuthorization, Resource: name, Class: mesh.UnsupportedAction}
		who := fmt.Sprintf("%d workloads of this node (%s among them)", len(selected), selected[0].label())
		if len(selected) == 1 {
			who = selected[0].label()
		}
		switch {
		case p.DryRun:
			v.Class, v.Message = mesh.Default, "a dry run of "+who+" enforces nothing"
		case p.Deny:
			v.Message = "NOT ENFORCED: connections to " + who + " that it denies are let through"
			if Stripped(p) {
				v.Message += "; HTTP conditions were taken out of it, so that what is left denies less than it was written to"
			}
		default:
			v.Message = "NOT ENFORCED: connections to " + who + " that no policy allows are let through"
		}
		out = append(out, v)
	}
	missing := map[string]*Workload{}
	for _, w := range local {
		for _, name := range w.Policies {
			if x.policies[name] == nil && missing[name] == nil {
				missing[name] = w
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		out = append(out, mesh.Verdict{
			Type: TypeAuthorization, Resource: name, Class: mesh.UnsupportedAction,
			Message: "NOT ENFORCED: " + missing[name].label() + " names it, and it is not known",
		})
	}
	return append(out, x.unknownWaypoints()...)
}

// unknownWaypoints are the services that lead to a waypoint that nobody has sent.
func (x *Index) unknownWaypoints() []mesh.Verdict {
	var out []mesh.Verdict
	for _, way := range slices.Sorted(maps.Keys(x.via)) {
		if x.services[way] != nil {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(x.via[way])) {
			if slices.ContainsFunc(x.services[key].waypoints, func(w waypoint) bool { return w.tunnel }) {
				continue // it is not used anyway
			}
			out = append(out, mesh.Verdict{
				Type: TypeService, Resource: key, Field: "waypoint", Class: mesh.UnsupportedCondition,
				Message: fmt.Sprintf("the waypoint %q is not known: connections are refused rather than let past it", way),
			})
		}
	}
	slices.SortStableFunc(out, func(a, b mesh.Verdict) int { return strings.Compare(a.Resource, b.Resource) })
	return out
}

// selects tells whether a policy is about a workload.
func selects(p *mesh.Authorization, name string, w *Workload) bool {
	switch p.Scope {
	case mesh.AuthGlobal:
		return true
	case mesh.AuthNamespace:
		return p.Namespace == w.Namespace
	}
	return slices.Contains(w.Policies, name)
}

// label is what people know a workload by.
func (w *Workload) label() string {
	if w.Name == "" {
		return w.UID
	}
	return w.Namespace + "/" + w.Name
}
