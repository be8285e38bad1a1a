// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

func frontend(prefix string, port uint16) mesh.Frontend {
	return mesh.Frontend{Prefix: netip.MustParsePrefix(prefix), Port: port, Protocol: mesh.TCP}
}

func forward(path string, clusters ...string) *mesh.Route {
	r := &mesh.Route{Match: mesh.RouteMatch{Path: mesh.PathMatch{Value: path}}}
	for _, c := range clusters {
		r.Clusters = append(r.Clusters, mesh.WeightedCluster{Cluster: c, Weight: 1})
	}
	return r
}

// httpSnapshot is a snapshot with the clusters a, b and none, and HTTP services.
func httpSnapshot(services ...*mesh.Service) *mesh.Snapshot {
	s := snapshot(nil, map[string]*mesh.Cluster{
		"a":    {Name: "a", Localities: []mesh.Locality{{Endpoints: endpoints(2, 1)}}},
		"b":    {Name: "b", Localities: []mesh.Locality{{Endpoints: endpoints(2, 2)}}},
		"none": {Name: "none", Kind: mesh.Blackhole},
	})
	s.Scopes[0].HTTP = services
	return s
}

// owner returns the name of the service that an address leads to, and the cluster
// that is guessed for it.
func owner(t *testing.T, p *Publisher, at string) (service, guess string) {
	t.Helper()
	to := netip.MustParseAddrPort(at)
	k := bpf.FrontendKey{Proto: uint8(mesh.TCP), Port: bpf.PortWord(to.Port())}
	k.Addr, k.Family = bpf.AddrWords(to.Addr())
	var id uint32
	if err := p.rt.Frontends.Lookup(k, &id); err != nil {
		pk := bpf.PrefixKey{Prefixlen: bpf.PrefixFixedBits + uint32(to.Addr().BitLen()), Proto: k.Proto, Family: k.Family, Port: k.Port, Addr: k.Addr}
		if err := p.rt.Prefixes.Lookup(pk, &id); err != nil {
			return "", ""
		}
	}
	guess = "-"
	var cluster uint32
	if err := p.rt.Guesses.Lookup(k, &cluster); err == nil {
		guess = p.now.names[cluster].name
	}
	return p.now.names[id].name, guess
}

// TestHowConnectionsBegin: what the flags of a service say.
func TestHowConnectionsBegin(t *testing.T) {
	own := func(names ...string) []mesh.WeightedCluster { return forward("", names...).Clusters }
	aborts := forward("/", "a")
	aborts.Abort = &mesh.Abort{Fraction: mesh.Fraction{Numerator: 1, Denominator: 100}, Status: 503}
	tests := []struct {
		name    string
		own     []mesh.WeightedCluster
		domains []string
		routes  []*mesh.Route
		want    uint32
		all     bool // without any endpoint a connection is refused
	}{
		{"one cluster", own("a"), []string{"*"}, []*mesh.Route{forward("/x", "a"), forward("/", "a")}, bpf.HTTPStarOnly, true},
		{"two halves", own("a", "b"), []string{"w"}, []*mesh.Route{forward("/", "a", "b")}, 0, true},
		{"another cluster", own("a"), []string{"w"}, []*mesh.Route{forward("/x", "b"), forward("/", "a")}, 0, true},
		{"an abort", own("a"), []string{"w"}, []*mesh.Route{aborts}, 0, false},
		{"nothing is 503", own("none"), []string{"w"}, []*mesh.Route{forward("/", "none")}, 0, false},
		{"a redirect", own("a"), []string{"w"}, []*mesh.Route{{Redirect: &mesh.Redirect{Status: 301, Host: "b"}}, forward("/", "a")}, 0, false},
		{"thirds", own("a"), []string{"w"}, []*mesh.Route{forward("/a", "a"), forward("/b", "b"), forward("/c", "none")}, bpf.HTTPLocal, false},
		{"nothing to guess", nil, []string{"w"}, []*mesh.Route{forward("/", "a")}, bpf.HTTPLocal, true},
	}
	rt := load(t, nil)
	p := publisher(t, rt)
	for _, tt := range tests {
		publish(t, p, httpSnapshot(&mesh.Service{Name: "web", Clusters: tt.own, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)},
			HTTP: &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: "v", Domains: tt.domains, Routes: tt.routes}}}}))
		for id, h := range p.now.http {
			if h.Flags != tt.want {
				t.Errorf("%s: flags %b, want %b", tt.name, h.Flags, tt.want)
			}
			if (h.All != 0) != tt.all {
				t.Errorf("%s: every cluster %d, want one: %v", tt.name, h.All, tt.all)
			}
			if h.Any == 0 || p.now.services[id].Flags != bpf.ServiceHTTP || int(p.now.services[id].N) != len(tt.own) {
				t.Errorf("%s: http %+v, service %+v", tt.name, h, p.now.services[id])
			}
		}
	}
}

