// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"kmesh/helper/mesh"
	"kmesh/test/node/wire"
)

// TestEveryKindOfSocket: TCP and UDP, IPv4, IPv6 and v4-mapped, connected or not,
// reach an endpoint and see the VIP.
func TestEveryKindOfSocket(t *testing.T) {
	b := newBed(t)
	tcp, udp := b.servers(wire.TCP, "tcp", 2), b.servers(wire.UDP, "udp", 2)
	b.publish(serve(mesh.TCP, to("tcp", mesh.Random, both(tcp)...)), serve(mesh.UDP, to("udp", mesh.Random, both(udp)...)))
	client, outsider := b.pod("client", true), b.pod("outsider", false)
	mapped := "[::ffff:" + vip4.String() + "]:80"
	for _, c := range []struct {
		name, peer string
		dial       wire.Dial
	}{
		{"tcp4", at(vip4), wire.Dial{Network: wire.TCP, Addr: at(vip4)}},
		{"tcp6", at(vip6), wire.Dial{Network: wire.TCP, Addr: at(vip6)}},
		{"tcp mapped", mapped, wire.Dial{Network: wire.TCPMapped, Addr: at(vip4)}},
		{"udp4 connected", at(vip4), wire.Dial{Network: wire.UDP, Addr: at(vip4)}},
		{"udp6 connected", at(vip6), wire.Dial{Network: wire.UDP, Addr: at(vip6)}},
		{"udp mapped connected", mapped, wire.Dial{Network: wire.UDPMapped, Addr: at(vip4)}},
		{"udp4 sendto", at(vip4), wire.Dial{Network: wire.UDP, Addr: at(vip4), Unconnected: true}},
		{"udp6 sendto", at(vip6), wire.Dial{Network: wire.UDP, Addr: at(vip6), Unconnected: true}},
		{"udp mapped sendto", mapped, wire.Dial{Network: wire.UDPMapped, Addr: at(vip4), Unconnected: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := b.dial(client, c.dial)
			if res.Errno != "" || res.Peer != c.peer {
				t.Errorf("got %+v, want peer %s", res, c.peer)
			}
			if want := strings.ToLower(c.name[:3]); !strings.HasPrefix(res.Server, want) {
				t.Errorf("server %q answered, want one of %s", res.Server, want)
			}
			seen, err := netip.ParseAddrPort(res.Seen)
			if err != nil || seen.Addr().Unmap() != client.IP4 && seen.Addr() != client.IP6 {
				t.Errorf("the server saw %q, want the client pod's address", res.Seen)
			}
			if out := b.dial(outsider, c.dial); out.Errno == "" {
				t.Errorf("a pod that is not enrolled reached the VIP: %+v", out)
			}
		})
	}
}

// TestMPTCPShowsTheEndpoint pins down a known limit: the kernel runs no getpeername
// hook for MPTCP sockets. They are governed all the same.
func TestMPTCPShowsTheEndpoint(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.MPTCP, "server", 1)
	b.publish(serve(mesh.TCP, to("c", mesh.Random, v4s(s)...)))
	res := b.dial(b.pod("client", true), wire.Dial{Network: wire.MPTCP, Addr: at(vip4)})
	if res.Errno != "" || res.Server != "server0" {
		t.Fatalf("got %+v, want an answer of server0", res)
	}
	if res.Peer != s[0].v4.String() {
		t.Errorf("peer %s, the limit says the endpoint %s: if the kernel has learnt it, take the limit out of the README", res.Peer, s[0].v4)
	}
}

