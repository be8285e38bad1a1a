// SPDX-License-Identifier: Apache-2.0

package live

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/netns"
	"kmesh/test/node"
)

// lab is a node with enrolled clients, a pod of servers, and the worlds that are published.
type lab struct {
	t       testing.TB
	ctx     context.Context
	node    *node.Node
	rt      *bpf.Runtime
	pub     *publish.Publisher
	clients []*node.Pod // by TCX and by clsact
	servers *servers

	mu     sync.Mutex // publications
	worlds map[*world]bool
}

func newLab(t testing.TB) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 9*time.Minute)
	t.Cleanup(cancel)
	l := &lab{t: t, ctx: ctx, node: node.ForTest(t, node.Options{}), worlds: map[*world]bool{}}
	var err error
	if l.rt, err = bpf.Load(bpf.LoadOptions{BPFFS: l.node.BPFFS, PoisonHolds: true}); err != nil {
		t.Fatalf("%+v", err)
	}
	l.rt.EachNetns = l.node.EachNetns
	t.Cleanup(func() {
		for _, p := range l.node.Pods() {
			if err := l.node.DelPod(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
		l.rt.Close()
		if err := os.RemoveAll(l.node.BPFFS); err != nil {
			t.Error(err)
		}
	})
	if l.pub, err = publish.New(l.rt, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := l.publish(nil, nil); err != nil { // live, with nothing in it
		t.Fatal(err)
	}
	l.clients = []*node.Pod{l.pod(node.PodSpec{Name: "tcx", Annotations: node.Enrolled()}), l.pod(node.PodSpec{Name: "clsact"})}
	// Which the plugin takes only where there is no TCX.
	p := l.clients[1]
	if _, err := netns.New(netns.Options{BPFFS: l.node.BPFFS, RunDir: l.node.RunDir, ForceClsact: true}).Enroll(ctx, netns.Request{
		Attachment: netns.Attachment{ContainerID: p.ContainerID, Network: node.Network, IfName: node.IfName},
		Namespace:  p.Namespace, Name: p.Name, UID: p.UID, NetnsPath: p.NetnsPath, CgroupPath: p.CgroupParent,
	}); err != nil {
		t.Fatal(err)
	}
	l.servers = newServers(l.pod(node.PodSpec{Name: "servers"}))
	return l
}

func (l *lab) pod(spec node.PodSpec) *node.Pod {
	l.t.Helper()
	p, err := l.node.AddPod(l.ctx, spec)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// publish makes some worlds known to the kernel, and lets it forget others.
func (l *lab) publish(add, remove []*world) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range remove {
		delete(l.worlds, w)
	}
	for _, w := range add {
		l.worlds[w] = true
	}
	sc := mesh.Scope{Clusters: map[string]*mesh.Cluster{}}
	for w := range l.worlds {
		sc.HTTP = append(sc.HTTP, w.service)
		maps.Copy(sc.Clusters, w.clusters)
	}
	slices.SortFunc(sc.HTTP, func(a, b *mesh.Service) int { return strings.Compare(a.Name, b.Name) })
	if _, err := l.pub.Publish(l.ctx, &mesh.Snapshot{Scopes: []mesh.Scope{sc}}); err != nil {
		for _, w := range add {
			delete(l.worlds, w)
		}
		return err
	}
	for _, w := range remove {
		l.servers.give(w.taken)
	}
	return nil
}

// wantIdle fails unless all connections end, on both sides and in the kernel, once the clients have closed theirs.
func (l *lab) wantIdle() {
	l.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		var open []string
		for i := range l.rt.Flows() {
			if f := &l.rt.Flows()[i]; f.State == bpf.FlowSyn || f.State == bpf.FlowOpen || f.State == bpf.FlowClosed && f.Hold != 0 {
				open = append(open, fmt.Sprintf("flow %d: state %d pin %d flags %#x hold %d requests %d", i, f.State, f.Pin, f.Flags, f.Hold, f.Requests))
			}
		}
		conns := l.servers.open()
		if len(open) == 0 && conns == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("%d flows and %d connections of servers are still open: %.600q", len(open), conns, open)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
