// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"kmesh/bpf"
	"kmesh/helper/balance"
	"kmesh/helper/mesh"
)

// compile computes what the maps shall hold. Known names keep their ids, new ones
// get fresh ids; extents are assigned later, when slots differ.
func (p *Publisher) compile(s *mesh.Snapshot) (tables, error) {
	want := newTables()
	ids := newAllocator(p.now, p.nextID)
	for i := range s.Scopes {
		if err := compileScope(&s.Scopes[i], ids, &want); err != nil {
			return tables{}, err
		}
	}
	p.nextID = ids.next
	return want, nil
}

func newTables() tables {
	return tables{
		names:     make(map[uint32]name),
		frontends: make(map[bpf.FrontendKey]uint32),
		prefixes:  make(map[bpf.PrefixKey]uint32),
		services:  make(map[uint32]bpf.Service),
		clusters:  make(map[uint32]cluster),
		endpoints: make(map[uint32]bpf.Endpoint),
	}
}

// allocator finds the id of a name or endpoint, or gives a fresh one.
type allocator struct {
	names     map[name]uint32
	endpoints map[bpf.Endpoint]uint32
	next      uint64
}

func newAllocator(now tables, next uint64) *allocator {
	a := &allocator{
		names:     make(map[name]uint32, len(now.names)),
		endpoints: make(map[bpf.Endpoint]uint32, len(now.endpoints)),
		next:      next,
	}
	for id, n := range now.names {
		a.names[n] = id
	}
	for id, e := range now.endpoints {
		a.endpoints[e] = id
	}
	return a
}

func (a *allocator) fresh() uint32 {
	id := a.next
	a.next++
	return uint32(id)
}

func (a *allocator) nameID(n name) uint32 {
	id, ok := a.names[n]
	if !ok {
		id = a.fresh()
		a.names[n] = id
	}
	return id
}

func (a *allocator) endpointID(e bpf.Endpoint) uint32 {
	id, ok := a.endpoints[e]
	if !ok {
		id = a.fresh()
		a.endpoints[e] = id
	}
	return id
}

