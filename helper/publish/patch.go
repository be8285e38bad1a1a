// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// changedClusters returns the clusters of s that differ from those of last, if
// nothing else does. Endpoints change all the time, and this makes the cost of a
// change that of the cluster, not of the mesh. What is the same is known by pointer:
// snapshots are never mutated, and whoever builds them keeps what did not change.
func changedClusters(last, s *mesh.Snapshot) ([]*mesh.Cluster, bool) {
	if last == nil || len(last.Scopes) != 1 || len(s.Scopes) != 1 {
		return nil, false // more scopes: the whole way
	}
	was, is := &last.Scopes[0], &s.Scopes[0]
	if was.Key != is.Key || was.Key != (mesh.ScopeKey{}) || len(was.Clusters) != len(is.Clusters) || !sameSlice(was.Services, is.Services) || !sameSlice(was.HTTP, is.HTTP) {
		return nil, false
	}
	var changed []*mesh.Cluster
	for name, c := range is.Clusters {
		old, ok := was.Clusters[name]
		if !ok {
			return nil, false
		}
		if old != c {
			changed = append(changed, c)
		}
	}
	return changed, true
}

// sameSlice tells whether two slices are one.
func sameSlice[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// patch replaces clusters that are in the maps already.
func (p *Publisher) patch(ctx context.Context, changed []*mesh.Cluster) (Result, error) {
	now, want := newTables(), newTables()
	ids := &allocator{endpoints: make(map[bpf.Endpoint]uint32), next: p.nextID}
	for _, c := range changed {
		id := p.clusterIDs[name{kind: bpf.NameCluster, name: StoredName(c.Name)}]
		now.clusters[id] = p.now.clusters[id]
		for _, ep := range now.clusters[id].endpoints {
			now.endpoints[ep] = p.now.endpoints[ep]
			ids.endpoints[p.now.endpoints[ep]] = ep
		}
		want.clusters[id] = compileCluster(id, c, ids, want.endpoints)
	}
	if err := p.fits(now, want); err != nil {
		return Result{}, err
	}
	p.nextID = ids.next
	for id := range now.endpoints {
		delete(p.now.endpoints, id)
	}
	res, err := p.apply(ctx, now, want)
	// Whatever came of it, now says what is in the maps.
	for id, e := range now.endpoints {
		p.now.endpoints[id] = e
	}
	for id, c := range now.clusters {
		p.now.clusters[id] = c
	}
	return res, err
}
