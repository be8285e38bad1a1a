// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"net/netip"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// TestPortOfASocket: a socket of the pod is connected to an endpoint itself, from one of the two ports that are left for
// legs. No leg takes the port from it.
func TestPortOfASocket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			b := newBed(t, tcx)
			s := newScene(t, b, v6, false)
			e := s.https(2)
			free, shared := s.serve(s.to("/", e[0])), s.serve(s.to("/", e[1]))
			const own, other, mask = 0x4000 | 77, 0x6000 | 77, 0x1fff
			limits := func(change func(l *bpf.Limits)) (l bpf.Limits) {
				m := b.rt.Map("km_limits")
				if err := m.Lookup(new(uint32), &l); err != nil {
					t.Fatal(err)
				}
				change(&l)
				if err := m.Put(new(uint32), &l); err != nil {
					t.Fatal(err)
				}
				return l
			}
			limits(func(l *bpf.Limits) { l.PortMask, l.PortValue = mask, own&mask })
			legPort := func(svc *service, e *server) (port uint16) {
				c := s.dial(svc.at)
				c.get("/", e)
				port = bpf.PortWord(s.flowFrom(c).Legs[0].LegPort)
				c.ask(request{path: "/", do: do{Close: true}}, e)
				c.expectEnd()
				c.Close()
				// One port of two is soon wanted again.
				eventually(t, "open flows", func() int {
					return len(s.flows(func(f *bpf.Flow) bool { return f.State != bpf.FlowClosed }))
				}, func(n int) bool { return n == 0 })
				return port
			}
			seen := map[uint16]bool{}
			for range 4 {
				seen[legPort(free, e[0])] = true
			}
			if len(seen) != 2 || !seen[own] || !seen[other] {
				t.Fatalf("ports of legs were %v, want %d and %d", seen, own, other)
			}
			direct := s.dialAs(e[1].addr(v6), how{bind: own})
			direct.get("/", e[1])
			for range 8 {
				if port := legPort(shared, e[1]); port != other {
					t.Fatalf("a leg has port %d, want %d: the other one is a socket's", port, other)
				}
				direct.get("/", e[1])
			}
			if l := limits(func(*bpf.Limits) {}); l.Shared == 0 {
				t.Error("nothing tells that sockets have ports of legs")
			}
		})
	}
}

// TestServiceAtALegPort: what a client sends to a service whose port is one that legs come from is not taken for an
// endpoint's answer, from its first packet to the last ACK.
func TestServiceAtALegPort(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			b := newBed(t, tcx)
			s := newScene(t, b, v6, false)
			e := s.https(2)
			vip := netip.MustParseAddr(map[bool]string{false: "10.96.200.1", true: "fd96::c801"}[v6])
			svc := s.serveAt(mesh.Frontend{Prefix: netip.PrefixFrom(vip, vip.BitLen()), Port: 20000, Protocol: mesh.TCP},
				&mesh.VirtualHost{Name: "all", Domains: []string{"*"}, Routes: []*mesh.Route{s.to("/a", e[0]), s.to("/", e[1])}})
			svc.at = netip.AddrPortFrom(vip, 20000)
			for _, serverFirst := range []bool{true, false} {
				c := s.dial(svc.at)
				c.get("/a", e[0])
				c.get("/b", e[1])
				if serverFirst {
					c.ask(request{path: "/b", do: do{Close: true}}, e[1])
					c.expectEnd()
				}
				c.Close()
				s.wantClosed(e...)
			}
			eventually(t, "flows whose last ACK has not passed", func() int {
				return len(s.flows(func(f *bpf.Flow) bool { return f.Flags&bpf.FlowListed == 0 }))
			}, func(n int) bool { return n == 0 })
		})
	}
}
