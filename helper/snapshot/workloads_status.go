// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload"
)

// WorkloadsStatus is what the store has and what is wrong with it, for people.
type WorkloadsStatus struct {
	// Waiting says of what there is no word yet; empty if there is of everything.
	Waiting string
	// Services, Workloads and Authorizations count those that are in use.
	Services, Workloads, Authorizations int
	// Rejected counts the resources whose newest version is not in use.
	Rejected int
	// Announced is how many services the data path is given: one per port and family.
	Announced int
	// NotEnforced is what is served without, or not served: a line for each thing that
	// there is to say, sorted.
	NotEnforced []Repeated
	// Problems is everything of class Invalid, sorted: what to repair.
	Problems []mesh.Verdict
}

// Repeated is a verdict that several resources have got.
type Repeated struct {
	mesh.Verdict // of the first of them
	Resources    int
}

// Status returns the state as of the last change, and the services as of the last call of
// Announced.
func (w *Workloads) Status() WorkloadsStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := WorkloadsStatus{Announced: w.announced.Len()}
	var silent []string
	for _, url := range []string{AddressType, AuthorizationType} {
		if !w.seen[url] {
			silent = append(silent, url[strings.LastIndexByte(url, '.')+1:])
		}
	}
	if len(silent) > 0 {
		st.Waiting = "no word yet about resources of type " + strings.Join(silent, " and ")
	}
	repeated := map[mesh.Verdict]*Repeated{}
	for name, e := range w.addresses {
		switch {
		case !e.hasGood:
		case e.good.Service != nil:
			st.Services++
		default:
			st.Workloads++
		}
		count(repeated, e.verdicts(name))
		st.Rejected += rejected(e)
	}
	for name, e := range w.policies {
		if e.hasGood {
			st.Authorizations++
		}
		count(repeated, e.verdicts(name))
		st.Rejected += rejected(e)
	}
	for _, r := range repeated {
		st.NotEnforced = append(st.NotEnforced, *r)
	}
	slices.SortFunc(st.NotEnforced, func(a, b Repeated) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message), cmp.Compare(a.Source, b.Source))
	})
	st.Problems = sortVerdicts(append(invalids(w.addresses), invalids(w.policies)...))
	return st
}

func rejected[T any](e *entry[T]) int {
	if e.rejected {
		return 1
	}
	return 0
}

// count takes verdicts in that are no mistakes, by everything but the resource.
func count(repeated map[mesh.Verdict]*Repeated, verdicts []mesh.Verdict) {
	for _, v := range verdicts {
		if v.Class == mesh.Invalid {
			continue
		}
		key := v
		key.Resource = ""
		r := repeated[key]
		if r == nil {
			r = &Repeated{Verdict: v}
			repeated[key] = r
		}
		r.Resource = min(r.Resource, v.Resource)
		r.Resources++
	}
}

// Resources tells of every resource, by type and name. The verdicts are those that say
// that something is not enforced or wrong.
func (w *Workloads) Resources() []ResourceStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]ResourceStatus, 0, len(w.addresses)+len(w.policies))
	for _, name := range slices.Sorted(maps.Keys(w.addresses)) {
		e := w.addresses[name]
		typ := "Address"
		if e.hasGood {
			typ = workload.TypeWorkload
			if e.good.Service != nil {
				typ = workload.TypeService
			}
		}
		out = append(out, describe(typ, name, e, usage(e, true)))
	}
	for _, name := range slices.Sorted(maps.Keys(w.policies)) {
		out = append(out, describe(workload.TypeAuthorization, name, w.policies[name], usage(w.policies[name], true)))
	}
	slices.SortStableFunc(out, func(a, b ResourceStatus) int { return cmp.Compare(a.Type, b.Type) })
	return out
}
