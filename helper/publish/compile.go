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
func (p *Publisher) compile(s *mesh.Snapshot) (tables, *compiled, error) {
	want := newTables()
	out := &compiled{hostIDs: make(map[hostKey]uint32), wild: make(wildPorts), guessed: make(map[uint32]bool)}
	ids := newAllocator(p.now, p.nextID)
	clear(p.programs.bytes) // of a publication that failed
	p.compileAlways(&want)
	for i := range s.Scopes {
		c := &scopeCompiler{p: p, compiled: out, ids: ids, want: &want}
		if err := c.compileScope(&s.Scopes[i]); err != nil {
			return tables{}, nil, err
		}
		// What does not fit by itself is not worth the memory of all of it.
		if i < len(s.Scopes)-1 {
			if err := p.counts(p.now, want); err != nil {
				return tables{}, nil, err
			}
		}
	}
	p.nextID = ids.next
	return want, out, nil
}

// compiled is what is remembered of a compilation once it is in the maps.
type compiled struct {
	hostIDs map[hostKey]uint32
	wild    wildPorts
	guessed map[uint32]bool // services of which an address has a cluster of its own to guess
}

func newTables() tables {
	return tables{
		names:     make(map[uint32]name),
		frontends: make(map[bpf.FrontendKey]uint32),
		prefixes:  make(map[bpf.PrefixKey]uint32),
		services:  make(map[uint32]bpf.Service),
		clusters:  make(map[uint32]cluster),
		endpoints: make(map[uint32]bpf.Endpoint),
		http:      make(map[uint32]bpf.HTTP),
		hosts:     make(map[bpf.HostKey]uint32),
		longHosts: make(map[bpf.LongHostKey]uint32),
		vhosts:    make(map[uint32]vhost),
		replies:   make(map[uint32]reply),
		guesses:   make(map[bpf.FrontendKey]uint32),
	}
}

// allocator finds the id of a name, endpoint or reply, or gives a fresh one.
type allocator struct {
	names     map[name]uint32
	replies   map[reply]uint32
	endpoints map[bpf.Endpoint]uint32
	next      uint64
}

