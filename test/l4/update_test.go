// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/test/node/wire"
)

// TestUpdatesUnderLoad: 10,000 connections while the endpoints change all the time,
// none refused.
func TestUpdatesUnderLoad(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 4)
	client := b.pod("client", true)
	policies := []mesh.Policy{mesh.RoundRobin, mesh.Random, mesh.LeastRequest, mesh.Maglev}
	change := func(i int) {
		addrs := v4s(s)
		cut := i % 4
		rest := append(append([]netip.AddrPort(nil), addrs[:cut]...), addrs[cut+1:]...)
		b.publish(serve(mesh.TCP, to("c", policies[i/4%4], rest...)))
	}
	change(0)
	// At least 10,000 connections, and as many more as it takes to see 100 updates.
	const batch, updates = 2_000, 100
	type done struct {
		counts wire.Counts
		err    error
	}
	ended := make(chan done, 1)
	dial := func() {
		c, err := client.DialN(b.ctx, wire.DialN{N: batch, Parallel: 8, Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}})
		ended <- done{c, err}
	}
	go dial()
	connections := 0
	for i := 1; ; i++ {
		select {
		case d := <-ended:
			if d.err != nil {
				t.Fatal(d.err)
			}
			b.wantErrnos(d.counts, nil)
			connections += d.counts.Done
			if connections < 10_000 || i < updates {
				go dial()
				continue
			}
			if r := b.refused("svc-TCP"); len(r) != 0 {
				t.Errorf("refusals %v", r)
			}
			t.Logf("%d connections, %d updates of the endpoints, 0 refused", connections, i)
			return
		default:
			change(i)
		}
	}
}

// TestUDPMovesFromARemovedEndpoint: an unconnected socket is moved at its next
// datagram; one that stays keeps its endpoint.
func TestUDPMovesFromARemovedEndpoint(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.UDP, "e", 2)
	b.publish(serve(mesh.UDP, to("c", mesh.Random, both(s)...)))
	client := b.pod("client", true)
	for _, vip := range []netip.Addr{vip4, vip6} {
		b.publish(serve(mesh.UDP, to("c", mesh.Random, both(s)...)))
		first := b.dial(client, wire.Dial{Network: wire.UDP, Addr: at(vip), Unconnected: true, Keep: true})
		for range 20 {
			res, err := client.Exchange(b.ctx, wire.Exchange{Handle: first.Handle})
			if err != nil || res.Server != first.Server || res.Peer != at(vip) {
				t.Fatalf("a later datagram: %+v, %v; the first: %+v", res, err, first)
			}
		}
		stays := s[0]
		if first.Server == "e0" {
			stays = s[1]
		}
		b.publish(serve(mesh.UDP, to("c", mesh.Random, stays.v4, stays.v6)))
		res, err := client.Exchange(b.ctx, wire.Exchange{Handle: first.Handle})
		if err != nil || res.Server != stays.pod.Name || res.Peer != at(vip) {
			t.Errorf("after %s was removed: %+v, %v", first.Server, res, err)
		}
	}
}

// TestUDPConnectedToARemovedEndpointEnds: a connected socket runs no hook again, so
// it is ended, and a new one reaches another endpoint. Sockets of endpoints that
// stay, and direct ones to the same address, live on.
func TestUDPConnectedToARemovedEndpointEnds(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.UDP, "e", 2)
	client := b.pod("client", true)
	for _, vip := range []netip.Addr{vip4, vip6} {
		b.publish(serve(mesh.UDP, to("c", mesh.RoundRobin, both(s)...)))
		kept := make(map[string]wire.Result)
		for len(kept) < 2 {
			res := b.dial(client, wire.Dial{Network: wire.UDP, Addr: at(vip), Keep: true})
			if res.Errno != "" {
				t.Fatalf("%+v", res)
			}
			kept[res.Server] = res
		}
		direct := s[0].v4
		if vip == vip6 {
			direct = s[0].v6
		}
		own := b.dial(client, wire.Dial{Network: wire.UDP, Addr: direct.String(), Keep: true})
		b.publish(serve(mesh.UDP, to("c", mesh.RoundRobin, s[1].v4, s[1].v6)))
		b.reap(client.NetnsPath)
		if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept["e0"].Handle}); err != nil || res.Errno != "EDESTADDRREQ" {
			t.Errorf("the removed endpoint's socket: %+v, %v, want EDESTADDRREQ: it is no longer connected", res, err)
		}
		if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept["e1"].Handle}); err != nil || res.Server != "e1" {
			t.Errorf("the other endpoint's socket: %+v, %v", res, err)
		}
		if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: own.Handle}); err != nil || res.Server != "e0" {
			t.Errorf("a socket that was never the mesh's: %+v, %v", res, err)
		}
		if res := b.dial(client, wire.Dial{Network: wire.UDP, Addr: at(vip)}); res.Server != "e1" {
			t.Errorf("a new socket: %+v", res)
		}
	}
}

