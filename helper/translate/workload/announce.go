// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/address"
)

// Prefix begins the names of services and clusters that come from the workload API, so
// that they are nobody else's.
const Prefix = "workload/"

func compare(a, b string) int { return strings.Compare(a, b) }

// announce makes a service of what is known about it. What equals something of last is
// that: an entry, a service, a cluster.
func (x *Index) announce(key string, last []*mesh.Announced) []*mesh.Announced {
	s := x.services[key]
	if s == nil {
		return nil
	}
	before := make(map[string]*mesh.Announced, len(last))
	for _, a := range last {
		before[a.Service.Name] = a
	}
	members := sorted(x.members[key])
	var out []*mesh.Announced
	for _, p := range s.ports {
		for _, v4 := range []bool{true, false} {
			var frontends []mesh.Frontend
			for _, f := range s.frontends {
				wanted := v4 && s.families.v4 || !v4 && s.families.v6
				if x.reachable(f.network) && f.prefix.Addr().Is4() == v4 && wanted {
					one := mesh.Frontend{Prefix: f.prefix, Port: p.service, Protocol: mesh.TCP}
					if !slices.Contains(frontends, one) {
						frontends = append(frontends, one)
					}
				}
			}
			if len(frontends) == 0 {
				continue // headless: connections go to the workloads' own addresses
			}
			a := x.one(s, p, v4, frontends, members)
			if was := before[a.Service.Name]; was != nil {
				a = reuse(a, was)
			}
			out = append(out, a)
		}
	}
	return out
}

// sorted returns the workloads in the order of their uids.
func sorted(members map[string]*Workload) []*Workload {
	return slices.SortedFunc(maps.Values(members), func(a, b *Workload) int { return compare(a.UID, b.UID) })
}

// one makes one port of a service in one family.
func (x *Index) one(s *Service, p port, v4 bool, frontends []mesh.Frontend, members []*Workload) *mesh.Announced {
	family := "ipv6"
	if v4 {
		family = "ipv4"
	}
	name := fmt.Sprintf("%s%s:%d/%s", Prefix, s.Key, p.service, family)
	out := &mesh.Announced{
		Service:   &mesh.Service{Name: name, Frontends: frontends},
		Namespace: s.Namespace, Hostname: s.Hostname, App: p.app,
	}
	lead := func(c *mesh.Cluster, weight uint32) {
		out.Clusters = append(out.Clusters, c)
		out.Service.Clusters = append(out.Service.Clusters, mesh.WeightedCluster{Cluster: c.Name, Weight: weight})
	}
	if slices.ContainsFunc(s.waypoints, func(w waypoint) bool { return w.tunnel }) || len(s.waypoints) == 0 {
		c := &mesh.Cluster{Name: name, Policy: mesh.Random}
		if s.prefer.mode == address.LoadBalancing_PASSTHROUGH {
			c.Kind = mesh.Passthrough
		} else {
			c.Localities = x.localities(s.Key, p, v4, s.prefer, members)
		}
		lead(c, 1)
		return out
	}
	for i, w := range s.waypoints {
		c := &mesh.Cluster{Name: fmt.Sprintf("%s/waypoint%d", name, i), Policy: mesh.Random}
		c.Localities = x.through(w, p, v4)
		lead(c, w.weight)
	}
	return out
}

// through returns the endpoints of a waypoint: its workloads, at the port of the service
// that leads there. One that is not known has none, so that nothing passes it by.
func (x *Index) through(w waypoint, p port, v4 bool) []mesh.Locality {
	key := w.key
	if key == "" {
		owners := slices.Sorted(maps.Keys(x.owners[w.addr]))
		owners = slices.DeleteFunc(owners, func(key string) bool { return !x.owns(key, w.addr) })
		if len(owners) == 0 {
			if w.addr.Is4() != v4 {
				return nil
			}
			return []mesh.Locality{{Endpoints: []mesh.Endpoint{{Addr: netip.AddrPortFrom(w.addr, p.service), Weight: 1}}}}
		}
		key = owners[0]
	}
	s := x.services[key]
	if s == nil {
		return nil
	}
	to := port{service: p.service, target: p.service}
	for _, own := range s.ports {
		if own.service == p.service {
			to = own
		}
	}
	return x.localities(key, to, v4, s.prefer, sorted(x.members[key]))
}

// owns tells whether a service has an address in a network that is reached from here.
func (x *Index) owns(key string, addr netip.Addr) bool {
	return slices.ContainsFunc(x.services[key].frontends, func(f frontend) bool {
		return f.prefix.IsSingleIP() && f.prefix.Addr() == addr && x.reachable(f.network)
	})
}

