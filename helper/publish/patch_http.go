// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"maps"
	"slices"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// changedService is an HTTP service of which only routes changed.
type changedService struct {
	id    uint32
	svc   *mesh.Service
	hosts []changedHost
}

// changedHost is a virtual host before and after, and its id. The one that leads to
// every cluster was made anew: it has no before.
type changedHost struct {
	was, is *mesh.VirtualHost
	id      uint32
}

// changedServices returns the services whose routes changed; false if more than
// that did.
func (p *Publisher) changedServices(scope uint32, was, is []*mesh.Service, clusters map[string]*mesh.Cluster) ([]changedService, bool) {
	if len(was) != len(is) {
		return nil, false
	}
	var out []changedService
	for i, svc := range is {
		if old := was[i]; old != svc {
			c, ok := p.changedService(scope, old, svc, clusters)
			if !ok {
				return nil, false
			}
			out = append(out, c)
		}
	}
	return out, true
}

func (p *Publisher) changedService(scope uint32, was, is *mesh.Service, clusters map[string]*mesh.Cluster) (changedService, bool) {
	c := changedService{id: p.ids[name{scope: scope, kind: bpf.NameService, name: StoredName(is.Name)}], svc: is}
	if was.HTTP == nil || is.HTTP == nil || was.Name != is.Name || was.HashSource != is.HashSource ||
		was.HTTP.IgnorePort != is.HTTP.IgnorePort || len(was.HTTP.VirtualHosts) != len(is.HTTP.VirtualHosts) ||
		!slices.Equal(was.Frontends, is.Frontends) || !slices.Equal(was.Clusters, is.Clusters) {
		return c, false
	}
	reaches := true // the same clusters as before
	for i, vh := range is.HTTP.VirtualHosts {
		old := was.HTTP.VirtualHosts[i]
		if old == vh {
			continue
		}
		there := maps.Equal(clustersOf(old), clustersOf(vh))
		reaches = reaches && there && slices.ContainsFunc(old.Routes, needless) == slices.ContainsFunc(vh.Routes, needless)
		if old.Name != vh.Name || !slices.Equal(old.Domains, vh.Domains) {
			return c, false
		}
		id, known := p.hostIDs[hostKey{c.id, old}]
		if !known || !p.ownNames(scope, is, id, vh) {
			return c, false
		}
		// Frontends of a wildcard listener depend on where its routes lead.
		if p.guessed[c.id] && (likeliest(old) != likeliest(vh) || !there) {
			return c, false
		}
		c.hosts = append(c.hosts, changedHost{old, vh, id})
	}
	if reaches {
		return c, true // what leads to every cluster does so still
	}
	all, allID := everyCluster(is, clusters), p.now.http[c.id].All
	if all != nil && allID != 0 {
		c.hosts = append(c.hosts, changedHost{is: all, id: allID})
	}
	return c, (all != nil) == (allID != 0)
}

// ownNames tells whether the names of a virtual host and of its routes are, and will
// be, those that it would have if it were alone. It is so unless names repeat.
func (p *Publisher) ownNames(scope uint32, is *mesh.Service, id uint32, vh *mesh.VirtualHost) bool {
	if p.now.names[id].name != StoredName(is.Name+"|"+vh.Name) {
		return false
	}
	own := make(map[uint32]bool)
	for _, r := range p.now.vhosts[id].routes {
		own[r.value.Id] = true
	}
	seen := make(map[string]bool)
	for i, r := range vh.Routes {
		text := RouteName(is.Name, vh.Name, r.Name, i)
		other, taken := p.ids[name{scope: scope, kind: bpf.NameRoute, name: text}]
		if seen[text] || taken && !own[other] {
			return false
		}
		seen[text] = true
	}
	return true
}

func clustersOf(vh *mesh.VirtualHost) map[string]bool {
	names := make(map[string]bool)
	for _, r := range vh.Routes {
		for _, w := range r.Clusters {
			names[w.Cluster] = true
		}
	}
	return names
}

// patchHTTP enters changed virtual hosts, and all that belongs to them alone.
func (p *Publisher) patchHTTP(scopes []changes, ids *allocator, now, want *tables) error {
	if !slices.ContainsFunc(scopes, func(c changes) bool { return len(c.services) > 0 }) {
		return nil
	}
	for id, r := range p.now.replies {
		if id >= bpf.ReplyFirst {
			ids.replies[r] = id
		}
	}
	clear(p.programs.bytes) // of a publication that failed
	for _, changed := range scopes {
		if err := p.patchServices(changed, ids, now, want); err != nil {
			return err
		}
	}
	p.patchReplies(now, want)
	for _, changed := range scopes {
		for _, s := range changed.services {
			for _, h := range s.hosts {
				if h.was != nil {
					delete(p.hostIDs, hostKey{s.id, h.was})
					p.hostIDs[hostKey{s.id, h.is}] = h.id
				}
			}
		}
	}
	return nil
}

// patchServices does so for one scope.
func (p *Publisher) patchServices(changed changes, ids *allocator, now, want *tables) error {
	c := &scopeCompiler{
		p: p, compiled: &p.compiled, ids: ids, want: want,
		scope: changed.id, clusters: changed.scope.Clusters, clusterIDs: make(map[string]uint32),
	}
	for _, s := range changed.services {
		value := p.now.http[s.id]
		now.http[s.id] = value
		value.Flags &^= bpf.HTTPLocal
		for _, h := range s.hosts {
			for cname := range clustersOf(h.is) {
				if id, ok := p.ids[name{scope: changed.id, kind: bpf.NameCluster, name: StoredName(cname)}]; ok {
					c.clusterIDs[cname] = id
				}
			}
			now.vhosts[h.id] = p.now.vhosts[h.id]
			for _, r := range now.vhosts[h.id].routes {
				now.names[r.value.Id] = p.now.names[r.value.Id]
			}
			out, err := c.compileRoutes(s.svc, h.is)
			if err != nil {
				return err
			}
			want.vhosts[h.id] = out
		}
		c.finishHTTP(&httpService{id: s.id, svc: s.svc, value: value})
	}
	return nil
}

// patchReplies enters the replies of the changed virtual hosts into now, but for
// those that others use, too.
func (p *Publisher) patchReplies(now, want *tables) {
	of := func(v vhost, f func(id uint32)) {
		for _, r := range v.routes {
			for _, id := range []uint32{r.value.Reply, r.value.AbortReply} {
				if id != 0 {
					f(id)
				}
			}
		}
	}
	for id := range want.replies {
		if r, ok := p.now.replies[id]; ok {
			now.replies[id] = r
		}
	}
	left := make(map[uint32]bool)
	for _, v := range now.vhosts {
		of(v, func(id uint32) {
			if _, stays := want.replies[id]; !stays && !isAlways(id) {
				left[id] = true
			}
		})
	}
	if len(left) == 0 {
		return
	}
	for id, v := range p.now.vhosts {
		if _, changed := now.vhosts[id]; !changed {
			of(v, func(id uint32) { delete(left, id) })
		}
	}
	for id := range left {
		now.replies[id] = p.now.replies[id]
	}
}
