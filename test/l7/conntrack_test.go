// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"kmesh/test/l7/gate"
	"kmesh/test/node"
)

// strict is a node that drops what its connection tracking calls invalid, and counts it.
const strict = `
table inet strict
delete table inet strict
table inet strict {
	counter invalid {}
	counter new {}
	counter established4 {}
	counter established6 {}
	set invalid4 { type ipv4_addr . inet_service . ipv4_addr . inet_service . tcp_flag; flags dynamic; size 1000; }
	set invalid6 { type ipv6_addr . inet_service . ipv6_addr . inet_service . tcp_flag; flags dynamic; size 1000; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state invalid add @invalid4 { ip saddr . tcp sport . ip daddr . tcp dport . tcp flags }
		ct state invalid add @invalid6 { ip6 saddr . tcp sport . ip6 daddr . tcp dport . tcp flags }
		ct state invalid counter name invalid drop
		ct state new counter name new
		meta nfproto ipv4 ct state established counter name established4
		meta nfproto ipv6 ct state established counter name established6
	}
}
`

// TestConntrack: a node that follows every connection, and drops what does not fit, finds nothing to drop. Its hook
// sees the pods' packets by two ways: bridged, which br_netfilter passes to it (bridge-nf-call-iptables is 1), and
// routed from pod to pod, as many networks do (and then it is 0). Reverse paths are checked everywhere.
func TestConntrack(t *testing.T) {
	b := newBed(t, tcx)
	for _, bridged := range []bool{true, false} { // in this order: the routes do not come back
		name := map[bool]string{true: "bridged, bridge-nf 1", false: "routed, bridge-nf 0"}[bridged]
		t.Run(name, func(t *testing.T) {
			b.track(t, bridged)
			b.runMost(t, changed)
			for _, v6 := range []bool{false, true} {
				t.Run(fmt.Sprintf("switching, v6 %v", v6), func(t *testing.T) {
					s := newScene(t, b, v6, false)
					svc, e := s.numbered(5)
					s.fail(s.run(svc, load{conns: 8, requests: many(600, 20_000), perConn: 20, next: mixed(e, 100_000)}))
					s.wantClosed(e...)
				})
			}
			b.wantIdle(t)
			n := b.tracked(t)
			t.Logf("packets that the node's hook saw: %v", n)
			if n["invalid"] != 0 {
				t.Errorf("%d packets were invalid to the node: %s", n["invalid"], b.nft(t, "list", "table", "inet", "strict"))
			}
			if n["established4"] == 0 || n["established6"] == 0 || n["new"] == 0 {
				t.Errorf("the node's hook did not see the traffic: %v", n)
			}
			// That it would count: flags that no TCP sends.
			s := newScene(t, b, false, false)
			s.forge(b.clients[0], map[bool]*node.Pod{true: b.pods[0]}[bridged], forged{
				src: netip.AddrPortFrom(b.clients[0].IP4, 9), dst: netip.AddrPortFrom(b.pods[0].IP4, 9), flags: gate.SYN | gate.FIN})
			eventually(t, "invalid packets", func() uint64 { return b.tracked(t)["invalid"] }, func(n uint64) bool { return n == 1 })
		})
	}
}

// track makes the node strict.
func (b *bed) track(t *testing.T, bridged bool) {
	t.Helper()
	call := map[bool]string{true: "1", false: "0"}[bridged]
	settings := map[string]string{
		"bridge/bridge-nf-call-iptables": call, "bridge/bridge-nf-call-ip6tables": call,
		"ipv4/conf/all/rp_filter": "1", "ipv4/conf/cni0/rp_filter": "1",
		// Pods that are routed by the node shall stay so.
		"ipv4/conf/all/send_redirects": "0", "ipv4/conf/cni0/send_redirects": "0",
	}
	err := b.node.Do(func() error {
		for name, value := range settings {
			err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
			if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "bridge/") && !bridged {
				continue // without br_netfilter it is 0
			}
			if err != nil {
				return err
			}
			if is, err := os.ReadFile("/proc/sys/net/" + name); err != nil || strings.TrimSpace(string(is)) != value {
				return fmt.Errorf("%s is %q (%v), want %s", name, is, err, value)
			}
		}
		cmd := exec.CommandContext(b.ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(strict)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
	if bridged && errors.Is(err, fs.ErrNotExist) {
		t.Skipf("this kernel has no br_netfilter: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range slices.Concat(b.clients, b.pods) {
		if err := p.Do(func() error {
			for name, value := range map[string]string{"ipv4/conf/all/rp_filter": "1", "ipv6/conf/" + node.IfName + "/accept_redirects": "0"} {
				if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644); err != nil {
					return err
				}
			}
			if bridged {
				return nil
			}
			return routeByNode(p)
		}); err != nil {
			t.Fatalf("pod %s: %v", p.Name, err)
		}
	}
}

// routeByNode leaves a pod, whose namespace the thread is in, nothing but the way to the node.
func routeByNode(p *node.Pod) error {
	l, err := netlink.LinkByName(node.IfName)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Gw == nil || r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		only := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: netlink.NewIPNet(r.Gw), Scope: netlink.SCOPE_LINK}
		if r.Gw.To4() != nil {
			only.Src = net.IP(p.IP4.AsSlice())
		}
		if err := netlink.RouteAdd(only); err != nil {
			return fmt.Errorf("route to %v: %w", r.Gw, err)
		}
	}
	for _, r := range routes {
		if r.Gw != nil || r.Dst == nil {
			continue
		}
		if a, _ := netip.AddrFromSlice(r.Dst.IP); a.Unmap().IsLinkLocalUnicast() || a.IsMulticast() {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("route %v: %w", r, err)
		}
	}
	return nil
}

// tracked is what the node's hook counted, in packets.
func (b *bed) tracked(t *testing.T) map[string]uint64 {
	t.Helper()
	out := b.nft(t, "-j", "list", "counters", "table", "inet", "strict")
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	n := map[string]uint64{}
	for _, o := range list.Nftables {
		if o.Counter != nil {
			n[o.Counter.Name] = o.Counter.Packets
		}
	}
	return n
}

// nft runs it on the node.
func (b *bed) nft(t *testing.T, args ...string) (out []byte) {
	t.Helper()
	err := b.node.Do(func() (err error) {
		out, err = exec.CommandContext(b.ctx, "nft", args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	return out
}