func newAllocator(now tables, next uint64) *allocator {
	a := &allocator{
		names:     make(map[name]uint32, len(now.names)),
		endpoints: make(map[bpf.Endpoint]uint32, len(now.endpoints)),
		replies:   make(map[reply]uint32),
		next:      next,
	}
	for id, n := range now.names {
		a.names[n] = id
	}
	for id, e := range now.endpoints {
		a.endpoints[e] = id
	}
	for id, r := range now.replies {
		if id >= bpf.ReplyFirst {
			a.replies[r] = id
		}
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

// replyID: ids below ReplyFirst are those of plain statuses.
func (a *allocator) replyID(r reply) uint32 {
	id, ok := a.replies[r]
	if !ok {
		a.next = max(a.next, bpf.ReplyFirst)
		id = a.fresh()
		a.replies[r] = id
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

// passCluster is the cluster of what an HTTP service for a prefix does not know.
const passCluster = "(http: passed)"

// ScopeName is how a scope is named in km_names and in counters: empty for the
// default scope.
func ScopeName(k mesh.ScopeKey) string {
	if k == (mesh.ScopeKey{}) {
		return ""
	}
	return StoredName(k.Namespace + "/" + k.ServiceAccount + "/" + k.Labels)
}

// scopeCompiler compiles one scope into want.
type scopeCompiler struct {
	*compiled
	p          *Publisher
	ids        *allocator
	want       *tables
	scope      uint32
	clusters   map[string]*mesh.Cluster
	clusterIDs map[string]uint32
	longer     map[int]bool // lengths of the prefix frontends
}

func (c *scopeCompiler) compileScope(sc *mesh.Scope) error {
	// The default scope is 0: pods without an entry of their own get it too.
	if sc.Key != (mesh.ScopeKey{}) {
		n := name{kind: bpf.NameScope, name: ScopeName(sc.Key)}
		c.scope = c.ids.nameID(n)
		c.want.names[c.scope] = n
	}
	c.clusters, c.longer = sc.Clusters, prefixLengths(sc)
	c.compileClusters(sc)
	var http []*httpService
	for _, svc := range sc.Services {
		if _, err := c.addService(svc); err != nil {
			return err
		}
	}
	for _, svc := range sc.HTTP {
		// A listener may have chains that do not speak HTTP beside one that does.
		h, err := c.addService(svc)
		if err != nil {
			return err
		}
		if h != nil {
			http = append(http, h)
		}
	}
	for _, h := range http {
		c.guessed[h.id] = c.addWild(h)
		c.finishHTTP(h)
	}
	return nil
}

// compileClusters keeps the clusters that are the same as in the last publication as
// they are: a change of routes must not cost the tables of all endpoints.
func (c *scopeCompiler) compileClusters(sc *mesh.Scope) {
	c.clusterIDs = make(map[string]uint32, len(sc.Clusters))
	last := c.p.lastScope(sc.Key)
	for cname, cl := range sc.Clusters {
		n := name{scope: c.scope, kind: bpf.NameCluster, name: StoredName(cname)}
		id := c.ids.nameID(n)
		c.want.names[id] = n
		c.clusterIDs[cname] = id
		now, known := c.p.now.clusters[id]
		if !known || last == nil || last.Clusters[cname] != cl {
			c.want.clusters[id] = compileCluster(id, cl, c.ids, c.want.endpoints)
			continue
		}
		c.want.clusters[id] = now
		for _, ep := range now.endpoints {
			c.want.endpoints[ep] = c.p.now.endpoints[ep]
		}
	}
}

// lastScope is a scope of the last publication, nil if it is not known.
func (p *Publisher) lastScope(key mesh.ScopeKey) *mesh.Scope {
	if p.last == nil {
		return nil
	}
	for i := range p.last.Scopes {
		if p.last.Scopes[i].Key == key {
			return &p.last.Scopes[i]
		}
	}
	return nil
}

// addService enters a service and its frontends; what it returns is not nil if its
// requests are routed.
func (c *scopeCompiler) addService(svc *mesh.Service) (h *httpService, err error) {
	n := name{scope: c.scope, kind: bpf.NameService, name: StoredName(svc.Name)}
	id := c.ids.nameID(n)
	c.want.names[id] = n
	v, err := compileService(svc, c.clusterIDs)
	if err != nil {
		return nil, err
	}
	if svc.HTTP != nil {
		if h, err = c.compileHTTP(id, svc); err != nil {
			return nil, err
		}
	}
	c.want.services[id] = v
	for _, f := range svc.Frontends {
		if h != nil && !f.Prefix.IsSingleIP() {
			c.passes(svc, f)
			continue
		}
		// A frontend that a service without HTTP has too is that one's.
		if err := c.want.addFrontend(c.scope, f, id); err != nil && h == nil {
			return nil, fmt.Errorf("service %q: %w", svc.Name, err)
		}
	}
	return h, nil
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
	if svc.HTTP != nil {
		v.Flags |= bpf.ServiceHTTP
	}
	if total == 0 && (svc.HTTP == nil || len(svc.Clusters) > 0) || total > 1<<32-1 {
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
	out.value.MaxRequests = c.MaxRequests
	out.value.MaxConnections = bpf.NoLimit
	if c.MaxConnections != nil {
		out.value.MaxConnections = *c.MaxConnections
	}
	built := balance.Build(c)
	epIDs := make([]uint32, len(built.Endpoints))
	for i, ap := range built.Endpoints {
		e := endpointValue(id, ap)
		epIDs[i] = ids.endpointID(e)
		want[epIDs[i]] = e
	}
	out.endpoints = slices.Clone(epIDs)
	slices.Sort(out.endpoints)
	slots := func(in []balance.Slot) []bpf.Slot {
		if len(in) == 0 {
			return nil
		}
		s := make([]bpf.Slot, 0, len(in))
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
	return c.value.Kind == o.value.Kind && c.value.Policy == o.value.Policy && c.value.MaxRequests == o.value.MaxRequests &&
		c.value.MaxConnections == o.value.MaxConnections &&
		slices.Equal(c.v4, o.v4) && slices.Equal(c.v6, o.v6)
}