// StoredName fits a name into km_names: a longer one is cut and made unique again
// by a hash of the whole.
func StoredName(s string) string {
	if len(s) <= bpf.MaxName {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	tail := "~" + hex.EncodeToString(sum[:16])
	return s[:bpf.MaxName-len(tail)] + tail
}

// passCluster is the cluster of services that are not governed yet.
const passCluster = "(http: passed)"

// ScopeName is how a scope is named in km_names and in counters: empty for the
// default scope.
func ScopeName(k mesh.ScopeKey) string {
	if k == (mesh.ScopeKey{}) {
		return ""
	}
	return StoredName(k.Namespace + "/" + k.ServiceAccount + "/" + k.Labels)
}

func compileScope(sc *mesh.Scope, ids *allocator, want *tables) error {
	scope := uint32(0) // the default scope: pods without an entry of their own get it too
	if sc.Key != (mesh.ScopeKey{}) {
		n := name{kind: bpf.NameScope, name: ScopeName(sc.Key)}
		scope = ids.nameID(n)
		want.names[scope] = n
	}
	clusterIDs := make(map[string]uint32, len(sc.Clusters))
	for cname, c := range sc.Clusters {
		n := name{scope: scope, kind: bpf.NameCluster, name: StoredName(cname)}
		id := ids.nameID(n)
		want.names[id] = n
		clusterIDs[cname] = id
		want.clusters[id] = compileCluster(id, c, ids, want.endpoints)
	}
	services := sc.Services
	if len(sc.HTTP) > 0 {
		// HTTP has no data path yet: its connections pass. They must have frontends
		// all the same, or a wider service would get what is not meant for it.
		n := name{scope: scope, kind: bpf.NameCluster, name: passCluster}
		id := ids.nameID(n)
		want.names[id] = n
		clusterIDs[passCluster] = id
		want.clusters[id] = compileCluster(id, &mesh.Cluster{Name: passCluster, Kind: mesh.Passthrough}, ids, want.endpoints)
		services = slices.Clone(services)
		for _, svc := range sc.HTTP {
			services = append(services, &mesh.Service{
				Name: svc.Name, Frontends: svc.Frontends,
				Clusters: []mesh.WeightedCluster{{Cluster: passCluster, Weight: 1}},
			})
		}
	}
	for i, svc := range services {
		n := name{scope: scope, kind: bpf.NameService, name: StoredName(svc.Name)}
		id := ids.nameID(n)
		want.names[id] = n
		v, err := compileService(svc, clusterIDs)
		if err != nil {
			return err
		}
		want.services[id] = v
		for _, f := range svc.Frontends {
			// A frontend that a governed service has too is the governed one's.
			if err := want.addFrontend(scope, f, id); err != nil && i < len(sc.Services) {
				return fmt.Errorf("service %q: %w", svc.Name, err)
			}
		}
	}
	return nil
}

func compileService(svc *mesh.Service, clusterIDs map[string]uint32) (bpf.Service, error) {
	var v bpf.Service
	if len(svc.Clusters) > bpf.MaxWeighted {
		return v, fmt.Errorf("service %q: %d weighted clusters, at most %d are possible", svc.Name, len(svc.Clusters), bpf.MaxWeighted)
	}
	total := uint64(0)
	for i, w := range svc.Clusters {
		id, ok := clusterIDs[w.Cluster]
		if !ok {
			return v, fmt.Errorf("service %q: cluster %q is not in the snapshot", svc.Name, w.Cluster)
		}
		v.Shares[i].Cluster = id
		v.Shares[i].Weight = w.Weight
		total += uint64(w.Weight)
	}
	if total == 0 || total > 1<<32-1 {
		return v, fmt.Errorf("service %q: the weights sum to %d, want 1 to %d", svc.Name, total, uint32(1<<32-1))
	}
	v.N = uint32(len(svc.Clusters))
	v.Total = uint32(total)
	if svc.HashSource {
		v.Flags |= bpf.ServiceHashSource
	}
	return v, nil
}

// compileCluster computes a cluster and enters its endpoints into want.
func compileCluster(id uint32, c *mesh.Cluster, ids *allocator, want map[uint32]bpf.Endpoint) cluster {
	var out cluster
	out.value.Kind = map[mesh.ClusterKind]uint8{
		mesh.Endpoints: bpf.KindEndpoints, mesh.Passthrough: bpf.KindPassthrough,
		mesh.Blackhole: bpf.KindBlackhole, mesh.Refused: bpf.KindRefused,
	}[c.Kind]
	out.value.Policy = map[mesh.Policy]uint8{
		mesh.RoundRobin: bpf.PolicyRoundRobin, mesh.Random: bpf.PolicyRandom,
		mesh.LeastRequest: bpf.PolicyLeastRequest, mesh.Maglev: bpf.PolicyMaglev,
	}[c.Policy]
	built := balance.Build(c)
	epIDs := make([]uint32, len(built.Endpoints))
	for i, ap := range built.Endpoints {
		e := endpointValue(id, ap)
		epIDs[i] = ids.endpointID(e)
		want[epIDs[i]] = e
	}
	out.endpoints = slices.Sorted(slices.Values(epIDs))
	slots := func(in []balance.Slot) []bpf.Slot {
		var s []bpf.Slot
		for _, b := range in {
			s = append(s, bpf.Slot{Endpoint: epIDs[b.Endpoint], Weight: b.Weight, Alias: b.Alias, Cut: b.Cut})
		}
		return s
	}
	out.v4, out.v6 = slots(built.V4), slots(built.V6)
	return out
}

func endpointValue(cluster uint32, ap netip.AddrPort) bpf.Endpoint {
	e := bpf.Endpoint{Cluster: cluster, Port: bpf.PortWord(ap.Port())}
	e.Addr, e.Family = bpf.AddrWords(ap.Addr())
	return e
}

// addFrontend files a frontend under the exact table or the prefix table.
func (t *tables) addFrontend(scope uint32, f mesh.Frontend, service uint32) error {
	words, family := bpf.AddrWords(f.Prefix.Addr())
	if f.Prefix.IsSingleIP() && f.Port != 0 {
		k := bpf.FrontendKey{Scope: scope, Proto: uint8(f.Protocol), Family: family, Port: bpf.PortWord(f.Port), Addr: words}
		return addUnique(t.frontends, k, service, f)
	}
	k := bpf.PrefixKey{
		Prefixlen: uint32(bpf.PrefixFixedBits + f.Prefix.Bits()),
		Scope:     scope, Proto: uint8(f.Protocol), Family: family, Port: bpf.PortWord(f.Port), Addr: words,
	}
	return addUnique(t.prefixes, k, service, f)
}

func addUnique[K comparable](m map[K]uint32, k K, service uint32, f mesh.Frontend) error {
	if other, ok := m[k]; ok && other != service {
		return fmt.Errorf("%v port %d %v: another service has the same frontend", f.Prefix, f.Port, f.Protocol)
	}
	m[k] = service
	return nil
}

func (c cluster) equal(o cluster) bool {
	return c.value.Kind == o.value.Kind && c.value.Policy == o.value.Policy &&
		slices.Equal(c.v4, o.v4) && slices.Equal(c.v6, o.v6)
}
