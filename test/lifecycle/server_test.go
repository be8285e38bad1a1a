// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"kmesh/test/control"
	"kmesh/test/meshfile"
	"kmesh/test/node/wire"
)

// TestServer: a real go-control-plane server feeds the helper; without the server,
// and with the helper killed beside it, the last good state serves; both come back.
func TestServer(t *testing.T) {
	b := newBed(t)
	s := control.New(b.node.Do)
	serve := func(to netip.AddrPort) {
		t.Helper()
		if err := s.Serve(control.Service{Name: "echo", At: netip.MustParseAddrPort(vip), Endpoint: to}); err != nil {
			t.Fatal(err)
		}
	}
	listen := func() {
		t.Helper()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	listen()
	t.Cleanup(func() { s.Stop() })
	serve(b.v1)
	start := func() func() {
		h, err := b.node.StartHelper(b.ctx, "--xds-server", control.Addr, "--node-id", control.NodeID)
		if err != nil {
			t.Fatal(err)
		}
		return h.Kill9
	}
	kill := start()
	client := b.client("client")
	open := b.keep(client)
	b.only(client, "v1", 10)
	serve(b.v2)
	if took := b.until(client, "v2"); took > time.Second {
		t.Errorf("a change took %v", took)
	}
	open.works("after a change")

	s.Stop()
	b.eventually("the helper sees that the server is gone", func() bool { return b.ctl("status")["xds"].(map[string]any)["connected"] != true })
	b.only(client, "v2", 10)
	kill()
	b.only(client, "v2", 10)
	kill = start() // ready, on what is pinned
	b.only(client, "v2", 10)
	serve(b.v1)
	listen()
	b.until(client, "v1")
	open.works("after all that")
	kill()
}

// TestUDPOfARemovedEndpoint: the helper ends connected sockets of an endpoint that
// was removed, at once.
func TestUDPOfARemovedEndpoint(t *testing.T) {
	b := newBed(t)
	mesh := func(endpoint string) string {
		pods := b.node.Pods()
		a := netip.AddrPortFrom(pods[0].IP4, 9090)
		if endpoint == "v2" {
			a = netip.AddrPortFrom(pods[1].IP4, 9090)
		}
		return `- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: dns
  address: {socket_address: {address: 10.96.0.10, port_value: 53, protocol: UDP}}
  udp_listener_config: {}
  listener_filters:
  - name: envoy.filters.udp_listener.udp_proxy
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig
      stat_prefix: dns
      matcher:
        on_no_match:
          action:
            name: route
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route
              cluster: dns
` + meshfile.Cluster("dns", a)
	}
	for _, p := range b.node.Pods() {
		if _, _, err := p.Listen(b.ctx, wire.Listen{Network: wire.UDP, Addr: ":9090", Name: p.Name}); err != nil {
			t.Fatal(err)
		}
	}
	b.write("mesh.yaml", mesh("v1"))
	b.start()
	client := b.client("client")
	dial := wire.Dial{Network: wire.UDP, Addr: "10.96.0.10:53", Keep: true}
	connected, err := client.Dial(b.ctx, dial)
	if err != nil || connected.Server != "v1" {
		t.Fatalf("%+v, %v", connected, err)
	}
	dial.Unconnected = true
	loose, err := client.Dial(b.ctx, dial)
	if err != nil || loose.Server != "v1" {
		t.Fatalf("%+v, %v", loose, err)
	}
	b.write("mesh.yaml", mesh("v2"))
	var res wire.Result
	b.eventually("the connected socket is ended", func() bool {
		res, err = client.Exchange(b.ctx, wire.Exchange{Handle: connected.Handle, Timeout: time.Second})
		return err != nil || res.Errno != ""
	})
	if err != nil || !strings.Contains("ECONNABORTED EDESTADDRREQ", res.Errno) {
		t.Errorf("the connected socket: %+v, %v", res, err)
	}
	if res, err := client.Exchange(b.ctx, wire.Exchange{Handle: loose.Handle}); err != nil || res.Server != "v2" || res.Peer != "10.96.0.10:53" {
		t.Errorf("the unconnected socket: %+v, %v, want it moved to v2", res, err)
	}
}
