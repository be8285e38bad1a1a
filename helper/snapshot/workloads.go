// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
	"kmesh/helper/xds"
)

// The type URLs of the workload API.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// WorkloadTypes are the types of the workload API, for xds.ServerOptions. All resources of
// both are asked for, by the delta protocol: they have no names inside.
func WorkloadTypes() []xds.Type {
	return []xds.Type{
		{URL: AddressType, Decode: xds.Named(func() *address.Address { return &address.Address{} })},
		{URL: AuthorizationType, Decode: xds.Named(func() *policy.Authorization { return &policy.Authorization{} })},
	}
}

// WorkloadsOptions configure a store of the workload API.
type WorkloadsOptions struct {
	// Here is where this node is.
	Here   workload.Here
	Logger *slog.Logger
}

// Workloads keeps what the workload API says. It is an xds.Consumer. A resource that is
// invalid keeps its last good version. What it is asked for may be asked from any goroutine,
// and is as of the last change that was applied, the whole of it.
type Workloads struct {
	log *slog.Logger
	// changed has room for one: something has changed since it was taken out.
	changed chan struct{}

	mu        sync.Mutex
	index     *workload.Index
	addresses table[*workload.Address]
	policies  table[*workload.Authorization]
	seen      map[string]bool // types that have been heard of
	announced *Announced
	stale     bool // something has changed since announced was made
}

var _ xds.Consumer = (*Workloads)(nil)

// NewWorkloads makes an empty store.
func NewWorkloads(opts WorkloadsOptions) *Workloads {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	return &Workloads{
		log: opts.Logger, changed: make(chan struct{}, 1), index: workload.NewIndex(opts.Here),
		addresses: table[*workload.Address]{}, policies: table[*workload.Authorization]{}, seen: map[string]bool{},
		announced: announce(nil, nil),
	}
}

// Changed gives a word after something has changed, one for all changes since the last.
func (w *Workloads) Changed() <-chan struct{} { return w.changed }

// Wanted implements xds.Consumer: everything is.
func (w *Workloads) Wanted(string) []string { return nil }

// Absent implements xds.Consumer: nothing is asked for by name.
func (w *Workloads) Absent(string, []string) {}

// arrival is a resource that has come, translated if it is another one than before.
type arrival struct {
	xds.Resource
	address  *workload.Address
	policy   *workload.Authorization
	verdicts []mesh.Verdict
}

