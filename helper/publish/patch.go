// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"maps"
	"slices"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// changes are the clusters and virtual hosts in which a scope differs from the last
// publication.
type changes struct {
	scope    *mesh.Scope
	id       uint32
	clusters []*mesh.Cluster
	services []changedService
}

// changes returns those of every scope that has some, if nothing else differs.
// Endpoints and routes change all the time, and this makes the cost of a change that of
// what changed, not of the mesh. What is the same is known by pointer: snapshots are
// never mutated, and whoever builds them keeps what did not change.
func (p *Publisher) changes(s *mesh.Snapshot) (out []changes, ok bool) {
	if p.last == nil || len(p.last.Scopes) != len(s.Scopes) {
		return nil, false
	}
	for i := range s.Scopes {
		was, is := &p.last.Scopes[i], &s.Scopes[i]
		c := changes{scope: is}
		if is.Key != (mesh.ScopeKey{}) {
			c.id = p.ids[name{kind: bpf.NameScope, name: ScopeName(is.Key)}]
		}
		if was.Key != is.Key || len(was.Clusters) != len(is.Clusters) || !slices.Equal(was.Services, is.Services) {
			return nil, false
		}
		for name, cl := range is.Clusters {
			old, ok := was.Clusters[name]
			if !ok || old != cl && p.wild.moves(old, cl) {
				return nil, false
			}
			if old != cl {
				c.clusters = append(c.clusters, cl)
			}
		}
		if c.services, ok = p.changedServices(c.id, was.HTTP, is.HTTP, is.Clusters); !ok {
			return nil, false
		}
		if len(c.clusters)+len(c.services) > 0 {
			out = append(out, c)
		}
	}
	return out, true
}

// patch replaces clusters and virtual hosts that are in the maps already.
func (p *Publisher) patch(ctx context.Context, scopes []changes) (Result, error) {
	now, want := newTables(), newTables()
	ids := &allocator{
		names: p.ids, endpoints: make(map[bpf.Endpoint]uint32), replies: make(map[reply]uint32), next: p.nextID,
	}
	for _, changed := range scopes {
		for _, c := range changed.clusters {
			id := p.ids[name{scope: changed.id, kind: bpf.NameCluster, name: StoredName(c.Name)}]
			now.clusters[id] = p.now.clusters[id]
			for _, ep := range now.clusters[id].endpoints {
				now.endpoints[ep] = p.now.endpoints[ep]
				ids.endpoints[p.now.endpoints[ep]] = ep
			}
			want.clusters[id] = compileCluster(id, c, ids, want.endpoints)
		}
	}
	if err := p.patchHTTP(scopes, ids, &now, &want); err != nil {
		return Result{}, err
	}
	if err := p.fits(now, want); err != nil {
		return Result{}, err
	}
	p.nextID = ids.next
	was := newTables()
	was.take(now)
	p.now.drop(was)
	res, err := p.apply(ctx, now, want)
	// Whatever came of it, now says what is in the maps.
	p.now.take(now)
	for id, n := range was.names {
		if _, stays := now.names[id]; !stays {
			delete(p.ids, n)
		}
	}
	return res, err
}

// take enters what a patch can change from another mirror.
func (t *tables) take(o tables) {
	maps.Copy(t.names, o.names)
	maps.Copy(t.clusters, o.clusters)
	maps.Copy(t.endpoints, o.endpoints)
	maps.Copy(t.http, o.http)
	maps.Copy(t.vhosts, o.vhosts)
	maps.Copy(t.replies, o.replies)
}

// drop takes the entries of o out of what a patch can change.
func (t *tables) drop(o tables) {
	dropKeys(t.names, o.names)
	dropKeys(t.clusters, o.clusters)
	dropKeys(t.endpoints, o.endpoints)
	dropKeys(t.http, o.http)
	dropKeys(t.vhosts, o.vhosts)
	dropKeys(t.replies, o.replies)
}

func dropKeys[K comparable, V any](from, keys map[K]V) {
	for k := range keys {
		delete(from, k)
	}
}

// sameSlice tells whether two slices are one.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
