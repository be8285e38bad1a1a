// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/test/node/wire"
)

// Offsets in struct bpf_sock_addr (linux/bpf.h).
const (
	offsetUserIP4  = 4
	offsetUserPort = 24
)

// rewriteAtRoot attaches, to the root of the cgroup tree, a program that sends
// connections to one address and port elsewhere: what a connect-time load balancer
// of a primary CNI does.
func (b *bed) rewriteAtRoot(from, to netip.AddrPort) {
	b.Helper()
	word := func(a netip.Addr) int32 {
		b4 := a.As4()
		return int32(binary.NativeEndian.Uint32(b4[:]))
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign_lb", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R7, asm.R6, offsetUserIP4, asm.Word),
			asm.JNE.Imm32(asm.R7, word(from.Addr()), "out"),
			asm.LoadMem(asm.R7, asm.R6, offsetUserPort, asm.Word),
			asm.JNE.Imm32(asm.R7, int32(bpf.PortWord(from.Port())), "out"),
			asm.Mov.Imm32(asm.R8, word(to.Addr())),
			asm.StoreMem(asm.R6, offsetUserIP4, asm.R8, asm.Word),
			asm.Mov.Imm32(asm.R8, int32(bpf.PortWord(to.Port()))),
			asm.StoreMem(asm.R6, offsetUserPort, asm.R8, asm.Word),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer prog.Close()
	root, err := os.Open(b.node.CgroupMount())
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(root.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
}

// TestBesideAForeignBalancer defines what happens when a connect-time balancer at
// the root of the cgroup tree has its own idea: ours runs first, on the address that
// the application gave; the other one sees what ours chose, and has the last word on
// where the packets go; the application sees the address it asked for.
func TestBesideAForeignBalancer(t *testing.T) {
	b := newBed(t)
	s := b.servers(wire.TCP, "e", 3)
	// Addresses of this test alone: the program sees every connect of the machine.
	vip := netip.MustParseAddrPort("10.96.211.1:80")
	theirs := netip.MustParseAddrPort("10.96.211.2:80")
	b.rewriteAtRoot(vip, s[1].v4)     // they claim the same VIP
	b.rewriteAtRoot(theirs, s[1].v4)  // and have one of their own
	b.rewriteAtRoot(s[0].v4, s[2].v4) // and take over one of our endpoints
	svc := func(to_ netip.AddrPort) service {
		return service{&mesh.Service{Name: "ours",
			Frontends: []mesh.Frontend{{Prefix: netip.PrefixFrom(vip.Addr(), 32), Port: vip.Port(), Protocol: mesh.TCP}},
			Clusters:  []mesh.WeightedCluster{{Cluster: "c", Weight: 1}}}, []*mesh.Cluster{to("c", mesh.Random, to_)}}
	}
	enrolled, outsider := b.pod("enrolled", true), b.pod("outsider", false)
	dial := func(a netip.AddrPort) wire.Dial { return wire.Dial{Network: wire.TCP, Addr: a.String()} }

	b.publish(svc(s[2].v4))
	if res := b.dial(enrolled, dial(vip)); res.Server != "e2" || res.Peer != vip.String() {
		t.Errorf("both claim the VIP: %+v, want our e2 and the VIP as peer", res)
	}
	if res := b.dial(outsider, dial(vip)); res.Server != "e1" {
		t.Errorf("a pod that is not enrolled: %+v, want their e1", res)
	}
	if res := b.dial(enrolled, dial(theirs)); res.Server != "e1" {
		t.Errorf("a VIP that only they know: %+v, want their e1", res)
	}
	b.publish(svc(s[0].v4))
	if res := b.dial(enrolled, dial(vip)); res.Server != "e2" || res.Peer != vip.String() {
		t.Errorf("they take over our endpoint: %+v, want their e2 and the VIP as peer", res)
	}
	if u := b.use("ours", "c"); u.Opened != 2 {
		t.Errorf("%d connections counted for our service, want 2", u.Opened)
	}
}
