// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"testing"

	"kmesh/helper/mesh"
)

func hostsService(name string, hosts ...*mesh.VirtualHost) *mesh.Service {
	return &mesh.Service{Name: name, HTTP: &mesh.HTTP{VirtualHosts: hosts}}
}

func vhost(name, to string) *mesh.VirtualHost {
	return &mesh.VirtualHost{Name: name, Domains: []string{name}, Routes: []*mesh.Route{{Name: "r", Clusters: []mesh.WeightedCluster{{Cluster: to, Weight: 1}}}}}
}

// TestReuse: what is equal in the last snapshot keeps its identity, wherever it stands now,
// and nothing is changed of what others hold.
func TestReuse(t *testing.T) {
	a, b, c := vhost("a", "1"), vhost("b", "1"), vhost("c", "1")
	old := mesh.Scope{HTTP: []*mesh.Service{hostsService("s", a, b, c), hostsService("t", vhost("a", "1"))}}
	moved, changed, fresh := vhost("c", "1"), vhost("b", "2"), vhost("d", "1")
	s := hostsService("s", vhost("a", "1"), moved, changed, fresh)
	next := mesh.Scope{HTTP: []*mesh.Service{s, hostsService("t", vhost("a", "1"))}}
	reuse(&next, old)
	got := next.HTTP[0].HTTP.VirtualHosts
	if len(got) != 4 || got[0] != a || got[1] != c || got[2] != changed || got[3] != fresh {
		t.Errorf("%v: want the old a and c, and the new b and d", got)
	}
	if next.HTTP[1] != old.HTTP[1] {
		t.Error("an equal service is another object")
	}
	aborts := vhost("a", "1")
	aborts.Routes[0].Abort = &mesh.Abort{Status: 503}
	faulty := mesh.Scope{HTTP: []*mesh.Service{hostsService("s", aborts, vhost("b", "1"))}}
	if reuse(&faulty, old); faulty.HTTP[0].HTTP.VirtualHosts[0] != aborts || faulty.HTTP[0].HTTP.VirtualHosts[1] != b {
		t.Error("a virtual host that differs in a fault only was taken for the old one, or another was not")
	}
	if s.HTTP.VirtualHosts[1] != moved {
		t.Error("the service was changed, and it is not only the snapshot's")
	}
	again := mesh.Scope{HTTP: []*mesh.Service{s, old.HTTP[1]}}
	if reuse(&again, next); again.HTTP[0] != next.HTTP[0] {
		t.Error("the same once more is another object")
	}
}
