// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// TestReceivedBytesDoNotWrapWhenThePeerStaysOpen: a client that closes while the
// server keeps its end is gone from FIN_WAIT2, without the server's FIN.
func TestReceivedBytesDoNotWrapWhenThePeerStaysOpen(t *testing.T) {
	b := newBed(t)
	server, client := b.pod("server", false), b.pod("client", true)
	var l net.Listener
	if err := server.Do(func() (err error) {
		l, err = net.Listen("tcp", server.IP4.String()+":9000")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			held <- c
		}
	}()
	b.publish(serve(mesh.TCP, to("c", mesh.Random, l.Addr().(*net.TCPAddr).AddrPort())))
	if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), Silent: true}); res.Errno != "" {
		t.Fatalf("%+v", res)
	}
	defer func() { (<-held).Close() }()
	u := eventually(b, "the connection is closed", func() publish.Use { return b.use("svc-TCP", "c") },
		func(u publish.Use) bool { return u.Closed == 1 })
	if u.Sent != 0 || u.Received != 0 {
		t.Errorf("sent %d and received %d bytes, want none", u.Sent, u.Received)
	}
}

// setSysctl sets a sysctl of a pod's network namespace.
func setSysctl(t *testing.T, p *node.Pod, name, value string) {
	t.Helper()
	if err := p.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644) }); err != nil {
		t.Fatal(err)
	}
}

// TestDataInTheSynIsCounted: TCP Fast Open.
func TestDataInTheSynIsCounted(t *testing.T) {
	b := newBed(t)
	server, client := b.pod("server", false), b.pod("client", true)
	// Without cookies, for every client, and listener made from now on
	// (ip-sysctl.rst, tcp_fastopen).
	setSysctl(t, client, "tcp_fastopen", "5")
	setSysctl(t, server, "tcp_fastopen", "1538")
	listening, _, err := server.Listen(b.ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: "e0"})
	if err != nil {
		t.Fatal(err)
	}
	b.publish(serve(mesh.TCP, to("c", mesh.Random, netip.AddrPortFrom(server.IP4, listening.Port()))))
	if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), FastOpen: true}); res.Server != "e0" || res.Peer != at(vip4) {
		t.Fatalf("%+v", res)
	}
	u := eventually(b, "the connection is closed", func() publish.Use { return b.use("svc-TCP", "c") },
		func(u publish.Use) bool { return u.Closed == 1 })
	if want := uint64(len("hello\n")); u.Sent != want {
		t.Errorf("%d bytes sent, want %d", u.Sent, want)
	}
}

// TestDisconnectedUDPSocketIsLeftAlone: its stamp outlives connect(AF_UNSPEC), which
// runs no hook, and must not end it when the endpoint goes.
func TestDisconnectedUDPSocketIsLeftAlone(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.UDP, "e", 2)
	client := b.pod("client", true)
	b.publish(serve(mesh.UDP, to("c", mesh.Random, s[0].v4)))
	// Bound, so that the kernel still lists it when it is not connected.
	kept := b.dial(client, wire.Dial{Network: wire.UDP, Addr: at(vip4), Keep: true, Bind: "0.0.0.0:5353"})
	for _, dest := range []string{"", s[0].v4.String()} {
		res, err := client.Reconnect(b.ctx, wire.Connect{Handle: kept.Handle, To: dest})
		if err != nil || res.Errno != "" || res.Peer != dest {
			t.Fatalf("connect to %q: %+v, %v", dest, res, err)
		}
		b.publish(serve(mesh.UDP, to("c", mesh.Random, s[1].v4)))
		b.reap(client.NetnsPath)
		b.publish(serve(mesh.UDP, to("c", mesh.Random, s[0].v4)))
	}
	if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle}); err != nil || res.Server != "e0" {
		t.Errorf("the socket that connected directly: %+v, %v", res, err)
	}
}

// TestRefusedReconnectKeepsTheConnection: the kernel leaves a UDP socket where it was
// connected, and so must its VIP.
func TestRefusedReconnectKeepsTheConnection(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.UDP, "e", 2)
	client := b.pod("client", true)
	hole := service{&mesh.Service{Name: "hole", Clusters: []mesh.WeightedCluster{{Cluster: "hole", Weight: 1}},
		Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix("10.96.0.2/32"), Port: vipPort, Protocol: mesh.UDP}}},
		[]*mesh.Cluster{{Name: "hole", Kind: mesh.Blackhole}}}
	b.publish(hole, serve(mesh.UDP, to("c", mesh.Random, s[0].v4)))
	kept := b.dial(client, wire.Dial{Network: wire.UDP, Addr: at(vip4), Keep: true})
	res, err := client.Reconnect(b.ctx, wire.Connect{Handle: kept.Handle, To: "10.96.0.2:80"})
	if err != nil || res.Errno != "ECONNREFUSED" || res.Peer != at(vip4) {
		t.Errorf("connect to a blackhole: %+v, %v, want ECONNREFUSED and the old VIP", res, err)
	}
	if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle}); err != nil || res.Server != "e0" {
		t.Errorf("the old connection: %+v, %v", res, err)
	}
	b.publish(hole, serve(mesh.UDP, to("c", mesh.Random, s[1].v4)))
	b.reap(client.NetnsPath)
	if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle}); err != nil || res.Errno == "" {
		t.Errorf("after its endpoint was removed: %+v, %v, want it ended", res, err)
	}
}
