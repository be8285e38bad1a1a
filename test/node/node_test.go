// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"kmesh/test/node"
	"kmesh/test/node/wire"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func addPod(t *testing.T, n *node.Node, spec node.PodSpec) *node.Pod {
	t.Helper()
	p, err := n.AddPod(testContext(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// echo starts a naming server on a free port of both address families.
func echo(t *testing.T, p *node.Pod, network, name string) uint16 {
	t.Helper()
	at, _, err := p.Listen(testContext(t), wire.Listen{Network: network, Addr: ":0", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return at.Port()
}

func TestPodsTalk(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n := node.ForTest(t, node.Options{CNIVersion: version, NoKmesh: true})
			server := addPod(t, n, node.PodSpec{Name: "server", QoS: "guaranteed"})
			client := addPod(t, n, node.PodSpec{Name: "client"})
			tcp, udp := echo(t, server, wire.TCP, "tcp-server"), echo(t, server, wire.UDP, "udp-server")
			v4 := func(port uint16) string { return netip.AddrPortFrom(server.IP4, port).String() }
			v6 := func(port uint16) string { return netip.AddrPortFrom(server.IP6, port).String() }
			for _, c := range []struct {
				name string
				dial wire.Dial
				peer string
				from netip.Addr
				want string
			}{
				{"tcp4", wire.Dial{Network: wire.TCP, Addr: v4(tcp)}, v4(tcp), client.IP4, "tcp-server"},
				{"tcp6", wire.Dial{Network: wire.TCP, Addr: v6(tcp)}, v6(tcp), client.IP6, "tcp-server"},
				{"tcp mapped", wire.Dial{Network: wire.TCPMapped, Addr: v4(tcp)}, "[::ffff:" + server.IP4.String() + "]:" + port(v4(tcp)), client.IP4, "tcp-server"},
				{"mptcp", wire.Dial{Network: wire.MPTCP, Addr: v4(tcp)}, v4(tcp), client.IP4, "tcp-server"},
				{"udp4", wire.Dial{Network: wire.UDP, Addr: v4(udp)}, v4(udp), client.IP4, "udp-server"},
				{"udp6", wire.Dial{Network: wire.UDP, Addr: v6(udp)}, v6(udp), client.IP6, "udp-server"},
				{"udp mapped", wire.Dial{Network: wire.UDPMapped, Addr: v4(udp)}, "[::ffff:" + server.IP4.String() + "]:" + port(v4(udp)), client.IP4, "udp-server"},
				{"udp4 unconnected", wire.Dial{Network: wire.UDP, Addr: v4(udp), Unconnected: true}, v4(udp), client.IP4, "udp-server"},
				{"udp6 unconnected", wire.Dial{Network: wire.UDP, Addr: v6(udp), Unconnected: true}, v6(udp), client.IP6, "udp-server"},
			} {
				t.Run(c.name, func(t *testing.T) {
					c.dial.Keep = true
					res, err := client.Dial(testContext(t), c.dial)
					if err != nil {
						t.Fatal(err)
					}
					if res.Errno != "" || res.Server != c.want || res.Peer != c.peer {
						t.Errorf("got %+v, want server %q and peer %q", res, c.want, c.peer)
					}
					seen, err := netip.ParseAddrPort(res.Seen)
					if err != nil || seen.Addr().Unmap() != c.from {
						t.Errorf("the server saw %q (%v), want %s", res.Seen, err, c.from)
					}
					again, err := client.Exchange(testContext(t), wire.Exchange{Handle: res.Handle})
					if err != nil || again.Server != c.want || again.Local != res.Local {
						t.Errorf("second exchange: %+v, %v; the first: %+v", again, err, res)
					}
					if err := client.Hangup(testContext(t), res.Handle); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

func port(addr string) string { return addr[strings.LastIndex(addr, ":")+1:] }

func TestDialSaysWhatFailed(t *testing.T) {
	n := node.ForTest(t, node.Options{NoKmesh: true})
	server, client := addPod(t, n, node.PodSpec{Name: "server"}), addPod(t, n, node.PodSpec{Name: "client"})
	for _, c := range []struct {
		name, call, errno string
		dial              wire.Dial
	}{
		{"nobody listens", "connect", "ECONNREFUSED", wire.Dial{Network: wire.TCP, Addr: server.IP4.String() + ":9"}},
		{"no route from the node", "connect", "ENETUNREACH", wire.Dial{Network: wire.TCP, Addr: "10.96.0.1:80"}},
		{"no packet back", "recv", "ECONNREFUSED", wire.Dial{Network: wire.UDP, Addr: server.IP4.String() + ":9"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := client.Dial(testContext(t), c.dial)
			if err != nil {
				t.Fatal(err)
			}
			if res.Call != c.call || res.Errno != c.errno {
				t.Errorf("got %s %s, want %s %s", res.Call, res.Errno, c.call, c.errno)
			}
		})
	}
}

func TestDialNCounts(t *testing.T) {
	n := node.ForTest(t, node.Options{NoKmesh: true})
	server, client := addPod(t, n, node.PodSpec{Name: "server"}), addPod(t, n, node.PodSpec{Name: "client"})
	at, handle, err := server.Listen(testContext(t), wire.Listen{Network: wire.TCP, Addr: ":0", Name: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(server.IP4, at.Port()).String()
	dials := wire.DialN{Dial: wire.Dial{Network: wire.TCP, Addr: addr}, N: 500, Parallel: 4}
	got, err := client.DialN(testContext(t), dials)
	if err != nil {
		t.Fatal(err)
	}
	if got.Done != 500 || got.Servers["v1"] != 500 || got.Peers[addr] != 500 || len(got.Errnos) != 0 {
		t.Errorf("got %+v, want 500 answers of v1", got)
	}
	if err := server.Hangup(testContext(t), handle); err != nil {
		t.Fatal(err)
	}
	if got, err = client.DialN(testContext(t), dials); err != nil {
		t.Fatal(err)
	}
	if got.Errnos["connect ECONNREFUSED"] != 500 {
		t.Errorf("got %+v, want 500 refusals once the server is closed", got)
	}
}

// A program on the pod's cgroup must govern what the agent and Exec do, and only that: not the test's own threads, not
// other pods. All tests of governance stand on this.
func TestAgentIsInThePodsCgroup(t *testing.T) {
	n := node.ForTest(t, node.Options{NoKmesh: true})
	server := addPod(t, n, node.PodSpec{Name: "server"})
	governed, other := addPod(t, n, node.PodSpec{Name: "governed"}), addPod(t, n, node.PodSpec{Name: "other"})
	addr := netip.AddrPortFrom(server.IP4, echo(t, server, wire.TCP, "server")).String()

	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, // refuse
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: governed.CgroupPath, Attach: ebpf.AttachCGroupInet4Connect, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	dial := wire.Dial{Network: wire.TCP, Addr: addr}
	if res, err := governed.Dial(testContext(t), dial); err != nil || res.Errno != "EPERM" {
		t.Errorf("the governed pod's agent: %+v, %v; want EPERM", res, err)
	}
	if res, err := other.Dial(testContext(t), dial); err != nil || res.Server != "server" {
		t.Errorf("the other pod's agent: %+v, %v; want an answer", res, err)
	}
	cgroup, err := governed.Exec(testContext(t), "/bin/cat", "/proc/self/cgroup")
	if err != nil || !strings.Contains(string(cgroup), governed.CgroupParent+"/") {
		t.Errorf("a program in the pod is in %q (%v), want below %s", cgroup, err, governed.CgroupParent)
	}
	err = governed.Do(func() error {
		own, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		cmd, err := governed.Exec(testContext(t), "/bin/readlink", "/proc/self/ns/net")
		if got := strings.TrimSpace(string(cmd)); got != own {
			t.Errorf("a program in the pod is in %s (%v), Do in %s", got, err, own)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Recreate, late DEL, DEL without a namespace and loss of a pod, with nothing but the primary plugins.
func TestSandboxLives(t *testing.T) {
	n := node.ForTest(t, node.Options{NoKmesh: true})
	p := addPod(t, n, node.PodSpec{Name: "p"})
	first := p.Sandbox
	old, err := n.Recreate(testContext(t), p)
	if err != nil {
		t.Fatal(err)
	}
	if old != first || p.Sandbox == first || p.ContainerID == old.ContainerID || p.IP4 == old.IP4 {
		t.Errorf("Recreate gave %+v after %+v", p.Sandbox, old)
	}
	if err := n.DropNetns(old); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := n.DelSandbox(testContext(t), old); err != nil {
			t.Errorf("DEL without a namespace, and again: %v", err)
		}
	}
	lost := addPod(t, n, node.PodSpec{Name: "lost"})
	if err := n.LosePod(lost); err != nil {
		t.Errorf("LosePod: %v", err)
	}
	if _, err := os.Stat(lost.CgroupPath); !os.IsNotExist(err) {
		t.Errorf("the lost pod's cgroup: %v, want that it does not exist", err)
	}
}

func TestCloseFindsLeaks(t *testing.T) {
	for _, c := range []struct {
		name, want string
		leave      func(t *testing.T, n *node.Node, p *node.Pod) (undo func())
	}{
		{"process", "process ", func(t *testing.T, n *node.Node, _ *node.Pod) func() {
			stray := filepath.Join(n.CgroupRoot, "stray")
			if err := os.Mkdir(stray, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := strayProcess(t, stray)
			return func() { _ = cmd.Wait() }
		}},
		{"pin and link", "pin pods/x/", func(t *testing.T, n *node.Node, p *node.Pod) func() {
			dir := filepath.Join(n.BPFFS, "pods", "x")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			l := allow(t, p.CgroupPath)
			if err := l.Pin(filepath.Join(dir, "connect4")); err != nil {
				t.Fatal(err)
			}
			l.Close()
			return func() {}
		}},
		{"program on a pod's cgroup", "programs on the cgroup of pod p", func(t *testing.T, _ *node.Node, p *node.Pod) func() {
			l := allow(t, p.CgroupPath)
			return func() { l.Close() }
		}},
		{"descriptor of a link", "descriptor ", func(t *testing.T, n *node.Node, p *node.Pod) func() {
			dir := filepath.Join(n.BPFFS, "pods", "x")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			l := allow(t, p.CgroupPath)
			if err := l.Pin(filepath.Join(dir, "connect4")); err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		}},
		{"network namespace", "is open on it", func(t *testing.T, _ *node.Node, p *node.Pod) func() {
			f, err := os.Open(p.NetnsPath)
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		}},
		{"interface", "network interface stray0", func(t *testing.T, n *node.Node, _ *node.Pod) func() {
			addVeth(t, n, "stray0")
			return func() {}
		}},
		{"cgroup", "cgroup ", func(t *testing.T, n *node.Node, _ *node.Pod) func() {
			if err := os.MkdirAll(filepath.Join(n.CgroupRoot, "kubepods", "podx"), 0o755); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for what does not go away
			n, err := node.New(testContext(t), node.Options{NoKmesh: true})
			if err != nil {
				t.Fatal(err)
			}
			undo := c.leave(t, n, addPod(t, n, node.PodSpec{Name: "p"}))
			// Our own deadline ends the wait for things to go.
			ctx, cancel := context.WithTimeout(testContext(t), 3*time.Second)
			defer cancel()
			report, err := n.Close(ctx)
			undo()
			if err == nil || !strings.Contains(strings.Join(report.Left, "\n"), c.want) {
				t.Errorf("Close found %q (%v), want something with %q", report.Left, err, c.want)
			}
			if !strings.Contains(report.String(), c.want) {
				t.Errorf("the report %q does not tell", report)
			}
		})
	}
}

// allow attaches a program that changes nothing.
func allow(t *testing.T, cgroup string) link.Link {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupInet4Connect, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