// TestWildcardListener: known addresses are routed, the others pass.
func TestWildcardListener(t *testing.T) {
	wild := &mesh.Service{Name: "wild", Frontends: []mesh.Frontend{frontend("0.0.0.0/0", 8080), frontend("10.96.0.9/32", 8080)},
		HTTP: &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{
			{Name: "v", Domains: []string{"a.b", "10.96.0.1", "10.96.0.2:8080", "10.96.0.3:99", "[fd00::1]", "10.50.0.1"}, Routes: []*mesh.Route{
				forward("/x", "b"), {Match: mesh.RouteMatch{}, Clusters: []mesh.WeightedCluster{{Cluster: "b", Weight: 1}, {Cluster: "a", Weight: 2}}},
			}},
			{Name: "w", Domains: []string{"10.96.0.4", "10.96.0.5"}, Routes: []*mesh.Route{{Direct: &mesh.DirectResponse{Status: 200}}}},
		}}}
	s := httpSnapshot(wild)
	l4 := func(name, prefix string) *mesh.Service {
		return &mesh.Service{Name: name, Frontends: []mesh.Frontend{frontend(prefix, 8080)}, Clusters: forward("", "a").Clusters}
	}
	s.Scopes[0].Services = []*mesh.Service{l4("exact", "10.96.0.5/32"), l4("longer", "10.50.0.0/16")}
	p := publisher(t, load(t, nil))
	check := func(at, service, guess string) {
		t.Helper()
		if gotService, gotGuess := owner(t, p, at); gotService != service || gotGuess != guess {
			t.Errorf("%s leads to %q with guess %q, want %q with %q", at, gotService, gotGuess, service, guess)
		}
	}
	publish(t, p, s)
	pass := "wild " + passCluster
	check("10.96.0.1:8080", "wild", "a")
	check("10.96.0.2:8080", "wild", "a")
	check("10.96.0.3:8080", pass, "-")
	check("10.96.0.4:8080", "wild", "") // nothing is forwarded: the program answers
	check("10.96.0.5:8080", "exact", "-")
	check("10.96.0.9:8080", "wild", "-")
	check("10.50.0.1:8080", "longer", "-")
	check("[fd00::1]:8080", "", "")
	check("10.0.1.1:8080", "wild", passCluster) // an endpoint
	check("10.0.9.1:8080", pass, "-")
	check("10.96.0.1:81", "", "")
	// An endpoint that comes is a frontend, though nothing but endpoints changed.
	next := *s.Scopes[0].Clusters["a"]
	next.Localities = []mesh.Locality{{Endpoints: endpoints(2, 9)}}
	clusters := map[string]*mesh.Cluster{"a": &next, "b": s.Scopes[0].Clusters["b"], "none": s.Scopes[0].Clusters["none"]}
	publish(t, p, &mesh.Snapshot{Scopes: []mesh.Scope{{Services: s.Scopes[0].Services, HTTP: s.Scopes[0].HTTP, Clusters: clusters}}})
	check("10.0.9.1:8080", "wild", passCluster)
	check("10.0.1.1:8080", pass, "-")
	same(t, "read back", p, publisher(t, p.rt))
}

// TestIDsOutliveRestarts: one route changes, and only that is written.
func TestIDsOutliveRestarts(t *testing.T) {
	rt := load(t, nil)
	build := func(redirect string) *mesh.Snapshot {
		var hosts []*mesh.VirtualHost
		for _, n := range []string{"v", "w", "w"} {
			hosts = append(hosts, &mesh.VirtualHost{Name: n, Domains: []string{n + ".x", "*." + n}, Routes: []*mesh.Route{
				forward("/api", "a"), {Name: "twice", Redirect: &mesh.Redirect{Status: 302, Host: "r"}},
				{Name: "twice", Direct: &mesh.DirectResponse{Status: 200, Body: []byte("yes")}}, forward("/", "b", "a"),
			}})
		}
		hosts[1].Routes[1].Redirect.Host = redirect
		return httpSnapshot(&mesh.Service{Name: "web", HTTP: &mesh.HTTP{VirtualHosts: hosts},
			Clusters: forward("", "a").Clusters, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)}})
	}
	p := publisher(t, rt)
	publish(t, p, build("r"))
	if n := len(p.programs.at); n != 2 {
		t.Errorf("%d programs, want that of responses and one for equal conditions", n)
	}
	before := p.now
	p = publisher(t, rt)
	if res := publish(t, p, build("r")); res.Written+res.Deleted != 0 {
		t.Errorf("a restart wrote %d and deleted %d", res.Written, res.Deleted)
	}
	p = publisher(t, rt)
	if res := publish(t, p, build("other")); res.Written != 2 || res.Deleted != 0 {
		t.Errorf("one redirect wrote %d and deleted %d, want a reply and a virtual host", res.Written, res.Deleted)
	}
	if diff := cmp.Diff(before.names, p.now.names, cmp.AllowUnexported(name{})); diff != "" {
		t.Errorf("names: %s", diff)
	}
	for id, v := range p.now.vhosts {
		old := before.vhosts[id]
		if v.equal(old) != (v.value.Generation == old.value.Generation) || v.equal(old) != (v.value == old.value) {
			t.Errorf("virtual host %d: %+v became %+v", id, old.value, v.value)
		}
	}
	same(t, "read back", p, publisher(t, rt))
}

