// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

const vip = "10.96.0.10:80"

// bed is a node with two servers, v1 and v2, and a directory of xDS files.
type bed struct {
	*testing.T
	ctx    context.Context
	node   *node.Node
	xds    string
	v1, v2 netip.AddrPort
}

func newBed(t *testing.T) *bed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	b := &bed{T: t, ctx: ctx, node: node.ForTest(t, node.Options{}), xds: t.TempDir()}
	b.v1, b.v2 = b.server("v1"), b.server("v2")
	return b
}

func (b *bed) server(name string) netip.AddrPort {
	b.Helper()
	p, err := b.node.AddPod(b.ctx, node.PodSpec{Name: name})
	if err != nil {
		b.Fatal(err)
	}
	at, _, err := p.Listen(b.ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: name})
	if err != nil {
		b.Fatal(err)
	}
	return netip.AddrPortFrom(p.IP4, at.Port())
}

func (b *bed) client(name string) *node.Pod {
	b.Helper()
	p, err := b.node.AddPod(b.ctx, node.PodSpec{Name: name, Annotations: node.Enrolled()})
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// meshOf is the mesh of the tests: one VIP over v1 and v2.
func (b *bed) meshOf(weight1, weight2 int) string {
	return meshfile.Listener("echo", netip.MustParseAddrPort(vip), meshfile.Share{Cluster: "v1", Weight: weight1}, meshfile.Share{Cluster: "v2", Weight: weight2}) +
		meshfile.Cluster("v1", b.v1) + meshfile.Cluster("v2", b.v2)
}

// write replaces a file of the directory by an atomic rename.
func (b *bed) write(name, resources string) {
	b.Helper()
	if err := meshfile.Write(b.xds, name, resources); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) start() *node.Helper {
	b.Helper()
	h, err := b.node.StartHelper(b.ctx, "--xds-dir", b.xds)
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// only fails unless all of n new connections to the VIP reach one server.
func (b *bed) only(p *node.Pod, server string, n int) {
	b.Helper()
	c := b.dialN(p, n)
	if c.Servers[server] != n || len(c.Errnos) > 0 {
		b.Fatalf("%d connections reached %v with errors %v, want all at %s", n, c.Servers, c.Errnos, server)
	}
}

func (b *bed) dialN(p *node.Pod, n int) wire.Counts {
	b.Helper()
	c, err := p.DialN(b.ctx, wire.DialN{N: n, Dial: wire.Dial{Network: wire.TCP, Addr: vip}})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// until polls until the VIP leads to one server, and returns how long it took.
func (b *bed) until(p *node.Pod, server string) time.Duration {
	b.Helper()
	began := time.Now()
	for {
		if c := b.dialN(p, 1); c.Servers[server] == 1 {
			return time.Since(began)
		} else if time.Since(began) > 10*time.Second {
			b.Fatalf("the VIP leads to %v (%v), want %s", c.Servers, c.Errnos, server)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// kept is a connection that a test holds open.
type kept struct {
	b      *bed
	pod    *node.Pod
	handle uint64
	server string
}

func (b *bed) keep(p *node.Pod) kept {
	b.Helper()
	res, err := p.Dial(b.ctx, wire.Dial{Network: wire.TCP, Addr: vip, Keep: true})
	if err != nil || res.Errno != "" {
		b.Fatalf("%+v, %v", res, err)
	}
	return kept{b, p, res.Handle, res.Server}
}

// works fails unless the connection still answers, from the same server, as the VIP.
func (k kept) works(when string) {
	k.b.Helper()
	res, err := k.pod.Exchange(k.b.ctx, wire.Exchange{Handle: k.handle})
	if err != nil || res.Server != k.server || res.Peer != vip {
		k.b.Errorf("%s: the open connection answers %+v, %v", when, res, err)
	}
}

// ctl runs kmeshctl -o json and decodes what it prints.
func (b *bed) ctl(command string) map[string]any {
	b.Helper()
	out, err := b.node.Kmeshctl(b.ctx, command, "-o", "json")
	if err != nil {
		b.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(out, &v); err != nil {
		b.Fatalf("kmeshctl %s -o json: %v in %s", command, err, out)
	}
	return v
}

// eventually polls until ok or fails.
func (b *bed) eventually(what string, ok func() bool) {
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within 10 s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
