// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// limited is a cluster with at most n connections of one pod.
func limited(n uint32, c *mesh.Cluster) *mesh.Cluster {
	c.MaxConnections = &n
	return c
}

// open is how many connections all pods have to clusters that bound them, as the programs count.
func (b *bed) open() (n uint32) {
	b.Helper()
	var k bpf.ConnectionsKey
	var v bpf.Connections
	it := b.rt.Connections.Iterate()
	for it.Next(&k, &v) {
		n += v.Open
	}
	if err := it.Err(); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bed) wantOpen(n uint32) {
	b.Helper()
	eventually(b, fmt.Sprintf("%d connections are counted", n), b.open, func(got uint32) bool { return got == n })
}

// kept opens a connection that stays.
func (b *bed) kept(p *node.Pod, to string) wire.Result {
	b.Helper()
	res := b.dial(p, wire.Dial{Network: wire.TCP, Addr: to, Keep: true})
	if res.Errno != "" {
		b.Fatalf("connect to %s: %+v", to, res)
	}
	return res
}

// wantFull fails unless one more connection is refused, as one that nobody listens for.
func (b *bed) wantFull(p *node.Pod, to string) {
	b.Helper()
	if res := b.dial(p, wire.Dial{Network: wire.TCP, Addr: to}); res.Call != "connect" || res.Errno != "ECONNREFUSED" {
		b.Errorf("one connection too many: %+v, want connect: ECONNREFUSED", res)
	}
}

func (b *bed) hangUp(p *node.Pod, r wire.Result) {
	b.Helper()
	if err := p.Hangup(b.ctx, r.Handle); err != nil {
		b.Fatal(err)
	}
}

// TestConnectionLimit: the connection after the last one that the cluster allows a pod is refused, by whatever address
// and family, until one ends. Every pod has its own.
func TestConnectionLimit(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 2)
	b.publish(serve(mesh.TCP, limited(3, to("c", mesh.RoundRobin, both(s)...))))
	one, two := b.pod("one", true), b.pod("two", true)
	for _, p := range []*node.Pod{one, two} {
		all := []wire.Result{b.kept(p, at(vip4)), b.kept(p, at(vip6)), b.kept(p, at(vip4))}
		for range 20 {
			b.wantFull(p, at(vip4))
			b.wantFull(p, at(vip6))
		}
		for range 5 {
			b.hangUp(p, all[0])
			b.wantOpen(uint32(2 + 3*(map[*node.Pod]int{one: 0, two: 1}[p])))
			all = append(all[1:], b.kept(p, at(vip6)))
			b.wantFull(p, at(vip4))
		}
	}
	if got := b.refused("svc-TCP")["overflow"]; got != 2*(40+5) {
		t.Errorf("%d refusals are counted as overflow, want %d", got, 2*(40+5))
	}
	if u := b.use("svc-TCP", "c"); u.Opened-u.Closed != 6 {
		t.Errorf("%d connections are open, want 6", u.Opened-u.Closed)
	}
	if err := b.node.DelPod(b.ctx, two); err != nil {
		t.Fatal(err)
	}
	b.wantOpen(3)
}

// TestConnectionLimitChanges: a limit that changes holds for the next connection; what is open stays, and counts as
// long as the cluster is the same.
func TestConnectionLimitChanges(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	client := b.pod("client", true)
	publish := func(c *mesh.Cluster) {
		t.Helper()
		b.publish(serve(mesh.TCP, c))
	}
	unlimited := func() *mesh.Cluster { return to("c", mesh.RoundRobin, both(s)...) }
	publish(limited(0, unlimited()))
	b.wantFull(client, at(vip4))
	publish(limited(1, unlimited()))
	all := []wire.Result{b.kept(client, at(vip4))}
	b.wantFull(client, at(vip4))
	publish(limited(2, unlimited()))
	all = append(all, b.kept(client, at(vip6)))
	b.wantFull(client, at(vip4))
	publish(limited(1, unlimited()))
	b.hangUp(client, all[0])
	b.wantOpen(1)
	b.wantFull(client, at(vip4))
	publish(unlimited())
	var more []wire.Result
	for range 3 {
		more = append(more, b.kept(client, at(vip4))) // and are not counted
	}
	b.wantOpen(1)
	publish(limited(2, unlimited()))
	more = append(more, b.kept(client, at(vip4)))
	b.wantFull(client, at(vip4))
	b.publish()
	for _, r := range append(more, all[1]) {
		if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: r.Handle}); err != nil || res.Server != "server0" {
			t.Errorf("an open connection: %+v, %v", res, err)
		}
	}
	// With the cluster its count is gone, and another one of its name begins anew.
	b.wantOpen(0)
	publish(limited(1, unlimited()))
	last := b.kept(client, at(vip4))
	b.wantFull(client, at(vip4))
	for _, r := range append(more, all[1]) {
		b.hangUp(client, r)
	}
	b.wantFull(client, at(vip4))
	b.hangUp(client, last)
	b.wantOpen(0)
}

