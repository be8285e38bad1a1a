// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"reflect"
	"slices"

	"kmesh/helper/mesh"
)

// reuse replaces the objects of a scope that equal those of the last one by them:
// what has not changed keeps its identity, and is compared by it from there on.
func reuse(scope *mesh.Scope, old mesh.Scope) {
	reuseServices(scope.Services, old.Services)
	reuseServices(scope.HTTP, old.HTTP)
	for name, c := range scope.Clusters {
		if o := old.Clusters[name]; o != nil && o != c && sameCluster(o, c) {
			scope.Clusters[name] = o
		}
	}
}

func reuseServices(services, old []*mesh.Service) {
	byName := make(map[string]*mesh.Service, len(old))
	for _, s := range old {
		byName[s.Name] = s
	}
	for i, s := range services {
		if o := byName[s.Name]; o != nil && o != s && sameService(o, s) {
			services[i] = o
		}
	}
}

// sameScope compares two scopes after reuse: by identity.
func sameScope(a, b mesh.Scope) bool {
	if !slices.Equal(a.Services, b.Services) || !slices.Equal(a.HTTP, b.HTTP) || len(a.Clusters) != len(b.Clusters) {
		return false
	}
	for name, c := range a.Clusters {
		if b.Clusters[name] != c {
			return false
		}
	}
	return true
}

func sameService(a, b *mesh.Service) bool {
	return a.Name == b.Name && a.HashSource == b.HashSource &&
		slices.Equal(a.Frontends, b.Frontends) && slices.Equal(a.Clusters, b.Clusters) &&
		reflect.DeepEqual(a.HTTP, b.HTTP)
}

func sameCluster(a, b *mesh.Cluster) bool {
	return a.Name == b.Name && a.Kind == b.Kind && a.Policy == b.Policy &&
		a.MaglevTableSize == b.MaglevTableSize && a.LocalityWeighted == b.LocalityWeighted && a.MaxRequests == b.MaxRequests &&
		sameLimit(a.MaxConnections, b.MaxConnections) &&
		slices.EqualFunc(a.Localities, b.Localities, sameLocality)
}

func sameLimit(a, b *uint32) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func sameLocality(a, b mesh.Locality) bool {
	return a.Region == b.Region && a.Zone == b.Zone && a.SubZone == b.SubZone &&
		a.Priority == b.Priority && a.Weight == b.Weight && slices.Equal(a.Endpoints, b.Endpoints)
}