// localities groups the workloads that serve a port by where they are and how much they
// are preferred.
func (x *Index) localities(key string, p port, v4 bool, prefer preference, members []*Workload) []mesh.Locality {
	var out []mesh.Locality
	seen := map[netip.AddrPort]bool{}
	for _, w := range members {
		addr, ok := w.endpoint(key, p, v4)
		if !ok || seen[addr] || w.remote || !x.reachable(w.Network) {
			continue
		}
		priority, ok := x.priority(w, prefer)
		if !ok {
			continue
		}
		seen[addr] = true
		e := mesh.Endpoint{Addr: addr, Weight: w.Capacity, Health: w.Health}
		if prefer.all && e.Health == mesh.Unhealthy {
			e.Health = mesh.Healthy
		}
		l := mesh.Locality{Region: w.Region, Zone: w.Zone, SubZone: w.SubZone, Priority: priority}
		at, found := slices.BinarySearchFunc(out, l, func(a, b mesh.Locality) int {
			return cmp.Or(cmp.Compare(a.Priority, b.Priority), compare(a.Region, b.Region), compare(a.Zone, b.Zone), compare(a.SubZone, b.SubZone))
		})
		if !found {
			out = slices.Insert(out, at, l)
		}
		out[at].Endpoints = append(out[at].Endpoints, e)
	}
	for i := range out {
		fit(out[i].Endpoints)
	}
	return out
}

// endpoint returns where a workload serves a port of a service; false if it does not.
func (w *Workload) endpoint(key string, p port, v4 bool) (netip.AddrPort, bool) {
	target := p.target
	for _, own := range w.services[key] {
		if own.service == p.service && own.target != 0 {
			target = own.target // it knows best: the target may be a name
		}
	}
	at := slices.IndexFunc(w.Addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
	if at < 0 || target == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(w.Addrs[at], target), true
}

// priority is how far a workload is from what is preferred; false: it is not to be used.
func (x *Index) priority(w *Workload, prefer preference) (uint32, bool) {
	near := 0
	for _, scope := range prefer.scopes {
		if !x.shares(w, scope) {
			break
		}
		near++
	}
	far := len(prefer.scopes) - near
	return uint32(far), far == 0 || prefer.mode != address.LoadBalancing_STRICT
}

// shares tells whether a workload is in the same place as this node. Each place is inside
// the one above it: zones of one name in two regions are two.
func (x *Index) shares(w *Workload, scope address.LoadBalancing_Scope) bool {
	region := w.Region == x.here.Region
	zone := region && w.Zone == x.here.Zone
	switch scope {
	case address.LoadBalancing_REGION:
		return region
	case address.LoadBalancing_ZONE:
		return zone
	case address.LoadBalancing_SUBZONE:
		return zone && w.SubZone == x.here.SubZone
	case address.LoadBalancing_NODE:
		return w.Node == x.here.Node
	case address.LoadBalancing_CLUSTER:
		return w.Cluster == x.here.Cluster
	case address.LoadBalancing_NETWORK:
		return w.Network == x.here.Network
	}
	return true // it asks for nothing
}

// fit halves the weights of a list until their sum can be counted.
func fit(list []mesh.Endpoint) {
	var sum uint64
	for _, e := range list {
		sum += uint64(e.Weight)
	}
	if sum <= math.MaxUint32 {
		return
	}
	// One more than needed makes room for weights that are rounded up to 1.
	shift := bits.Len64(sum>>32) + 1
	for i := range list {
		list[i].Weight = max(list[i].Weight>>shift, 1)
	}
}

// reuse returns the last result of one service, port and family if it is the same again,
// else the next one with what has not changed of it.
func reuse(next, last *mesh.Announced) *mesh.Announced {
	all := next.App == last.App && len(next.Clusters) == len(last.Clusters)
	if slices.Equal(next.Service.Frontends, last.Service.Frontends) && slices.Equal(next.Service.Clusters, last.Service.Clusters) {
		next.Service = last.Service
	} else {
		all = false
	}
	for i, c := range next.Clusters {
		if i < len(last.Clusters) && same(c, last.Clusters[i]) {
			next.Clusters[i] = last.Clusters[i]
		} else {
			all = false
		}
	}
	if all {
		return last
	}
	return next
}

// same compares two clusters that were made here.
func same(a, b *mesh.Cluster) bool {
	return a.Name == b.Name && a.Kind == b.Kind && slices.EqualFunc(a.Localities, b.Localities, func(a, b mesh.Locality) bool {
		return a.Region == b.Region && a.Zone == b.Zone && a.SubZone == b.SubZone && a.Priority == b.Priority &&
			slices.Equal(a.Endpoints, b.Endpoints)
	})
}