// reap ends the sockets of removed endpoints in a network namespace, as the helper
// does.
func (b *bed) reap(netnsPath string) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := ns.WithNetNSPath(netnsPath, func(ns.NetNS) error {
		_, err := b.rt.ReapUDP()
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

// TestCounters: opened, closed, failed, bytes, open now; live connections' bytes are
// in before they end.
func TestCounters(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 1)
	nobody := netip.AddrPortFrom(s[0].pod.IP4, 9)
	b.publish(serve(mesh.TCP, to("c", mesh.Random, v4s(s)...)))
	client := b.pod("client", true)
	b.dialN(client, 10, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}})
	kept := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), Keep: true})
	u := eventually(b, "ten closed, one open", func() publish.Use { return b.use("svc-TCP", "c") },
		func(u publish.Use) bool { return u.Opened == 11 && u.Closed == 10 && u.Active == 1 })
	// The server greets, the client said nothing yet.
	if u.Sent != 0 || u.Received == 0 {
		t.Errorf("bytes sent %d, received %d; want none, and some", u.Sent, u.Received)
	}
	// What one exchange adds is exact: the line sent and the line received.
	for range 2 {
		before := b.use("svc-TCP", "c")
		res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle})
		if err != nil {
			t.Fatal(err)
		}
		after := eventually(b, "the bytes of a live connection", func() publish.Use { return b.use("svc-TCP", "c") },
			func(u publish.Use) bool { return u.Sent > before.Sent && u.Received > before.Received })
		// "NAME LINE\n" answers "LINE\n".
		if sent, received := after.Sent-before.Sent, after.Received-before.Received; received != sent+uint64(len(res.Server))+1 {
			t.Errorf("sent %d, received %d with a name of %d bytes", sent, received, len(res.Server))
		}
	}
	live := b.use("svc-TCP", "c")
	if err := client.Hangup(b.ctx, kept.Handle); err != nil {
		t.Fatal(err)
	}
	u = eventually(b, "all closed", func() publish.Use { return b.use("svc-TCP", "c") },
		func(u publish.Use) bool { return u.Closed == 11 && u.Active == 0 })
	if u.Sent != live.Sent || u.Received != live.Received {
		t.Errorf("the end of a connection added bytes: before %+v, after %+v", live.Stats, u.Stats)
	}
	b.publish(serve(mesh.TCP, to("c", mesh.Random, nobody)))
	if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4)}); res.Errno != "ECONNREFUSED" {
		t.Fatalf("%+v", res)
	}
	if u := b.use("svc-TCP", "c"); u.Failed != 1 || u.Opened != 11 {
		t.Errorf("after a refused connection: %+v", u.Stats)
	}
}

// TestRecount: a count that went wrong is set right by the list of sockets, one in
// motion is left alone.
func TestRecount(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 1)
	b.publish(serve(mesh.TCP, to("c", mesh.LeastRequest, v4s(s)...)))
	client := b.pod("client", true)
	for range 3 {
		b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), Keep: true})
	}
	active := func() uint64 {
		for _, e := range b.counters().Endpoints {
			if e.Addr == s[0].v4 {
				return e.Active
			}
		}
		return 0
	}
	eventually(b, "three open connections", active, func(n uint64) bool { return n == 3 })
	r := publish.NewRecounter(b.pub)
	for range 3 {
		if n, err := r.Recount(b.ctx); err != nil || n != 0 {
			t.Fatalf("recount of right numbers corrected %d, %v", n, err)
		}
	}
	var id uint32
	var n uint64
	it := b.rt.Active.Iterate()
	if !it.Next(&id, &n) {
		t.Fatal("no endpoint is counted")
	}
	if err := b.rt.Active.Put(id, uint64(40)); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{0, 1, 0} {
		if n, err := r.Recount(b.ctx); err != nil || n != want {
			t.Errorf("recount %d corrected %d, %v, want %d", i, n, err, want)
		}
	}
	if got := active(); got != 3 {
		t.Errorf("%d open connections after the recount, want 3", got)
	}
}
