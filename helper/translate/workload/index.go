// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"kmesh/helper/mesh"
)

// Here is where the node is: what preferences compare with. Workloads and addresses of
// another network cannot be reached from it.
type Here struct {
	Node, Network, Cluster string
	Region, Zone, SubZone  string
}

// Index keeps services, workloads and policies, and what is made of them. A change costs
// what it touches: the services that a workload serves and those that lead through them.
// It is not for several goroutines.
type Index struct {
	here      Here
	services  map[string]*Service
	workloads map[string]*Workload
	policies  map[string]*mesh.Authorization
	// sources are where policies came from.
	sources map[string]string

	members map[string]map[string]*Workload // by service, by uid; also of unknown services
	owners  map[netip.Addr]set              // services by their addresses
	via     map[string]set                  // services by the service that is their waypoint
	viaAddr map[netip.Addr]set              // the same, by its address
	behind  map[netip.Addr][]*Workload      // by address, sorted by uid
	local   map[string]*Workload            // those of this node
	// chosen counts, by namespace, the workloads that name a policy.
	chosen map[string]map[string]int

	dirty map[string]bool
	built map[string][]*mesh.Announced
}

// set is a set of names.
type set map[string]bool

// NewIndex makes an empty index.
func NewIndex(here Here) *Index {
	return &Index{
		here:     here,
		services: map[string]*Service{}, workloads: map[string]*Workload{},
		policies: map[string]*mesh.Authorization{}, sources: map[string]string{},
		members: map[string]map[string]*Workload{},
		owners:  map[netip.Addr]set{}, via: map[string]set{}, viaAddr: map[netip.Addr]set{},
		behind: map[netip.Addr][]*Workload{}, local: map[string]*Workload{}, chosen: map[string]map[string]int{},
		dirty: map[string]bool{}, built: map[string][]*mesh.Announced{},
	}
}

// put adds a name to the set of a key, or takes it out.
func put[K comparable](sets map[K]set, key K, name string, in bool) {
	switch {
	case in && sets[key] == nil:
		sets[key] = set{name: true}
	case in:
		sets[key][name] = true
	default:
		if delete(sets[key], name); len(sets[key]) == 0 {
			delete(sets, key)
		}
	}
}

// Put takes in a service or a workload, in place of the last version of it. One that is
// invalid changes nothing.
func (x *Index) Put(a *Address) {
	switch {
	case a.Service != nil:
		x.service(a.Service.Key, a.Service)
	case a.Workload != nil:
		x.workload(a.Workload.UID, a.Workload)
	}
}

// Remove takes out the service or workload of this resource name.
func (x *Index) Remove(name string) {
	x.service(name, nil)
	x.workload(name, nil)
}

// PutAuthorization takes in a policy. One that is invalid changes nothing.
func (x *Index) PutAuthorization(a *Authorization, source string) {
	if a.Policy != nil {
		x.policies[a.Name], x.sources[a.Name] = a.Policy, source
	}
}

// RemoveAuthorization takes out a policy.
func (x *Index) RemoveAuthorization(name string) {
	delete(x.policies, name)
	delete(x.sources, name)
}

// service replaces a service; nil: there is none.
func (x *Index) service(key string, next *Service) {
	last := x.services[key]
	if last == nil && next == nil {
		return
	}
	for _, s := range []*Service{last, next} {
		if s == nil {
			continue
		}
		in := s == next
		for _, f := range s.frontends {
			if f.prefix.IsSingleIP() {
				put(x.owners, f.prefix.Addr(), key, in)
				x.touch(x.viaAddr[f.prefix.Addr()])
			}
		}
		for _, w := range s.waypoints {
			if w.key != "" {
				put(x.via, w.key, key, in)
			} else {
				put(x.viaAddr, w.addr, key, in)
			}
		}
	}
	if next == nil {
		delete(x.services, key)
	} else {
		x.services[key] = next
	}
	x.changed(key)
}

// workload replaces a workload; nil: there is none.
func (x *Index) workload(uid string, next *Workload) {
	last := x.workloads[uid]
	if last != nil {
		for key := range last.services {
			if delete(x.members[key], uid); len(x.members[key]) == 0 {
				delete(x.members, key)
			}
			x.changed(key)
		}
		for _, addr := range last.Addrs {
			list := slices.DeleteFunc(x.behind[addr], func(w *Workload) bool { return w == last })
			if x.behind[addr] = list; len(list) == 0 {
				delete(x.behind, addr)
			}
		}
		delete(x.local, uid)
		delete(x.workloads, uid)
		x.choose(last, -1)
	}
	if next == nil {
		return
	}
	x.workloads[uid] = next
	x.choose(next, 1)
	for key := range next.services {
		if x.members[key] == nil {
			x.members[key] = map[string]*Workload{}
		}
		x.members[key][uid] = next
		x.changed(key)
	}
	if !next.HostNetwork && x.reachable(next.Network) {
		for _, addr := range next.Addrs {
			list := x.behind[addr]
			at, _ := slices.BinarySearchFunc(list, uid, func(w *Workload, uid string) int { return compare(w.UID, uid) })
			x.behind[addr] = slices.Insert(list, at, next)
		}
	}
	if x.here.Node != "" && next.Node == x.here.Node {
		x.local[uid] = next
	}
}

// choose counts the policies that a workload names, or takes them off again.
func (x *Index) choose(w *Workload, by int) {
	for _, name := range w.Policies {
		count := x.chosen[w.Namespace]
		if count == nil {
			count = map[string]int{}
			x.chosen[w.Namespace] = count
		}
		if count[name] += by; count[name] == 0 {
			if delete(count, name); len(count) == 0 {
				delete(x.chosen, w.Namespace)
			}
		}
	}
}

// reachable tells whether a network is this node's; the default one has no name.
func (x *Index) reachable(network string) bool {
	return network == "" || x.here.Network == "" || network == x.here.Network
}

// changed marks a service, and what leads through it.
func (x *Index) changed(key string) {
	x.dirty[key] = true
	x.touch(x.via[key])
	if s := x.services[key]; s != nil && len(x.viaAddr) > 0 {
		for _, f := range s.frontends {
			x.touch(x.viaAddr[f.prefix.Addr()])
		}
	}
}

func (x *Index) touch(names set) {
	for name := range names {
		x.dirty[name] = true
	}
}

// Flush makes what has changed, and returns the keys of the services that are others now,
// sorted.
func (x *Index) Flush() []string {
	var out []string
	for key := range x.dirty {
		last := x.built[key]
		next := x.announce(key, last)
		if slices.Equal(last, next) {
			continue
		}
		if x.built[key] = next; len(next) == 0 {
			delete(x.built, key)
		}
		out = append(out, key)
	}
	clear(x.dirty)
	slices.Sort(out)
	return out
}

// Announced returns what a service is, as of the last Flush: an entry per port and
// family. What has not changed is the same as before.
func (x *Index) Announced(key string) []*mesh.Announced { return x.built[key] }

// All returns every service as of the last Flush, sorted.
func (x *Index) All() iter.Seq[*mesh.Announced] {
	return func(yield func(*mesh.Announced) bool) {
		for _, key := range slices.Sorted(maps.Keys(x.built)) {
			for _, a := range x.built[key] {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// Behind returns the workload that has an address of its own; nil if none is known.
func (x *Index) Behind(addr netip.Addr) *mesh.Workload {
	if list := x.behind[addr.Unmap()]; len(list) > 0 {
		return &list[0].Workload
	}
	return nil
}