// TestConnectionsComeBack: whatever becomes of connections, in the end none is counted, and nobody tidies up.
func TestConnectionsComeBack(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 2)
	closed := netip.AddrPortFrom(s[0].pod.IP4, 9) // nobody listens
	const most = 8
	cluster := func(addrs ...netip.AddrPort) service {
		return serve(mesh.TCP, limited(most, to("c", mesh.RoundRobin, addrs...)))
	}
	client := b.pod("client", true)
	setSysctl(t, client, "tcp_tw_reuse", "1")
	b.publish(cluster(v4s(s)...))
	if c := b.dialN(client, 3000, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}, Parallel: most}); len(c.Errnos) > 0 {
		t.Errorf("as many at once as are allowed: %v", c.Errnos)
	}
	b.wantOpen(0)
	c := b.dialN(client, 3000, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}, Parallel: 4 * most})
	if n := c.Errnos["connect ECONNREFUSED"]; n == 0 || n == c.Done || len(c.Errnos) > 1 {
		t.Errorf("more at once than are allowed: %v of %d", c.Errnos, c.Done)
	}
	b.wantOpen(0)
	b.publish(cluster(closed, s[0].v4))
	c = b.dialN(client, 2000, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}, Parallel: most})
	if n := c.Errnos["connect ECONNREFUSED"]; n != 1000 {
		t.Errorf("half of the endpoints refuse: %v of %d", c.Errnos, c.Done)
	}
	b.wantOpen(0)
	b.publish(cluster(silent(t, client)))
	c = b.dialN(client, 400, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4), Timeout: 10 * time.Millisecond}, Parallel: most})
	// A call that a signal of Go's scheduler interrupts is made once more, and tells that it is under way already.
	if n := c.Errnos["connect EINPROGRESS"] + c.Errnos["connect EALREADY"]; n != 400 {
		t.Errorf("nobody answers: %v of %d", c.Errnos, c.Done)
	}
	b.wantOpen(0)
	b.publish(cluster(v4s(s)...))
	var all []wire.Result
	for range most {
		all = append(all, b.kept(client, at(vip4)))
	}
	b.wantFull(client, at(vip4))
	for _, r := range all {
		b.hangUp(client, r)
	}
	b.wantOpen(0)
}

// silent is an address that a pod sends to, and that nobody has: clients give up.
func silent(t *testing.T, p *node.Pod) netip.AddrPort {
	t.Helper()
	addr := p.IP4.As4()
	addr[3] = 250
	if err := p.Do(func() error {
		l, err := netlink.LinkByName(node.IfName)
		if err != nil {
			return err
		}
		return netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr[:], HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99},
		})
	}); err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(addr), 80)
}

// TestConnectThatFailsAtOnce: what the kernel refuses before it sends anything counts for a moment.
func TestConnectThatFailsAtOnce(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	nowhere := netip.MustParseAddrPort("224.0.0.1:80") // TCP has no route there
	client := b.pod("client", true)
	b.publish(serve(mesh.TCP, limited(2, to("c", mesh.RoundRobin, nowhere))))
	b.wantErrnos(b.dialN(client, 2, wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: at(vip4)}}), map[string]int{"connect ENETUNREACH": 2})
	b.publish(serve(mesh.TCP, limited(2, to("c", mesh.RoundRobin, both(s)...))))
	eventually(b, "the claims are void", func() wire.Result { return b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4)}) },
		func(r wire.Result) bool { return r.Errno == "" })
	b.wantOpen(0)
}