func TestRefusedHTTPChangesNothing(t *testing.T) {
	build := func(n int, path string) *mesh.Snapshot {
		h := &mesh.HTTP{}
		for i := range n {
			name := path + strings.Repeat("v", i)
			h.VirtualHosts = append(h.VirtualHosts, &mesh.VirtualHost{Name: name, Domains: []string{name}, Routes: []*mesh.Route{forward("/"+name, "a"), forward("/", "a", "b")}})
		}
		return httpSnapshot(&mesh.Service{Name: "web", HTTP: h, Clusters: forward("", "a").Clusters, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)}})
	}
	long := build(1, "x")
	long.Scopes[0].HTTP[0].HTTP.VirtualHosts[0].Routes[0] = &mesh.Route{Redirect: &mesh.Redirect{Status: 301, Path: strings.Repeat("p", 5000)}}
	dangling := build(1, "x")
	delete(dangling.Scopes[0].Clusters, "b")
	tests := []struct {
		name, want string
		sizes      map[string]uint32
		snap       *mesh.Snapshot
	}{
		{"hosts", "map km_hosts holds 2 of 16", map[string]uint32{"km_hosts": 16}, build(20, "x")},
		{"virtual hosts", "map km_vhosts holds 4 of 16", map[string]uint32{"km_vhosts": 16}, build(20, "x")},
		{"routes", "map km_routes has no 2 elements in a row", map[string]uint32{"km_routes": 16}, build(20, "x")},
		{"shares", "map km_shares has no 3 elements in a row", map[string]uint32{"km_shares": 16}, build(20, "x")},
		{"programs", "bytes in a row", map[string]uint32{"km_slabs": 1}, build(200, "x")},
		{"a long redirect", "its answer has", nil, long},
		{"dangling cluster", `cluster "b" is not in the snapshot`, nil, dangling},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rt := load(t, tt.sizes)
			p := publisher(t, rt)
			publish(t, p, build(2, "x"))
			if _, err := p.Publish(context.Background(), tt.snap); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one that says %q", err, tt.want)
			}
			if res := publish(t, p, build(2, "x")); res.Written+res.Deleted != 0 {
				t.Errorf("going back wrote %d and deleted %d", res.Written, res.Deleted)
			}
			same(t, "after going back", p, publisher(t, rt))
		})
	}
}

// TestPublicationIsTold: programs keep what they have found for as long as nothing is published, so each publication tells them, and
// so does a helper that starts: the one before may have ended between its last write and telling of it.
func TestPublicationIsTold(t *testing.T) {
	rt := load(t, nil)
	told := func() uint32 {
		t.Helper()
		var l bpf.Limits
		if err := rt.Map("km_limits").Lookup(uint32(0), &l); err != nil {
			t.Fatal(err)
		}
		return l.Published
	}
	last := uint32(0) // of which programs keep nothing
	grows := func(what string) {
		t.Helper()
		now := told()
		if now <= last {
			t.Errorf("%s: %d, and %d before", what, now, last)
		}
		last = now
	}
	build := func(path, cluster string) *mesh.Snapshot {
		return httpSnapshot(&mesh.Service{Name: "web", Clusters: forward("", "a").Clusters, Frontends: []mesh.Frontend{frontend("10.96.7.7/32", 80)},
			HTTP: &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*mesh.Route{forward(path, cluster)}}}}})
	}
	p := publisher(t, rt)
	grows("the first start")
	publish(t, p, build("/", "a"))
	grows("the first publication")
	publish(t, p, build("/x", "a"))
	grows("another condition")
	publish(t, p, build("/x", "b"))
	grows("another cluster")
	publisher(t, rt)
	grows("a restart")
}
