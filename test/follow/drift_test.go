// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"kmesh/bpf"
	"kmesh/helper/pods"
	"kmesh/netns"
	"kmesh/test/node"
)

// soon is how long a repair may take where the kernel tells that something is gone.
const soon = time.Second

// What happens to a pod right after its ADD, before it is watched, is found when it comes to be: nothing told of it, and
// no round comes.
func TestRepairsWhatHappensBeforeItWatches(t *testing.T) {
	b := newBed(t, node.Options{})
	b.start(func(o *pods.Options) { o.Every = time.Hour })
	b.pod(node.PodSpec{Name: "other", Annotations: node.Enrolled()}) // the keeper is at work
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	b.remakeCgroup(p, 0)
	took := b.eventually("the pod on its new cgroup", func() error {
		known, err := b.netns.Get(b.ctx, netns.Attachment{ContainerID: p.ContainerID, Network: node.Network, IfName: node.IfName})
		if err == nil && !known.Live() {
			err = fmt.Errorf("drift %q", known.Drift)
		}
		return err
	})
	if took > soon {
		t.Errorf("it took %v, want at most %v", took, soon)
	}
}

// What takes programs away from a pod is found and repaired: by an event where there is
// one, with the period at an hour; else within the period.
func TestRepairsDrift(t *testing.T) {
	tests := []struct {
		name   string
		every  time.Duration
		clsact bool
		spoil  func(*bed, *node.Pod)
	}{
		{"cgroup made anew", time.Hour, false, func(b *bed, p *node.Pod) {
			b.remakeCgroup(p, 0)
		}},
		{"cgroup gone for a while", time.Hour, false, func(b *bed, p *node.Pod) {
			b.remakeCgroup(p, 200*time.Millisecond)
		}},
		{"interface made anew", time.Hour, false, func(b *bed, p *node.Pod) { b.remakeInterface(p) }},
		{"filter removed in the pod", time.Hour, true, func(b *bed, p *node.Pod) {
			b.inPod(p, func(eth netlink.Link) error {
				filters, err := netlink.FilterList(eth, netlink.HANDLE_MIN_EGRESS)
				if err == nil && len(filters) != 1 {
					err = fmt.Errorf("%d filters", len(filters))
				}
				if err != nil {
					return err
				}
				return netlink.FilterDel(filters[0])
			})
		}},
		{"qdisc removed in the pod", time.Hour, true, func(b *bed, p *node.Pod) {
			b.inPod(p, func(eth netlink.Link) error {
				return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
					LinkIndex: eth.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
				}})
			})
		}},
		{"link of the cgroup detached", 300 * time.Millisecond, false, func(b *bed, p *node.Pod) {
			b.detach(b.pin(p, "connect4"))
		}},
		{"link of the interface detached", 300 * time.Millisecond, false, func(b *bed, p *node.Pod) {
			b.detach(b.pin(p, "tc_egress"))
		}},
		{"pin removed", 300 * time.Millisecond, false, func(b *bed, p *node.Pod) {
			if err := os.Remove(b.pin(p, "sock_ops")); err != nil {
				b.Fatal(err)
			}
		}},
		{"entry of the table removed", 300 * time.Millisecond, false, func(b *bed, p *node.Pod) {
			if err := bpf.ForgetPod(b.node.BPFFS, b.known(p).NetnsCookie); err != nil {
				b.Fatal(err)
			}
		}},
		{"record and filter gone", 300 * time.Millisecond, true, func(b *bed, p *node.Pod) {
			if err := os.RemoveAll(filepath.Join(b.node.RunDir, "pods")); err != nil {
				b.Fatal(err)
			}
			b.detach(b.pin(p, "connect4"))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t, node.Options{})
			b.netns = netns.New(netns.Options{BPFFS: b.node.BPFFS, RunDir: b.node.RunDir, ForceClsact: tt.clsact})
			spec := node.PodSpec{Name: "client", Annotations: node.Enrolled()}
			if tt.clsact {
				spec.Annotations = nil // it is enrolled below, as on a kernel without TCX
			}
			p := b.pod(spec)
			if tt.clsact {
				b.enrollAsPlugin(p)
			}
			b.tell(apiPod(p, node.Enrolled()))
			k := b.start(func(o *pods.Options) { o.Every = tt.every })
			b.whole(p)
			b.eventually("the keeper's first look", func() error {
				if _, ok := k.kube.View(); !ok {
					return errNotYet
				}
				return nil
			})
			tt.spoil(b, p)
			began := time.Now()
			b.event(p, pods.DriftRepaired)
			took := time.Since(began)
			t.Logf("repaired within %v", took)
			if took > soon {
				t.Errorf("it took %v, want at most %v", took, soon)
			}
			b.whole(p)
			if !b.reaches(p) {
				t.Error("the pod is not governed")
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.counted["drift_repaired"] != 1 {
				t.Errorf("counted %v, want one repair", b.counted)
			}
		})
	}
}

// Without an API server drift is repaired all the same.
func TestRepairsDriftAlone(t *testing.T) {
	b := newBed(t, node.Options{})
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	b.start(func(o *pods.Options) { o.Cluster = nil })
	b.whole(p)
	b.remakeCgroup(p, 0)
	took := b.eventually("programs on the new cgroup", func() error { return b.netns.Verify(b.ctx, b.known(p).Attachment) })
	if took > soon {
		t.Errorf("it took %v, want at most %v", took, soon)
	}
	if _, err := os.Stat(filepath.Join(b.node.StateDir, "optin.json")); err == nil {
		t.Error("a set of namespaces was written without an API server")
	}
}

