// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/bpf"
	"kmesh/test/control"
	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// badControl: the control plane in every bad state. What was last good serves on, and pods are enrolled.
func badControl(t *trial) {
	b := t.bed(node.Options{})
	b.serve()
	s := control.New(b.Do)
	t.must(s.Start())
	t.cleanup(s.Stop)
	echo := control.Service{Name: "echo", At: netip.MustParseAddrPort(vip), Endpoint: netip.AddrPortFrom(b.server.IP4, 8080)}
	t.must(s.Serve(echo))
	_, err := b.StartHelper(t.ctx, "--xds-server", control.Addr, "--node-id", control.NodeID)
	t.must(err)
	b.warm()
	start := b.holdings()
	client, err := b.optedIn()
	t.must(err)
	n := t.of(40, 4)
	pods := func(when string) {
		t.each(n, 2, func(i int) {
			p, err := b.optedIn()
			if err != nil {
				t.claim("ADD is unaffected", false, "%s: %v", when, err)
			}
			b.del(p)
			if i%10 == 0 {
				b.bystander()
			}
		})
		c, err := client.DialN(t.ctx, wire.DialN{N: 50, Dial: wire.Dial{Network: wire.TCP, Addr: vip}})
		if err != nil || c.Servers["server"] != 50 {
			t.claim("the last good serves on", false, "%s: %+v, %v", when, c, err)
		}
	}
	pods("as it should be")
	s.Stop()
	pods("down")
	t.must(s.Start())

	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		defer t.recovered()
		flaps := 0
		for {
			select {
			case <-stop:
				stopped <- flaps
				return
			case <-time.After(100 * time.Millisecond):
			}
			s.Stop()
			flaps++
			if err := s.Start(); err != nil {
				t.fault(err)
			}
		}
	}()
	pods("flapping")
	close(stop)
	t.note("the server went down and came back %d times", <-stopped)

	t.must(s.Garble(echo))
	_, err = t.until(settleLimit, func() error {
		out, err := b.Kmeshctl(t.ctx, "status", "-o", "json")
		if err == nil && !strings.Contains(string(out), "tcp_proxy") && !strings.Contains(string(out), "not an address") {
			err = fmt.Errorf("status says %s", out)
		}
		return err
	})
	t.claim("garbage is named in the status", err == nil, "%v", err)
	pods("garbage")

	many := []control.Service{echo}
	for i := range t.of(5000, 500) {
		addr := netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)})
		many = append(many, control.Service{Name: fmt.Sprintf("svc%d", i), At: netip.AddrPortFrom(addr, 80), Endpoint: echo.Endpoint})
	}
	began := time.Now()
	t.must(s.Serve(many...))
	last := many[len(many)-1].At.String()
	_, err = t.until(time.Minute, func() error {
		res, err := client.Dial(t.ctx, wire.Dial{Network: wire.TCP, Addr: last, Timeout: time.Second})
		if err == nil && res.Server != "server" {
			err = fmt.Errorf("the last of %d services: %+v", len(many), res)
		}
		return err
	})
	t.claim(fmt.Sprintf("%d services are taken", len(many)), err == nil, "%v, after %s", err, ms(time.Since(began)))
	pods("huge")
	t.must(s.Serve(echo))
	pods("as before")
	b.del(client)
	b.settled(start)
	t.claim("ADD is unaffected, and the last good serves on", true, "%d ADDs, %d connections", t.res.n, 6*50)
}

// fullMaps: tables that are too small for what is asked of them.
func fullMaps(t *trial) {
	b := t.bed(node.Options{})
	const podsFit, servicesFit = 8, 4
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: b.BPFFS, MaxEntries: map[string]uint32{"km_pods": podsFit, "km_services": servicesFit, "km_frontends": servicesFit}})
	t.must(err)
	t.must(rt.Close())
	b.serve()
	h := b.start()
	b.warm()
	start := b.holdings()
	for range t.of(4, 1) {
		pods := b.crowd(podsFit)
		for range versions {
			p := b.prepare(true)
			err := b.add(p)
			var own *types.Error
			if !errors.As(err, &own) || !strings.Contains(own.Msg, "km_pods") || !strings.Contains(own.Msg, fmt.Sprint(podsFit)) {
				t.claim("a full table of pods is named, with its size", false, "%s: %v", p.CNIVersion, err)
			}
			b.gone(p, "ADD with a full table")
			b.bystander()
			b.del(p)
		}
		for _, p := range pods {
			if err := b.governed(p); err != nil {
				t.claim("the others are unaffected", false, "%s: %v", p.Name, err)
			}
		}
		b.del(pods[0])
		p, err := b.optedIn()
		t.claim("there is room again after a DEL", err == nil, "%v", err)
		for _, p := range append(pods[1:], p) {
			b.del(p)
		}
	}
	body, err := b.Get(t.ctx, "/metrics")
	t.must(err)
	t.claim("the size is a figure", strings.Contains(body, fmt.Sprintf(`kmesh_map_capacity{map="km_pods"} %d`, podsFit)), "kmesh_map_capacity of km_pods")

	b.tooManyServices(h, servicesFit)
	b.settled(start)
}

// tooManyServices: a mesh that does not fit. The last good serves on, and the helper says so.
func (b *bed) tooManyServices(h *node.Helper, fit int) {
	t := b.t
	client, err := b.optedIn()
	t.must(err)
	served := func(when string) {
		c, err := client.DialN(t.ctx, wire.DialN{N: 20, Dial: wire.Dial{Network: wire.TCP, Addr: vip}})
		t.claim("the last good serves on, "+when, err == nil && c.Servers["server"] == 20, "%+v, %v", c, err)
	}
	served("before")
	at := netip.AddrPortFrom(b.server.IP4, 8080)
	mesh := meshfile.Listener("echo", netip.MustParseAddrPort(vip), meshfile.Share{Cluster: "echo", Weight: 1}) + meshfile.Cluster("echo", at)
	good := mesh
	for i := range 3 * fit {
		mesh += meshfile.Listener(fmt.Sprintf("more%d", i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), 80), meshfile.Share{Cluster: "echo", Weight: 1})
	}
	t.must(meshfile.Write(b.xds, "mesh.yaml", mesh))
	said := ""
	_, err = t.until(settleLimit, func() error {
		out, err := b.Kmeshctl(t.ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		var st map[string]any
		if err := json.Unmarshal(out, &st); err != nil {
			return err
		}
		if said = fmt.Sprint(st["problems"], st["config"]); !strings.Contains(said, "full") && !strings.Contains(said, "km_") {
			return errors.New(said)
		}
		return nil
	})
	t.claim("a full table of services is named in the status", err == nil, "%.300s", said)
	served("while it does not fit")
	b.bystander()
	p, err := b.optedIn()
	t.claim("ADD is unaffected", err == nil, "%v", err)
	b.del(p)
	select {
	case <-h.Done():
		t.claim("the helper does not crash", false, "it ended: %v", h.Wait())
	default:
		t.claim("the helper does not crash", true, "it runs")
	}
	t.must(meshfile.Write(b.xds, "mesh.yaml", good))
	served("when it fits again")
	b.del(client)
}
