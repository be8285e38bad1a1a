// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/l7/gate"
)

// scene is what one scenario needs: servers, a service of its own, connections.
type scene struct {
	*testing.T
	*bed
	v6    bool
	local bool // the service has nothing to guess: the program answers the SYN

	ports    []uint16     // of the servers, for the packet log
	vips     []netip.Addr // of the services
	clusters []*mesh.Cluster
}

func newScene(t *testing.T, b *bed, v6, local bool) *scene {
	s := &scene{T: t, bed: b, v6: v6, local: local}
	before := b.events(t)
	t.Cleanup(func() {
		if t.Failed() {
			s.explain(before)
		}
	})
	return s
}

// publish makes a change to the services and tells the kernel.
func (s *scene) publish(change func()) {
	s.Helper()
	s.bed.publish(s.T, change)
}

// service is one that is published, and where to connect to.
type service struct {
	s        *scene
	at       netip.AddrPort
	mesh     *mesh.Service
	clusters []*mesh.Cluster
}

// cluster makes a cluster of servers with weight 1.
func (s *scene) cluster(policy mesh.Policy, servers ...*server) *mesh.Cluster {
	c := &mesh.Cluster{Name: fmt.Sprintf("c%d", s.ids.Add(1)), Policy: policy, Localities: []mesh.Locality{{}}}
	for _, e := range servers {
		c.Localities[0].Endpoints = append(c.Localities[0].Endpoints, mesh.Endpoint{Addr: e.addr(s.v6), Weight: 1})
	}
	if s.mode == clsact { // in one of the modes, so that what every row does is counted
		n := uint32(1_000_000)
		c.MaxConnections = &n
	}
	s.clusters = append(s.clusters, c)
	return c
}

// to makes a route to a cluster of these servers for the paths below prefix.
func (s *scene) to(prefix string, servers ...*server) *mesh.Route {
	return s.split(prefix, share{s.cluster(mesh.RoundRobin, servers...), 1})
}

type share struct {
	cluster *mesh.Cluster
	weight  uint32
}

// split makes a route that draws a cluster by weight.
func (s *scene) split(prefix string, shares ...share) *mesh.Route {
	r := &mesh.Route{Name: prefix, Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathPrefix, Value: prefix}}}
	for _, sh := range shares {
		r.Clusters = append(r.Clusters, mesh.WeightedCluster{Cluster: sh.cluster.Name, Weight: sh.weight})
	}
	return r
}

// serve publishes a service with these routes under one virtual host for every domain. What is not HTTP, and the
// guess, is what the last route does, unless the scene is local.
func (s *scene) serve(routes ...*mesh.Route) *service {
	s.Helper()
	return s.serveHosts(&mesh.VirtualHost{Name: "all", Domains: []string{"*"}, Routes: routes})
}

// serveHosts publishes a service with these virtual hosts, at an address of its own.
func (s *scene) serveHosts(hosts ...*mesh.VirtualHost) *service {
	s.Helper()
	n := s.ids.Add(1)
	vip := netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)})
	if s.v6 {
		vip = netip.MustParseAddr(fmt.Sprintf("fd96::%x", n))
	}
	s.vips = append(s.vips, vip)
	svc := s.serveAt(mesh.Frontend{Prefix: netip.PrefixFrom(vip, vip.BitLen()), Port: 80, Protocol: mesh.TCP}, hosts...)
	svc.at = netip.AddrPortFrom(vip, 80)
	if s.mode == direct {
		svc.at = s.firstEndpoint(hosts)
	}
	return svc
}

// serveAt publishes a service with these virtual hosts.
func (s *scene) serveAt(at mesh.Frontend, hosts ...*mesh.VirtualHost) *service {
	s.Helper()
	svc := &service{s: s, clusters: s.clusters}
	svc.mesh = &mesh.Service{
		Name:      fmt.Sprintf("svc%05d", s.ids.Add(1)),
		Frontends: []mesh.Frontend{at},
		HTTP:      &mesh.HTTP{VirtualHosts: s.likely(hosts)},
		Clusters:  s.guess(hosts),
	}
	s.publish(func() { s.services = append(s.services, svc) })
	s.Cleanup(func() { // for the next publication
		s.mu.Lock()
		defer s.mu.Unlock()
		s.services = slices.DeleteFunc(s.services, func(o *service) bool { return o == svc })
	})
	return svc
}

// guess is what serves what is not HTTP, as the builder of snapshots works it out.
func (s *scene) guess(hosts []*mesh.VirtualHost) []mesh.WeightedCluster {
	if s.local {
		return nil
	}
	routes := hosts[len(hosts)-1].Routes
	return routes[len(routes)-1].Clusters
}

// likely adds routes that no request takes to where the guess leads: a service whose routes lead to many clusters
// evenly is not guessed.
func (s *scene) likely(hosts []*mesh.VirtualHost) []*mesh.VirtualHost {
	if s.local || s.mode == direct {
		return hosts
	}
	out := slices.Clone(hosts)
	n := 0
	for _, vh := range out {
		n += len(vh.Routes)
	}
	last := *out[len(out)-1]
	for i := range n {
		r := mesh.Route{Name: fmt.Sprintf("likely%d", i), Clusters: s.guess(hosts)}
		r.Match.Path = mesh.PathMatch{Kind: mesh.PathExact, Value: fmt.Sprintf("/-likely-%d", i)}
		last.Routes = append(slices.Clip(last.Routes), &r)
	}
	out[len(out)-1] = &last
	return out
}