// A pod that drains is repaired and goes on draining.
func TestRepairKeepsDraining(t *testing.T) {
	b := newBed(t, node.Options{})
	p := b.pod(node.PodSpec{Name: "client", Annotations: node.Enrolled()})
	web, _, err := p.Conn(b.ctx, dialWeb)
	if err != nil || web == nil {
		t.Fatal(err)
	}
	defer web.Close()
	b.tell(apiPod(p, nil))
	b.start(func(o *pods.Options) { o.Every = 300 * time.Millisecond })
	b.event(p, pods.Draining)
	b.detach(b.pin(p, "connect4"))
	b.event(p, pods.DriftRepaired)
	b.whole(p)
	if all, err := b.netns.List(b.ctx); err != nil || len(all) != 1 || !all[0].Draining {
		t.Errorf("the kernel has %+v, %v: want one pod that drains", all, err)
	}
	if b.reaches(p) {
		t.Error("what is new is governed")
	}
}

// whole waits until the pod is as it was enrolled, by the kernel's word.
func (b *bed) whole(p *node.Pod) {
	b.Helper()
	b.eventually("pod "+p.Name+" as enrolled", func() error {
		all, err := b.netns.List(b.ctx)
		if err == nil && (len(all) != 1 || !all[0].Live()) {
			err = fmt.Errorf("%+v", all)
		}
		return err
	})
}

func (b *bed) known(p *node.Pod) netns.Known {
	b.Helper()
	var found netns.Known
	b.eventually("attachment of pod "+p.Name, func() error {
		all, err := b.netns.Known(b.ctx)
		for _, k := range all {
			if k.ContainerID == p.ContainerID {
				found = k
				return err
			}
		}
		return fmt.Errorf("it is not among %+v, %v", all, err)
	})
	return found
}

// enrollAsPlugin enrols a pod with the bed's own options.
func (b *bed) enrollAsPlugin(p *node.Pod) {
	b.Helper()
	_, err := b.netns.Enroll(b.ctx, netns.Request{
		Attachment: netns.Attachment{ContainerID: p.ContainerID, Network: node.Network, IfName: node.IfName},
		Namespace:  p.Namespace, Name: p.Name, UID: p.UID, NetnsPath: p.NetnsPath, CgroupPath: p.CgroupParent,
	})
	if err != nil {
		b.Fatal(err)
	}
}

// remakeCgroup removes a pod's cgroup and makes another one of the same name.
func (b *bed) remakeCgroup(p *node.Pod, after time.Duration) {
	b.Helper()
	if err := os.Remove(p.CgroupPath); err != nil {
		b.Fatal(err)
	}
	if after > 0 {
		b.eventually("what the pod had", func() error { // the kernel has let go
			if all, err := b.netns.List(b.ctx); err != nil || len(all) == 1 && all[0].Live() {
				return fmt.Errorf("%+v, %v", all, err)
			}
			return nil
		})
		<-time.After(after) // it is gone for so long
	}
	if err := os.Mkdir(p.CgroupPath, 0o755); err != nil {
		b.Fatal(err)
	}
}

// remakeInterface removes a pod's interface, and makes another one with its addresses and
// its place on the node's bridge.
func (b *bed) remakeInterface(p *node.Pod) {
	b.Helper()
	home, err := ns.GetNS(b.node.NetnsPath)
	if err != nil {
		b.Fatal(err)
	}
	defer home.Close()
	b.inPod(p, func(eth netlink.Link) error {
		addrs, err := netlink.AddrList(eth, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteList(eth, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		if err := netlink.LinkDel(eth); err != nil {
			return err
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: node.IfName}, PeerName: "vethanew", PeerNamespace: netlink.NsFd(int(home.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if eth, err = netlink.LinkByName(node.IfName); err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(eth, &netlink.Addr{IPNet: a.IPNet}); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(eth); err != nil {
			return err
		}
		for _, r := range routes {
			if r.Gw != nil {
				if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: r.Gw, Dst: r.Dst}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	err = b.node.Do(func() error {
		bridge, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("vethanew")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(peer, bridge); err != nil {
			return err
		}
		if err := netlink.LinkSetHairpin(peer, true); err != nil {
			return err
		}
		return netlink.LinkSetUp(peer)
	})
	if err != nil {
		b.Fatal(err)
	}
}

// inPod does something with the pod's interface, as a program in it with CAP_NET_ADMIN may.
func (b *bed) inPod(p *node.Pod, f func(eth netlink.Link) error) {
	b.Helper()
	err := p.Do(func() error {
		eth, err := netlink.LinkByName(node.IfName)
		if err != nil {
			return err
		}
		return f(eth)
	})
	if err != nil {
		b.Fatal(err)
	}
}

// pin is where a pod's link at a hook is pinned.
func (b *bed) pin(p *node.Pod, hook string) string {
	b.Helper()
	k := b.known(p)
	for _, h := range bpf.CgroupHooks {
		if h.Name == hook {
			return filepath.Join(b.node.BPFFS, "cgroups", fmt.Sprint(k.Cgroup), hook)
		}
	}
	return filepath.Join(b.node.BPFFS, "pods", k.ContainerID, k.Network, k.IfName, hook)
}

// detach takes a link from where it is; its pin stays.
func (b *bed) detach(pin string) {
	b.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		b.Fatal(err)
	}
}
