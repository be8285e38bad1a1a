// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/helper/scopes"
	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// inProcess is the way from the server to the maps without a node: for profiles (-cpuprofile, -memprofile), which
// have the server's share in them too.
type inProcess struct {
	world  world
	server *server
	events chan *mesh.Snapshot
	ends   []func()
}

// stop ends it; the next one can begin.
func (p *inProcess) stop() {
	for _, end := range slices.Backward(p.ends) {
		end()
	}
	p.ends = nil
}

func startInProcess(b *testing.B, services int) *inProcess {
	b.Helper()
	p := &inProcess{world: world{services: services, server: netip.MustParseAddr("10.9.9.9")}, events: make(chan *mesh.Snapshot, 16)}
	b.Cleanup(p.stop)
	dir := fmt.Sprintf("/sys/fs/bpf/kmesh_scale_%d_%d", os.Getpid(), time.Now().UnixNano())
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: dir})
	if err != nil {
		b.Fatal(err)
	}
	p.ends = append(p.ends, func() {
		rt.Close()
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	log := slog.New(slog.DiscardHandler)
	pub, err := publish.New(rt, log)
	if err != nil {
		b.Fatal(err)
	}
	p.server = newServer(func(*discoveryv3.DeltaDiscoveryRequest) string { return "view-0" }, []string{"view-0"})
	listener, err := p.world.listener()
	if err != nil {
		b.Fatal(err)
	}
	p.server.load("view-0", p.world.clusters(), p.world.assignments(), listener, p.world.routes(400))
	if err := p.server.start(func(f func() error) error { return f() }); err != nil {
		b.Fatal(err)
	}
	p.ends = append(p.ends, p.server.grpc.Stop)
	m := scopes.New(scopes.Options{
		Default: func() (xds.Source, error) {
			return xds.NewServer(xds.ServerOptions{Targets: []string{adsAddr}, Node: &corev3.Node{Id: nodeID}, Logger: log})
		},
		Pods:      func(context.Context) ([]scopes.Pod, bool) { return nil, true },
		Installed: pub.ScopeIDs, Name: publish.ScopeName, Assign: func(uint64, uint32) error { return nil },
		Publish: func(ctx context.Context, s *mesh.Snapshot) error {
			_, err := pub.Publish(ctx, s)
			if err == nil {
				p.events <- s
			}
			return err
		},
		Store: snapshot.Options{Logger: log}, Resolve: func([]mesh.Lookup) {},
		StateDir: b.TempDir(), KeepLastGood: true, Log: log,
	})
	ctx, stop := context.WithCancel(context.Background())
	var ended atomic.Bool
	go func() {
		if err := m.Run(ctx); err != nil {
			panic(err)
		}
		ended.Store(true)
	}()
	p.ends = append(p.ends, func() {
		stop()
		for !ended.Load() {
			time.Sleep(time.Millisecond)
		}
	})
	return p
}

// await returns when a snapshot with as many clusters is in the maps.
func (p *inProcess) await(b *testing.B) {
	b.Helper()
	select {
	case s := <-p.events:
		if got := len(s.Scopes[0].Clusters); got < p.world.services {
			b.Fatalf("%d clusters", got)
		}
	case <-time.After(patience):
		b.Fatal("no snapshot")
	}
}

const inProcessServices = 10_000

func reportHeap(b *testing.B) {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
}

// BenchmarkCold is a start up to the first configuration in the maps.
func BenchmarkCold(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		p := startInProcess(b, inProcessServices)
		b.StartTimer()
		p.await(b)
		b.StopTimer()
		reportHeap(b)
		p.stop()
		b.StartTimer()
	}
}

// BenchmarkRouteChange is one virtual host of 10,000 that changes.
func BenchmarkRouteChange(b *testing.B) {
	p := startInProcess(b, inProcessServices)
	p.await(b)
	rc := p.world.routes(0)
	for n := 1; b.Loop(); n++ {
		if err := p.server.cache("view-0", resourcev3.RouteType).UpdateResource(routesName, withStatus(rc, statusOf(0, n))); err != nil {
			b.Fatal(err)
		}
		p.await(b)
	}
}

// BenchmarkEndpointChange is one endpoint of 100,000 that changes.
func BenchmarkEndpointChange(b *testing.B) {
	p := startInProcess(b, inProcessServices)
	p.await(b)
	for n := 1; b.Loop(); n++ {
		i := firstFar + n%(inProcessServices-firstFar)
		at := p.world.endpoints(i)
		at[0] = changedAddr(n)
		if err := p.server.cache("view-0", resourcev3.EndpointType).UpdateResource(clusterOf(i), assignment(i, at)); err != nil {
			b.Fatal(err)
		}
		p.await(b)
	}
}
