// SPDX-License-Identifier: Apache-2.0

package optin

import (
	"maps"
	"slices"
)

// Policies are authorization policies that are not enforced and keep the pods that they select out of the mesh, by name: "namespace/name". They are there
// where the helper was told to refuse enrolment for them. The plugin is told of no labels, so what goes by labels it can only leave to the helper.
type Policies struct {
	// Everywhere: they select every pod.
	Everywhere []string `json:"everywhere,omitempty"`
	// Namespaces: they select every pod of a namespace.
	Namespaces map[string][]string `json:"namespaces,omitempty"`
	// Some: they select some pods of a namespace, or may. The helper knows which, and enrols the others when they have started.
	Some map[string][]string `json:"some,omitempty"`
}

// maxNamed bounds the names that are kept of one list: any of them is a reason.
const maxNamed = 3

// About returns the policies that keep pods of a namespace out at their creation, and why.
func (p Policies) About(namespace string) (names []string, why string) {
	if names := p.All(namespace); len(names) > 0 {
		return names, Unenforced(names)
	}
	if names := p.Some[namespace]; len(names) > 0 {
		return names, "kmesh-helper enrols it unless " + Unenforced(names)
	}
	return nil, ""
}

// All are those that select every pod of a namespace.
func (p Policies) All(namespace string) []string {
	return named(slices.Concat(p.Everywhere, p.Namespaces[namespace]))
}

// Equal says whether two answer alike.
func (p Policies) Equal(o Policies) bool {
	return slices.Equal(p.Everywhere, o.Everywhere) && maps.EqualFunc(p.Namespaces, o.Namespaces, slices.Equal[[]string]) && maps.EqualFunc(p.Some, o.Some, slices.Equal[[]string])
}

// Whole returns them in the one form that they have on disk: sorted, without what says nothing, and with few names of many.
func (p Policies) Whole() Policies {
	out := Policies{Everywhere: named(p.Everywhere), Namespaces: byNamespace(p.Namespaces), Some: byNamespace(p.Some)}
	maps.DeleteFunc(out.Some, func(namespace string, _ []string) bool { return len(out.Namespaces[namespace]) > 0 })
	if len(out.Some) == 0 {
		out.Some = nil
	}
	return out
}

// And returns both.
func (p Policies) And(o Policies) Policies {
	both := func(a, b map[string][]string) map[string][]string {
		out := maps.Clone(a)
		for namespace, names := range b {
			if out == nil {
				out = make(map[string][]string)
			}
			out[namespace] = slices.Concat(out[namespace], names)
		}
		return out
	}
	return Policies{
		Everywhere: slices.Concat(p.Everywhere, o.Everywhere),
		Namespaces: both(p.Namespaces, o.Namespaces), Some: both(p.Some, o.Some),
	}.Whole()
}

func byNamespace(all map[string][]string) map[string][]string {
	var out map[string][]string
	for namespace, names := range all {
		if names = named(names); namespace == "" || len(names) == 0 {
			continue
		}
		if out == nil {
			out = make(map[string][]string)
		}
		out[namespace] = names
	}
	return out
}

// named sorts names and keeps the first of them.
func named(names []string) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "" })
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return nil
	}
	return names[:min(len(names), maxNamed)]
}
