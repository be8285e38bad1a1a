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
		switch o := byName[s.Name]; {
		case o == nil || o == s:
		case sameService(o, s):
			services[i] = o
		case o.HTTP != nil && s.HTTP != nil:
			services[i] = reuseHosts(s, o.HTTP.VirtualHosts)
		}
	}
}

// reuseHosts is a service with those virtual hosts of the last one that equal its own: a
// service may have the routes of many, and all are sent again when one of them changes.
func reuseHosts(s *mesh.Service, old []*mesh.VirtualHost) *mesh.Service {
	var byName map[string]*mesh.VirtualHost
	last := func(i int, name string) *mesh.VirtualHost {
		// Nearly always they stand where they stood.
		if i < len(old) && old[i].Name == name {
			return old[i]
		}
		if byName == nil {
			byName = make(map[string]*mesh.VirtualHost, len(old))
			for _, vh := range old {
				byName[vh.Name] = vh
			}
		}
		return byName[name]
	}
	out := s
	for i, vh := range s.HTTP.VirtualHosts {
		if i < len(old) && old[i] == vh {
			continue
		}
		o := last(i, vh.Name)
		if o == nil || o == vh || !reflect.DeepEqual(o, vh) {
			continue
		}
		if out == s { // it is not only the snapshot's
			svc, http := *s, *s.HTTP
			http.VirtualHosts = slices.Clone(http.VirtualHosts)
			svc.HTTP, out = &http, &svc
		}
		out.HTTP.VirtualHosts[i] = o
	}
	return out
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