// TestRefusals: what cannot be served answers ECONNREFUSED at once and is counted
// by its reason.
func TestRefusals(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	unhealthy := to("c", mesh.Random, v4s(s)...)
	unhealthy.Localities[0].Endpoints[0].Health = mesh.Unhealthy
	blackhole := &mesh.Cluster{Name: "c", Kind: mesh.Blackhole}
	tls := &mesh.Cluster{Name: "c", Kind: mesh.Refused}
	for _, c := range []struct {
		name, addr, reason string
		cluster            *mesh.Cluster
	}{
		{"no endpoint", at(vip4), "no_endpoint", to("c", mesh.Random)},
		{"no endpoint, IPv6", at(vip6), "no_endpoint", to("c", mesh.RoundRobin)},
		{"none healthy", at(vip4), "no_endpoint", unhealthy},
		{"none of the family", at(vip6), "no_endpoint_of_family", to("c", mesh.Random, v4s(s)...)},
		{"blackhole", at(vip4), "blackhole", blackhole},
		{"TLS demanded", at(vip4), "tls_required", tls},
	} {
		for _, proto := range []mesh.Protocol{mesh.TCP, mesh.UDP} {
			t.Run(c.name+"/"+proto.String(), func(t *testing.T) {
				client := b.pod("client", true)
				defer func() { b.node.DelPod(b.ctx, client) }()
				b.publish(serve(proto, c.cluster))
				before := b.refused("svc-" + proto.String())[c.reason]
				dials := []wire.Dial{{Network: strings.ToLower(proto.String()), Addr: c.addr}}
				if proto == mesh.UDP {
					dials = append(dials, wire.Dial{Network: wire.UDP, Addr: c.addr, Unconnected: true})
				}
				for _, d := range dials {
					if res := b.dial(client, d); res.Errno != "ECONNREFUSED" {
						t.Errorf("%+v: got %+v, want ECONNREFUSED", d, res)
					}
				}
				if got := b.refused("svc-" + proto.String())[c.reason] - before; got != uint64(len(dials)) {
					t.Errorf("reason %s was counted %d times, want %d: %v", c.reason, got, len(dials), b.refused("svc-"+proto.String()))
				}
			})
		}
	}
}

// TestToItself: where a pod may reach nothing that is not known, it still reaches itself, and nobody else that way.
func TestToItself(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	client := b.pod("client", true)
	for _, addr := range []string{":8080", "127.0.0.1:8081", "[::1]:8081"} {
		if _, _, err := client.Listen(b.ctx, wire.Listen{Network: wire.TCP, Addr: addr, Name: "client"}); err != nil {
			t.Fatal(err)
		}
	}
	all := service{&mesh.Service{Name: "rest", Clusters: []mesh.WeightedCluster{{Cluster: "none", Weight: 1}}},
		[]*mesh.Cluster{{Name: "none", Kind: mesh.Blackhole}}}
	for _, prefix := range []string{"0.0.0.0/0", "::/0"} {
		all.Frontends = append(all.Frontends, mesh.Frontend{Prefix: netip.MustParsePrefix(prefix), Protocol: mesh.TCP})
	}
	b.publish(all)
	for addr, want := range map[string]string{
		"127.0.0.1:8081": "client", "127.1.2.3:8080": "client", "0.0.0.0:8080": "client",
		"[::1]:8081": "client", "[::]:8080": "client",
		netip.AddrPortFrom(client.IP4, 8080).String(): "client", netip.AddrPortFrom(client.IP6, 8080).String(): "client",
		s[0].v4.String(): "", s[0].v6.String(): "", "126.255.255.255:8080": "", "128.0.0.1:8080": "", "[::2]:8080": "",
	} {
		res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: addr})
		if refused := res.Errno == "ECONNREFUSED"; res.Server != want || refused != (want == "") {
			t.Errorf("%s: got %+v, want server %q", addr, res, want)
		}
	}
	if got := b.refused("rest")["blackhole"]; got != 5 {
		t.Errorf("%d connections were refused, want 5: %v", got, b.refused("rest"))
	}
	// It is reached as ever.
	if res := b.dial(s[0].pod, wire.Dial{Network: wire.TCP, Addr: netip.AddrPortFrom(client.IP4, 8080).String()}); res.Server != "client" {
		t.Errorf("from another pod: %+v", res)
	}
}

