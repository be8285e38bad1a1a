// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/netip"
	"slices"

	"kmesh/helper/mesh"
)

// Selection is whom policies select that are not enforced, by the policies' names. One that
// is a dry run selects nobody: it would enforce nothing.
type Selection struct {
	// Everywhere: they select every workload.
	Everywhere []string
	// Namespaces: they select every workload of a namespace.
	Namespaces map[string][]string
	// Some: they select some workloads of a namespace, or may.
	Some map[string][]string
	// Local are this node's workloads, by "namespace/name".
	Local map[string]Selected
}

// Selected is a workload of this node with the policies that select it.
type Selected struct {
	Addrs    []netip.Addr
	Policies []string
}

// PoliciesOf returns the names of the policies that select this node's workloads and are
// not enforced, sorted, by "namespace/name" of the workload. A workload that names one that
// nobody has sent has it, too.
func (x *Index) PoliciesOf() map[string][]string {
	out := make(map[string][]string)
	for _, w := range x.local {
		if names := x.policiesOf(w); len(names) > 0 {
			out[w.Namespace+"/"+w.Name] = names
		}
	}
	return out
}

func (x *Index) policiesOf(w *Workload) []string {
	var names []string
	for name, p := range x.policies {
		if !p.DryRun && selects(p, name, w) {
			names = append(names, name)
		}
	}
	for _, name := range w.Policies {
		if x.policies[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Selection returns whom policies select. What selects by labels is known of workloads only,
// by name: such a policy may select any workload of its own namespace, and where it belongs
// to the whole mesh (its root namespace) it is taken to select in those namespaces of which
// a workload names it.
func (x *Index) Selection() Selection {
	out := Selection{Namespaces: map[string][]string{}, Some: map[string][]string{}, Local: map[string]Selected{}}
	for name, p := range x.policies {
		switch {
		case p.DryRun:
		case p.Scope == mesh.AuthGlobal:
			out.Everywhere = append(out.Everywhere, name)
		case p.Scope == mesh.AuthNamespace:
			out.Namespaces[p.Namespace] = append(out.Namespaces[p.Namespace], name)
		default:
			out.Some[p.Namespace] = append(out.Some[p.Namespace], name)
		}
	}
	for namespace, count := range x.chosen {
		for name := range count {
			p := x.policies[name]
			if p == nil || p.Scope == mesh.AuthSelector && !p.DryRun {
				out.Some[namespace] = append(out.Some[namespace], name)
			}
		}
	}
	slices.Sort(out.Everywhere)
	for _, all := range []map[string][]string{out.Namespaces, out.Some} {
		for namespace, names := range all {
			slices.Sort(names)
			all[namespace] = slices.Compact(names)
		}
	}
	for _, w := range x.local {
		key := w.Namespace + "/" + w.Name
		of := out.Local[key]
		of.Addrs = append(of.Addrs, w.Addrs...)
		of.Policies = append(of.Policies, x.policiesOf(w)...)
		slices.Sort(of.Policies)
		of.Policies = slices.Compact(of.Policies)
		out.Local[key] = of
	}
	return out
}
