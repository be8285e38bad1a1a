// SPDX-License-Identifier: Apache-2.0

package live

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/test/match"
)

// world is one generated configuration, published as a service at an address of its own.
type world struct {
	seed     uint64
	v6       bool
	at       netip.AddrPort
	service  *mesh.Service
	clusters map[string]*mesh.Cluster
	// answers are the names of the servers of a cluster; one that has none is answered 503.
	answers map[string][]string
	// routeOf is the name under which the route is counted that leads to a cluster.
	routeOf map[string]string
	taken   []*server
	pairs   []pair
}

// pair is a request for a world, and how it is sent.
type pair struct {
	request []byte
	draws   uint64 // what the client does by chance: see script
}

// newWorld makes the n-th configuration: that of the generator, with actions for its routes.
func newWorld(t testing.TB, s *servers, seed uint64, n, pairs int) (*world, error) {
	g := match.NewGenerator(seed)
	r := rand.New(rand.NewPCG(seed, 0x6c697665))
	w := &world{
		seed: seed, v6: r.IntN(2) == 1, clusters: map[string]*mesh.Cluster{},
		answers: map[string][]string{}, routeOf: map[string]string{},
	}
	vip := netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)})
	if w.v6 {
		vip = netip.MustParseAddr(fmt.Sprintf("fd96::%x:%x", n>>16, n&0xffff))
	}
	w.at = netip.AddrPortFrom(vip, 80)
	cfg := g.Config()
	w.service = &mesh.Service{
		Name:      fmt.Sprintf("svc%06d", n),
		Frontends: []mesh.Frontend{{Prefix: netip.PrefixFrom(vip, vip.BitLen()), Port: 80, Protocol: mesh.TCP}},
		HTTP:      cfg,
	}
	for range pairs {
		w.pairs = append(w.pairs, pair{g.Request(cfg), r.Uint64()})
	}
	d := &dresser{t: t, r: r, s: s, w: w}
	for _, vh := range cfg.VirtualHosts {
		for i, route := range vh.Routes {
			d.action(vh, i, route)
		}
	}
	d.likely()
	return w, d.err
}

// dresser gives routes something to do.
type dresser struct {
	t   testing.TB
	r   *rand.Rand
	s   *servers
	w   *world
	err error
}

func (d *dresser) oneIn(n int) bool { return d.r.IntN(n) == 0 }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (d *dresser) action(vh *mesh.VirtualHost, i int, route *mesh.Route) {
	name := d.w.service.Name + "-" + vh.Name + "-" + route.Name
	counted := publish.RouteName(d.w.service.Name, vh.Name, route.Name, i)
	route.Clusters = nil
	if d.oneIn(12) {
		route.Abort = &mesh.Abort{Fraction: mesh.Fraction{Numerator: pick(d.r, uint32(0), 40, 100), Denominator: 100}, Status: pick(d.r, uint16(418), 500, 503, 204)}
	}
	forward := func(weights ...uint32) {
		for k, weight := range weights {
			cluster := name + "-" + strconv.Itoa(k)
			d.cluster(cluster)
			d.w.routeOf[cluster] = counted
			route.Clusters = append(route.Clusters, mesh.WeightedCluster{Cluster: cluster, Weight: weight})
		}
	}
	switch d.r.IntN(12) {
	case 0, 1:
		route.Redirect = d.redirect()
	case 2:
		body := pick(d.r, "", "answer of "+name, strings.Repeat(name+" ", 400))
		route.Direct = &mesh.DirectResponse{Status: pick(d.r, uint16(200), 204, 304, 403, 500), Body: []byte(body[:min(len(body), 4096)])}
	case 3:
		route.Unsupported = true
	case 4, 5:
		forward(pick(d.r, uint32(0), 1, 30), 50, pick(d.r, uint32(0), 20))
	default:
		forward(1)
	}
	if d.oneIn(4) {
		route.Hash = pick(d.r, mesh.Hash{Kind: mesh.HashSource}, mesh.Hash{Kind: mesh.HashHeader, Header: pick(d.r, "x", "cookie", "host")})
	}
}