// TestLookupOrder: the exact address first, then the longest prefix with the port,
// then the longest prefix with any port, then nothing: passed.
func TestLookupOrder(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 5)
	svc := func(i int, prefix string, port uint16) service {
		name := s[i].pod.Name
		return service{&mesh.Service{Name: name,
			Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix(prefix), Port: port, Protocol: mesh.TCP}},
			Clusters:  []mesh.WeightedCluster{{Cluster: name, Weight: 1}}}, []*mesh.Cluster{to(name, mesh.Random, s[i].v4)}}
	}
	b.publish(
		svc(0, "10.96.1.1/32", 80),
		svc(1, "10.96.1.0/24", 80),
		svc(2, "10.96.0.0/16", 80),
		svc(3, "10.96.1.0/24", 0),
		svc(4, "10.96.9.9/32", 0))
	client := b.pod("client", true)
	for addr, want := range map[string]string{
		"10.96.1.1:80":   "server0",
		"10.96.1.2:80":   "server1",
		"10.96.2.2:80":   "server2",
		"10.96.1.1:81":   "server3",
		"10.96.9.9:4711": "server4",
		"10.96.9.9:80":   "server2", // the port's prefix before the any-port host
		s[3].v4.String(): "server3", // no service: passed as it is
	} {
		if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: addr}); res.Server != want || res.Peer != addr {
			t.Errorf("%s: got %+v, want %s", addr, res, want)
		}
	}
}

// TestPassthrough: ORIGINAL_DST goes where the client meant it, and is counted.
func TestPassthrough(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	b.publish(service{&mesh.Service{Name: "all",
		Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Protocol: mesh.TCP}},
		Clusters:  []mesh.WeightedCluster{{Cluster: "passthrough", Weight: 1}}},
		[]*mesh.Cluster{{Name: "passthrough", Kind: mesh.Passthrough}}})
	res := b.dial(b.pod("client", true), wire.Dial{Network: wire.TCP, Addr: s[0].v4.String()})
	if res.Server != "server0" || res.Peer != s[0].v4.String() {
		t.Errorf("got %+v", res)
	}
	if u := b.use("all", "passthrough"); u.Passed != 1 || u.Opened != 0 {
		t.Errorf("counters %+v, want one passed", u)
	}
}

// TestSocketsOutliveTheirService: an open connection goes on, and shows the VIP,
// when its service is deleted.
func TestSocketsOutliveTheirService(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 1)
	b.publish(serve(mesh.TCP, to("c", mesh.Random, v4s(s)...)))
	client := b.pod("client", true)
	kept := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4), Keep: true})
	if kept.Errno != "" {
		t.Fatalf("%+v", kept)
	}
	b.publish() // the service is gone
	res, err := client.Exchange(b.ctx, wire.Exchange{Handle: kept.Handle})
	if err != nil || res.Server != "server0" || res.Peer != at(vip4) {
		t.Errorf("an open connection after its service went: %+v, %v", res, err)
	}
	if err := client.Hangup(b.ctx, kept.Handle); err != nil {
		t.Error(err)
	}
}

// TestGovernanceIsNoEnforcement: a connection to an address that is no service's is none of the mesh's, also when it is
// an endpoint's own. Whoever must be kept from an endpoint needs a network policy.
func TestGovernanceIsNoEnforcement(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "server", 2)
	b.publish(serve(mesh.TCP, to("c", mesh.Random, v4s(s[:1])...)))
	client := b.pod("client", true)
	if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: at(vip4)}); res.Server != "server0" || res.Peer != at(vip4) {
		t.Errorf("through the service: %+v, want its endpoint and its address", res)
	}
	for i, server := range s { // one is an endpoint, one is not
		if res := b.dial(client, wire.Dial{Network: wire.TCP, Addr: server.v4.String()}); res.Server != fmt.Sprint("server", i) || res.Peer != server.v4.String() {
			t.Errorf("straight to a pod: %+v, want that pod", res)
		}
	}
	if u := b.use("svc-"+mesh.TCP.String(), "c"); u.Opened != 1 {
		t.Errorf("%d connections are counted, want the one through the service", u.Opened)
	}
}