// Apply implements xds.Consumer.
func (w *Workloads) Apply(_ context.Context, updates ...xds.Update) error {
	// What costs time does not keep the others from asking: the tables are changed here
	// only, so that they may be read without the lock.
	come := make([][]arrival, len(updates))
	for i, u := range updates {
		for _, r := range u.Resources {
			come[i] = append(come[i], w.translate(u.Type, r))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var bad xds.Rejected
	changed := false
	for i, u := range updates {
		if u.Type != AddressType && u.Type != AuthorizationType {
			continue
		}
		changed = changed || !w.seen[u.Type]
		w.seen[u.Type] = true
		present := map[string]bool{}
		for _, a := range come[i] {
			present[a.Name] = true
			wrong, other := w.put(u.Type, a)
			bad, changed = append(bad, wrong...), changed || other
		}
		gone := u.Removed
		if u.Complete {
			gone = append(slices.Clone(gone), w.missing(u.Type, present)...)
		}
		for _, name := range gone {
			changed = w.take(u.Type, name) || changed
		}
	}
	if changed {
		w.stale = true
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// translate translates a resource unless it is what is there already.
func (w *Workloads) translate(typeURL string, r xds.Resource) arrival {
	if len(r.Invalid) > 0 || typeURL == AddressType && w.addresses[r.Name].same(r) || typeURL == AuthorizationType && w.policies[r.Name].same(r) {
		return arrival{Resource: r}
	}
	return translated(typeURL, r)
}

func translated(typeURL string, r xds.Resource) arrival {
	out := arrival{Resource: r}
	switch typeURL {
	case AddressType:
		out.address = workload.TranslateAddress(r.Message.(*address.Address), r.Source)
		out.verdicts = notable(r, out.address.Name, out.address.Verdicts)
		out.address.Verdicts = nil
	case AuthorizationType:
		out.policy = workload.TranslateAuthorization(r.Message.(*policy.Authorization), r.Source)
		out.verdicts = notable(r, out.policy.Name, out.policy.Verdicts)
		out.policy.Verdicts = nil
	}
	return out
}

// notable returns the verdicts to keep: of 100,000 workloads, each has a dozen fields of
// which there is nothing to say. A resource is known, and removed, by the name that it was
// sent under: it must be its own.
func notable(r xds.Resource, name string, verdicts []mesh.Verdict) []mesh.Verdict {
	var out []mesh.Verdict
	for _, v := range verdicts {
		if v.Class != mesh.Enforced && v.Class != mesh.Default {
			v.Resource = r.Name
			out = append(out, v)
		}
	}
	if name != r.Name && !slices.ContainsFunc(out, func(v mesh.Verdict) bool { return v.Class == mesh.Invalid }) {
		out = append(out, r.Verdict("name", fmt.Sprintf("is called %q in the envelope and %q inside", r.Name, name)))
	}
	return slices.Clip(out)
}

// put takes one resource in.
func (w *Workloads) put(typeURL string, a arrival) (bad []mesh.Verdict, changed bool) {
	if typeURL == AuthorizationType {
		bad, changed = w.policies.put(a.Resource, false, nil, func() (*workload.Authorization, []mesh.Verdict) {
			if a.policy == nil { // it has come twice in one change
				a = translated(typeURL, a.Resource)
			}
			return a.policy, a.verdicts
		})
		if e := w.policies[a.Name]; changed && !e.rejected {
			w.index.PutAuthorization(e.good, e.source)
		}
		return bad, changed
	}
	var last *workload.Address
	if e := w.addresses[a.Name]; e != nil {
		last = e.good
	}
	bad, changed = w.addresses.put(a.Resource, false, nil, func() (*workload.Address, []mesh.Verdict) {
		if a.address == nil {
			a = translated(typeURL, a.Resource)
		}
		return a.address, a.verdicts
	})
	if e := w.addresses[a.Name]; changed && !e.rejected {
		if last != nil && (last.Service == nil) != (e.good.Service == nil) {
			w.index.Remove(a.Name) // it was a service and is a workload now, or the other way
		}
		w.index.Put(e.good)
	}
	return bad, changed
}

// missing are the names of a type that a complete update does not have.
func (w *Workloads) missing(typeURL string, present map[string]bool) (names []string) {
	have := maps.Keys(w.addresses)
	if typeURL == AuthorizationType {
		have = maps.Keys(w.policies)
	}
	for name := range have {
		if !present[name] {
			names = append(names, name)
		}
	}
	return names
}

// take takes one resource out; it tells whether it was there.
func (w *Workloads) take(typeURL, name string) bool {
	if typeURL == AddressType {
		w.index.Remove(name)
		return without(w.addresses, name)
	}
	w.index.RemoveAuthorization(name)
	return without(w.policies, name)
}

// PoliciesOf returns the names of the policies that select this node's workloads and are
// not enforced, by "namespace/name".
func (w *Workloads) PoliciesOf() map[string][]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index.PoliciesOf()
}

// Selection returns whom policies select that are not enforced; false while there has been no
// word of the policies or of the workloads.
func (w *Workloads) Selection() (workload.Selection, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index.Selection(), w.seen[AddressType] && w.seen[AuthorizationType]
}

// Heard says whether there has been word of the services and workloads.
func (w *Workloads) Heard() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[AddressType]
}

// Announced returns the services. As long as nothing of them has changed it is the same,
// and what has not changed in them is the same objects.
func (w *Workloads) Announced() *Announced {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stale {
		w.stale = false
		if len(w.index.Flush()) > 0 {
			w.announced = NewAnnounced(w.index.All(), w.announced)
		}
	}
	return w.announced
}

// Behind returns the workload that has an address of its own; nil if none is known. It is
// never changed.
func (w *Workloads) Behind(addr netip.Addr) *mesh.Workload {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index.Behind(addr)
}

// Unenforced returns what policies and waypoints ask for and this node's enrolled workloads
// do not get. enrolled tells which those are, and must not ask this store; nil: all of them.
func (w *Workloads) Unenforced(enrolled func(*mesh.Workload) bool) []mesh.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index.Unenforced(enrolled)
}
