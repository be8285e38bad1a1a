// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// The frontends of the tests' services; no interface has these addresses.
var (
	vip4 = netip.MustParseAddr("10.96.0.1")
	vip6 = netip.MustParseAddr("fd96::1")
)

const vipPort = 80

// bed is a node with the runtime loaded and nothing published.
type bed struct {
	*testing.T
	ctx  context.Context
	node *node.Node
	rt   *bpf.Runtime
	pub  *publish.Publisher
}

func newBed(t *testing.T) *bed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	n := node.ForTest(t, node.Options{})
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: n.BPFFS})
	if err != nil {
		t.Fatal(err)
	}
	rt.EachNetns = n.EachNetns
	b := &bed{T: t, ctx: ctx, node: n, rt: rt}
	t.Cleanup(func() {
		for _, p := range n.Pods() {
			if err := n.DelPod(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
		rt.Close()
		if err := os.RemoveAll(n.BPFFS); err != nil {
			t.Error(err)
		}
	})
	if b.pub, err = publish.New(rt, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	b.publish() // live, with nothing in it
	return b
}

// service is a service with the clusters that it needs.
type service struct {
	*mesh.Service
	clusters []*mesh.Cluster
}

// serve makes a service on both VIPs at vipPort that splits over clusters.
func serve(proto mesh.Protocol, clusters ...*mesh.Cluster) service {
	s := service{&mesh.Service{Name: "svc-" + proto.String()}, clusters}
	for _, a := range []netip.Addr{vip4, vip6} {
		s.Frontends = append(s.Frontends, mesh.Frontend{Prefix: netip.PrefixFrom(a, a.BitLen()), Port: vipPort, Protocol: proto})
	}
	for _, c := range clusters {
		s.Clusters = append(s.Clusters, mesh.WeightedCluster{Cluster: c.Name, Weight: 1})
	}
	return s
}

// weights sets the weights of a service's clusters.
func (s service) weights(w ...uint32) service {
	for i := range s.Clusters {
		s.Clusters[i].Weight = w[i]
	}
	return s
}

// to makes a cluster of endpoints with weight 1 in one locality.
func to(name string, policy mesh.Policy, addrs ...netip.AddrPort) *mesh.Cluster {
	c := &mesh.Cluster{Name: name, Policy: policy, Localities: []mesh.Locality{{}}}
	for _, a := range addrs {
		c.Localities[0].Endpoints = append(c.Localities[0].Endpoints, mesh.Endpoint{Addr: a, Weight: 1})
	}
	return c
}

func (b *bed) publish(services ...service) publish.Result {
	b.Helper()
	sc := mesh.Scope{Clusters: make(map[string]*mesh.Cluster)}
	for _, s := range services {
		sc.Services = append(sc.Services, s.Service)
		for _, c := range s.clusters {
			sc.Clusters[c.Name] = c
		}
	}
	res, err := b.pub.Publish(b.ctx, &mesh.Snapshot{Scopes: []mesh.Scope{sc}})
	if err != nil {
		b.Fatal(err)
	}
	return res
}

// pod makes a pod, enrolled or not.
func (b *bed) pod(name string, enrolled bool) *node.Pod {
	b.Helper()
	spec := node.PodSpec{Name: name}
	if enrolled {
		spec.Annotations = node.Enrolled()
	}
	p, err := b.node.AddPod(b.ctx, spec)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// echo is a naming server in a pod of its own that is not enrolled.
type echo struct {
	pod    *node.Pod
	v4, v6 netip.AddrPort
}

// servers makes n naming servers called name0, name1, ...
func (b *bed) servers(network, name string, n int) []echo {
	b.Helper()
	var all []echo
	for i := range n {
		id := fmt.Sprintf("%s%d", name, i)
		p := b.pod(id, false)
		at, _, err := p.Listen(b.ctx, wire.Listen{Network: network, Addr: ":8080", Name: id})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, echo{p, netip.AddrPortFrom(p.IP4, at.Port()), netip.AddrPortFrom(p.IP6, at.Port())})
	}
	return all
}

func v4s(all []echo) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range all {
		out = append(out, e.v4)
	}
	return out
}

func both(all []echo) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range all {
		out = append(out, e.v4, e.v6)
	}
	return out
}

// at is the VIP of a family as the dialler writes it.
func at(a netip.Addr) string { return netip.AddrPortFrom(a, vipPort).String() }

func (b *bed) dial(p *node.Pod, d wire.Dial) wire.Result {
	b.Helper()
	res, err := p.Dial(b.ctx, d)
	if err != nil {
		b.Fatal(err)
	}
	return res
}

func (b *bed) dialN(p *node.Pod, n int, d wire.DialN) wire.Counts {
	b.Helper()
	d.N = n
	res, err := p.DialN(b.ctx, d)
	if err != nil {
		b.Fatal(err)
	}
	if res.Done != n {
		b.Fatalf("%d of %d dials were made", res.Done, n)
	}
	return res
}

// wantErrnos fails unless exactly these errors were seen.
func (b *bed) wantErrnos(c wire.Counts, want map[string]int) {
	b.Helper()
	if !maps.Equal(c.Errnos, want) && len(c.Errnos)+len(want) > 0 {
		b.Errorf("errors %v, want %v", c.Errnos, want)
	}
}

func (b *bed) counters() publish.Counters {
	b.Helper()
	c, err := b.pub.Counters(b.ctx)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// refused returns a service's refusals by reason.
func (b *bed) refused(name string) map[string]uint64 {
	b.Helper()
	out := make(map[string]uint64)
	for _, r := range b.counters().Refusals {
		if r.Service == name {
			out[r.Reason.String()] = r.Count
		}
	}
	return out
}

func (b *bed) use(service, cluster string) publish.Use {
	b.Helper()
	all := b.counters().Uses
	i := slices.IndexFunc(all, func(u publish.Use) bool { return u.Service == service && u.Cluster == cluster })
	if i < 0 {
		return publish.Use{}
	}
	return all[i]
}

// eventually polls until ok, or fails with what was seen last.
func eventually[T any](b *bed, what string, get func() T, ok func(T) bool) T {
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		v := get()
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: still %+v", what, v)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