// firstEndpoint is the server that the guess would lead to.
func (s *scene) firstEndpoint(hosts []*mesh.VirtualHost) netip.AddrPort {
	name := s.guess(hosts)[0].Cluster
	i := slices.IndexFunc(s.clusters, func(c *mesh.Cluster) bool { return c.Name == name })
	return s.clusters[i].Localities[0].Endpoints[0].Addr
}

// update replaces the routes of a service that has one virtual host.
func (svc *service) update(routes ...*mesh.Route) {
	svc.s.Helper()
	svc.s.publish(func() {
		was := *svc.mesh
		host := *was.HTTP.VirtualHosts[0]
		host.Routes = routes
		hosts := []*mesh.VirtualHost{&host}
		was.HTTP = &mesh.HTTP{VirtualHosts: svc.s.likely(hosts)}
		was.Clusters = svc.s.guess(hosts)
		svc.mesh, svc.clusters = &was, svc.s.clusters
	})
}

// replace puts other clusters in the place of those of the same name.
func (svc *service) replace(clusters ...*mesh.Cluster) {
	svc.s.Helper()
	svc.s.publish(func() {
		all := slices.Clone(svc.clusters)
		for _, c := range clusters {
			i := slices.IndexFunc(all, func(o *mesh.Cluster) bool { return o.Name == c.Name })
			all[i] = c
		}
		svc.clusters, svc.s.clusters = all, all
	})
}

// withHealth is a cluster with another health of one endpoint.
func withHealth(c *mesh.Cluster, endpoint int, h mesh.Health) *mesh.Cluster {
	out := *c
	out.Localities = slices.Clone(c.Localities)
	out.Localities[0].Endpoints = slices.Clone(c.Localities[0].Endpoints)
	out.Localities[0].Endpoints[endpoint].Health = h
	return &out
}

// rule puts a rule of the gate in force for the scene.
func (s *scene) rule(r gate.Rule) *gate.Active {
	s.Helper()
	a, err := s.gate.Add(r)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := a.Remove(); err != nil {
			s.Error(err)
		}
	})
	return a
}

// acted is how many packets a rule acted on.
func (s *scene) acted(a *gate.Active) uint64 {
	s.Helper()
	_, n, err := a.Counts()
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// explain says what the kernel and the network saw, after a failure.
func (s *scene) explain(before []uint64) {
	for i, n := range s.bed.events(s.T) {
		if n != before[i] {
			s.Logf("event %d: +%d (of all that ran meanwhile)", i, n-before[i])
		}
	}
	for i, f := range s.flows(s.owns) {
		if i == 8 {
			s.Log("and more flows")
			break
		}
		s.Log(flowLine(f))
	}
	for _, line := range s.tap.lines(s.ports, s.vips, nil) {
		s.Log(line)
	}
}

// flows are the flows that ok says yes to.
func (s *scene) flows(ok func(f *bpf.Flow) bool) (out []*bpf.Flow) {
	if s.rt == nil {
		return nil
	}
	for i := range s.rt.Flows() {
		if f := &s.rt.Flows()[i]; f.State != bpf.FlowFree && ok(f) {
			out = append(out, f)
		}
	}
	return out
}

// explainPort says what became of the connection from one port of the client.
func (s *scene) explainPort(port uint16) {
	ports := []uint16{port}
	for _, f := range s.flows(func(f *bpf.Flow) bool { return swap16(f.Key.ClientPort) == port && s.owns(f) }) {
		s.Log(flowLine(f))
		for _, l := range f.Legs {
			if l.State != bpf.LegNone {
				ports = append(ports, swap16(l.LegPort))
			}
		}
	}
	for _, line := range s.tap.lines(nil, nil, ports) {
		s.Log(line)
	}
}

func swap16(v uint16) uint16 { return v>>8 | v<<8 }

// flowLine is what matters of a flow, on a line and one for each leg.
func flowLine(f *bpf.Flow) string {
	out := fmt.Sprintf("flow of port %d: state %d pin %d leg %d next %d flags %#x pending %d tries %d hold %d (%d, %d bytes) client_end %d client_ack %d server_end %d request %+v response %+v",
		swap16(f.Key.ClientPort), f.State, f.Pin, f.Leg, f.NextLeg, f.Flags, f.Pending, f.Tries, f.Hold, f.HoldBase, f.HoldLen,
		f.ClientEnd, f.ClientAck, f.ServerEnd, f.Request, f.Response)
	for i, l := range f.Legs {
		if l.State != bpf.LegNone {
			out += fmt.Sprintf("\n  leg %d: port %d to %d state %d flags %d dc %d ds %d una %d sent %d nxt %d tries %d", i,
				swap16(l.LegPort), swap16(l.Port), l.State, l.Flags, l.Dc, l.Ds, l.Una, l.Sent, l.Nxt, l.Tries)
		}
	}
	return strings.ReplaceAll(out, "_:{_:{}} ", "")
}

// owns says whether a flow leads, or led, to one of the scene's servers.
func (s *scene) owns(f *bpf.Flow) bool {
	return slices.ContainsFunc(f.Legs[:], func(l bpf.Leg) bool {
		return slices.Contains(s.ports, swap16(l.Port))
	})
}