func (d *dresser) redirect() *mesh.Redirect {
	rd := &mesh.Redirect{
		Status: pick(d.r, uint16(301), 302, 303, 307, 308), Scheme: pick(d.r, "", "", "https"),
		Host: pick(d.r, "", "", "x.y", "[::2]"), Port: pick(d.r, uint16(0), 0, 80, 443, 8443), StripQuery: d.oneIn(3),
	}
	switch d.r.IntN(4) {
	case 0:
		rd.Path = pick(d.r, "/p", "p", "/p/q?r=s")
	case 1:
		rd.Prefix = pick(d.r, "/p", "/", "p/")
	}
	return rd
}

// cluster makes a cluster of servers of its own.
func (d *dresser) cluster(name string) {
	live, dead := 1, 0
	switch d.r.IntN(24) {
	case 0:
		live = 0
	case 1:
		live, dead = 0, 1
	case 2:
		dead = 1
	case 3, 4, 5, 6:
		live = 2
	}
	d.clusterOf(name, live, dead)
}

func (d *dresser) clusterOf(name string, live, dead int) {
	c := &mesh.Cluster{
		Name: name, Policy: pick(d.r, mesh.RoundRobin, mesh.Random, mesh.LeastRequest, mesh.Maglev),
		MaxRequests: pick(d.r, uint16(0), 0, 0, 1, 3), Localities: []mesh.Locality{{}},
	}
	if c.Policy == mesh.Maglev {
		c.MaglevTableSize = 251
	}
	add := func(port uint16) {
		l := &c.Localities[0]
		l.Endpoints = append(l.Endpoints, mesh.Endpoint{Addr: d.s.addr(port, d.w.v6), Weight: 1})
	}
	all, err := d.s.take(d.t, live)
	for _, e := range all {
		add(e.port)
		d.w.answers[name] = append(d.w.answers[name], e.name)
	}
	d.w.taken = append(d.w.taken, all...)
	for range dead {
		port, failed := d.s.refusing(d.t)
		if failed != nil {
			err = failed
		}
		add(port)
	}
	if live+dead == 0 && d.oneIn(2) {
		c.Kind = mesh.Blackhole
	}
	if err != nil && d.err == nil {
		d.err = err
	}
	d.w.clusters[name] = c
}

// likely says what serves what is not HTTP: nothing, a cluster of its own, or that of a route. Routes that no request
// takes make it worth guessing, sometimes.
func (d *dresser) likely() {
	cfg := d.w.service.HTTP
	n, forwards := 0, []string{}
	for _, vh := range cfg.VirtualHosts {
		n += len(vh.Routes)
		for _, route := range vh.Routes {
			for _, wc := range route.Clusters {
				if wc.Weight > 0 && len(d.w.answers[wc.Cluster]) > 0 {
					forwards = append(forwards, wc.Cluster)
				}
			}
		}
	}
	if len(forwards) > 0 && d.oneIn(6) {
		return
	}
	name := d.w.service.Name + "-default"
	if len(forwards) > 0 && d.oneIn(2) {
		name = pick(d.r, forwards...)
	} else {
		d.clusterOf(name, 1, 0)
	}
	d.w.service.Clusters = []mesh.WeightedCluster{{Cluster: name, Weight: 1}}
	if n > 30 || d.oneIn(3) {
		return
	}
	last := cfg.VirtualHosts[len(cfg.VirtualHosts)-1]
	for i := range n + 1 {
		last.Routes = append(last.Routes, &mesh.Route{
			Name: "likely" + strconv.Itoa(i), Clusters: d.w.service.Clusters,
			Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathExact, Value: fmt.Sprintf("/-likely-%d", i)}},
		})
	}
}
