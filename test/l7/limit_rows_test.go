// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/node/wire"
)

// Rows about clusters that allow a pod so many connections and no more.

// limited is a cluster of at most n connections of one pod.
func limited(n uint32, c *mesh.Cluster) *mesh.Cluster {
	out := *c
	out.MaxConnections = &n
	return &out
}

// counted is how many connections all pods have to a cluster, as the programs count.
func (s *scene) counted(c *mesh.Cluster) (n uint32) {
	s.Helper()
	for k, v := range s.bed.counted(s.T) {
		var name bpf.Name
		if err := s.rt.Names.Lookup(k.Cluster, &name); err == nil && string(name.Name[:name.Len]) == c.Name {
			n += v
		}
	}
	return n
}

func (b *bed) counted(t testing.TB) map[bpf.ConnectionsKey]uint32 {
	t.Helper()
	out := make(map[bpf.ConnectionsKey]uint32)
	var k bpf.ConnectionsKey
	var v bpf.Connections
	it := b.rt.Connections.Iterate()
	for it.Next(&k, &v) {
		if v.Open > 0 {
			out[k] = v.Open
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *scene) wantCounted(c *mesh.Cluster, n uint32) {
	s.Helper()
	eventually(s.T, fmt.Sprintf("%d connections to %s are counted", n, c.Name), func() uint32 { return s.counted(c) },
		func(got uint32) bool { return got == n })
}

// wantFull fails unless a request gets the answer that its cluster allows no further connection.
func (c *conn) wantFull(path string) {
	c.s.Helper()
	r := c.refused(request{path: path}.String(), 503)
	const why = "upstream connect error or disconnect/reset before headers. reset reason: overflow"
	if string(r.body) != why || r.Header.Get("X-Envoy-Overloaded") != "true" {
		c.s.Errorf("the answer is %v %q", r.Header, r.body)
	}
}

// bounded is a service of which "/b" leads to a cluster without a limit, and all else to one of at most n connections.
func (s *scene) bounded(n uint32, policy mesh.Policy, e ...*server) (*service, *mesh.Cluster) {
	s.Helper()
	c := s.cluster(policy, e[1:]...)
	s.clusters[len(s.clusters)-1] = limited(n, c)
	return s.serve(s.to("/b", e[0]), s.split("/", share{c, 1})), c
}

func init() {
	add(routed, "as many connections as a cluster allows", func(s *scene) {
		e := s.https(2)
		svc, c := s.bounded(2, mesh.RoundRobin, e...)
		one, two, three := s.dial(svc.at), s.dial(svc.at), s.dial(svc.at)
		one.get("/", e[1])
		two.get("/", e[1])
		for range 3 {
			three.wantFull("/")
			three.get("/b", e[0]) // it has not been refused
			one.get("/", e[1])
		}
		s.wantCounted(c, 2)
		one.Close()
		s.wantCounted(c, 1)
		three.get("/", e[1])
		two.reset()
		s.wantCounted(c, 1)
		s.dial(svc.at).get("/", e[1])
		three.get("/", e[1])
		s.wantCounted(c, 2)
	})
	add(routed, "a parked connection counts", func(s *scene) {
		e := s.https(2)
		svc, c := s.bounded(1, mesh.RoundRobin, e...)
		one := s.dial(svc.at)
		one.get("/", e[1])
		one.get("/b", e[0])
		two := s.dial(svc.at)
		two.wantFull("/")
		one.get("/", e[1])
		one.get("/b", e[0])
		eventually(s.T, "connections that the endpoint ended", func() int { return e[1].closeIdle(false) }, func(n int) bool { return n == 1 })
		s.wantCounted(c, 0)
		two.get("/", e[1])
		one.wantFull("/")
		one.get("/b", e[0])
	})
	add(routed, "what a connection has of a full cluster serves", func(s *scene) {
		e := s.https(4)
		svc, c := s.bounded(1, mesh.RoundRobin, e...)
		one := s.dial(svc.at)
		for range 6 {
			for range 2 {
				one.write(request{path: "/"}.String())
				if r := one.read("GET"); r.StatusCode != 200 {
					s.Fatalf("status %d", r.StatusCode)
				}
			}
			one.get("/b", e[0])
		}
		if n := e[1].accepted() + e[2].accepted() + e[3].accepted(); n != 1 {
			s.Errorf("%d connections were made, want 1", n)
		}
		s.wantCounted(c, 1)
		s.dial(svc.at).wantFull("/")
	})
	add(routed, "a guess of the same cluster makes room", func(s *scene) {
		e := s.https(5)
		c := s.cluster(mesh.Maglev, e[1:]...)
		s.clusters[len(s.clusters)-1] = limited(1, c)
		r := s.split("/", share{c, 1})
		r.Hash = mesh.Hash{Kind: mesh.HashHeader, Header: "x-user"}
		svc := s.serve(s.to("/b", e[0]), r)
		for user := range 8 {
			one := s.dial(svc.at)
			one.write(request{path: "/", header: []string{fmt.Sprintf("X-User: %d", user)}}.String())
			if r := one.read("GET"); r.StatusCode != 200 {
				s.Errorf("user %d: status %d", user, r.StatusCode)
			}
			s.wantCounted(c, 1)
			one.Close()
			s.wantCounted(c, 0)
		}
	})
	add(routed, "a cluster that allows no connection", func(s *scene) {
		e := s.https(2)
		svc, c := s.bounded(0, mesh.LeastRequest, e...)
		one := s.dial(svc.at)
		one.wantFull("/")
		one.get("/b", e[0])
		one.wantFull("/")
		s.wantCounted(c, 0)
	})
	add(routed, "endpoints that two clusters share", func(s *scene) {
		e := s.https(1)
		a, b := s.cluster(mesh.RoundRobin, e[0]), s.cluster(mesh.RoundRobin, e[0])
		s.clusters[len(s.clusters)-2], s.clusters[len(s.clusters)-1] = limited(2, a), limited(1, b)
		svc := s.serve(s.split("/b", share{b, 1}), s.split("/", share{a, 1}))
		one, two := s.dial(svc.at), s.dial(svc.at)
		one.get("/", e[0])
		two.get("/", e[0])
		s.wantCounted(a, 2)
		one.get("/b", e[0]) // by the same connection, which is the other cluster's now
		s.wantCounted(a, 1)
		s.wantCounted(b, 1)
		two.wantFull("/b")
		two.get("/", e[0])
		one.get("/", e[0])
		s.wantCounted(b, 0)
		two.get("/b", e[0])
		if n := e[0].accepted(); n > 2 {
			s.Errorf("%d connections, want 2", n)
		}
	})
	add(routed, "a limit of connections that changes", func(s *scene) {
		e := s.https(2)
		svc, c := s.bounded(1, mesh.RoundRobin, e...)
		one, two, three := s.dial(svc.at), s.dial(svc.at), s.dial(svc.at)
		one.get("/", e[1])
		two.wantFull("/")
		svc.replace(limited(2, c))
		two.get("/", e[1])
		svc.replace(limited(1, c))
		two.get("/", e[1])
		three.wantFull("/")
		one.Close()
		s.wantCounted(c, 1)
		three.wantFull("/")
		free := *c
		free.MaxConnections = nil
		svc.replace(&free)
		three.get("/", e[1])
		s.wantCounted(c, 1)
		svc.replace(limited(1, c))
		s.dial(svc.at).wantFull("/")
		three.get("/", e[1])
		two.Close()
		s.wantCounted(c, 0)
		three.get("/", e[1])
		s.dial(svc.at).get("/", e[1])
		s.wantCounted(c, 1)
	})
	add(guessed, "what is not HTTP, to a full cluster", func(s *scene) {
		e := s.raw(1, echo)
		c := s.cluster(mesh.RoundRobin, e)
		s.clusters[len(s.clusters)-1] = limited(1, c)
		svc := s.serve(s.split("/", share{c, 1}))
		one, two := s.dial(svc.at), s.dial(svc.at)
		one.write("\x00\x01\x02\x03")
		one.expect(e.name + ":\x00\x01\x02\x03")
		two.write("\x00\x01\x02\x03")
		two.expectBroken()
		one.Close()
		s.wantCounted(c, 0)
		three := s.dial(svc.at)
		three.write("\x00\x01\x02\x03")
		three.expect(e.name + ":\x00\x01\x02\x03")
	})
	add(routed, "endpoints of a bounded cluster that refuse", func(s *scene) {
		e := s.https(2)
		bad := s.refusing(5)
		svc, c := s.bounded(1, mesh.RoundRobin, e[0], bad, e[1], bad)
		for range 6 {
			one := s.dial(svc.at)
			one.get("/", e[1])
			s.wantCounted(c, 1)
			one.Close()
			s.wantCounted(c, 0)
		}
		svc, c = s.bounded(3, mesh.RoundRobin, e[0], bad)
		for range 6 {
			if one, errno := s.try(svc.at, how{}); one != nil {
				one.refused(request{path: "/"}.String(), 503)
			} else if errno != "ECONNREFUSED" {
				s.Errorf("connect: %s", errno)
			}
			s.wantCounted(c, 0)
		}
	})
}

// TestConnectionsComeBack: whatever becomes of thousands of connections, none is counted in the end, while no process of ours lives.
func TestConnectionsComeBack(t *testing.T) {
	b := newBed(t, tcx)
	b.tap = newTap(t, b.clients[0], 1<<12)
	if err := reuse(b.clients[churner]); err != nil {
		t.Fatal(err)
	}
	s := newScene(t, b, false, false)
	const most = 16
	e := s.raw(0, pathServer)
	good, c := s.bounded(most, mesh.RoundRobin, e, e)
	hole, h := s.bounded(most, mesh.RoundRobin, e, s.hole(3))
	if err := b.rt.Close(); err != nil {
		t.Fatal(err)
	}
	b.rt = nil
	for _, serverFirst := range []bool{true, false} {
		s.churn(good, 2000, serverFirst)
	}
	// More at once than are allowed: what has no room is answered, and nothing hangs.
	got, err := s.clients[churner].Churn(s.ctx, wire.Churn{Addr: good.at.String(), N: 3000, Parallel: 4 * most, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of 3000 were answered by the server, the others: %v", got.Done, got.Errors)
	if got.Done < 500 || got.Done == 3000 {
		t.Errorf("%d of 3000 connections were served", got.Done)
	}
	// Clients that give up while nobody answers their SYN.
	dials, err := s.clients[0].DialN(s.ctx, wire.DialN{N: 400, Parallel: 8, Dial: wire.Dial{Network: wire.TCP, Addr: hole.at.String(), Timeout: 20 * time.Millisecond, Silent: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("nobody answers: %v of %d", dials.Errnos, dials.Done)
	if n := dials.Errnos["connect EINPROGRESS"]; n < 300 {
		t.Errorf("%d of 400 clients gave up", n)
	}
	s.wantClosed(e)
	b.load()
	s.wantCounted(c, 0)
	s.wantCounted(h, 0)
}
