// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/test/node"
)

// full says that the whole volumes are asked for.
var full = os.Getenv("KMESH_L7") == "full"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil { // inside a pod
		if err := roles[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// bed is a node with a client's pod, which is enrolled, and pods of servers, which are not.
type bed struct {
	*testing.T
	ctx    context.Context
	node   *node.Node
	dir    string
	rt     *bpf.Runtime
	client *node.Pod
	pods   map[string]*node.Pod // of servers, by name
	vips   int
	// Services, of the family v6 or not.
	guessed, local map[bool]service
	other          map[string]service // by name
	scope          mesh.Scope         // what is published
}

func newBed(t *testing.T) *bed {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	b := &bed{T: t, ctx: ctx, node: node.ForTest(t, node.Options{}), dir: t.TempDir(), pods: map[string]*node.Pod{},
		guessed: map[bool]service{}, local: map[bool]service{}, other: map[string]service{}}
	compiled := b.compile("Client.java")
	var err error
	if b.rt, err = bpf.Load(bpf.LoadOptions{BPFFS: b.node.BPFFS, PoisonHolds: true}); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		for _, p := range b.node.Pods() {
			if err := b.node.DelPod(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
		b.rt.Close()
		if err := os.RemoveAll(b.node.BPFFS); err != nil {
			t.Error(err)
		}
	})
	b.serveAll()
	b.web()
	b.opaque()
	b.publish()
	b.client = b.pod("client", node.Enrolled())
	if err := <-compiled; err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) pod(name string, annotations map[string]string) *node.Pod {
	b.Helper()
	p, err := b.node.AddPod(b.ctx, node.PodSpec{Name: name, Annotations: annotations})
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// with is the bed for a subtest.
func (b *bed) with(t *testing.T) *bed {
	sub := *b
	sub.T = t
	return &sub
}

// Families of addresses.
const (
	v4 = false
	v6 = true
)

// at is the address of a server in a pod.
func (b *bed) at(pod string, port uint16, v6 bool) netip.AddrPort {
	addr := b.pods[pod].IP4
	if v6 {
		addr = b.pods[pod].IP6
	}
	return netip.AddrPortFrom(addr, port)
}

// service is an address that clients connect to.
type service struct {
	name  string
	at    netip.AddrPort
	v6    bool
	guess string // the cluster to which a SYN goes; empty: the program answers it
}

func (s service) url(path string) string { return "http://" + s.at.String() + path }

// cluster adds a cluster of these endpoints, in turn.
func (b *bed) cluster(name string, v6 bool, endpoints ...netip.AddrPort) mesh.WeightedCluster {
	if v6 {
		name += "6"
	}
	c := &mesh.Cluster{Name: name, Policy: mesh.RoundRobin, Localities: []mesh.Locality{{}}}
	for _, e := range endpoints {
		c.Localities[0].Endpoints = append(c.Localities[0].Endpoints, mesh.Endpoint{Addr: e, Weight: 1})
	}
	if b.scope.Clusters == nil {
		b.scope.Clusters = map[string]*mesh.Cluster{}
	}
	b.scope.Clusters[name] = c
	return mesh.WeightedCluster{Cluster: name, Weight: 1}
}

// route sends what begins with a path to clusters.
func route(prefix string, to ...mesh.WeightedCluster) *mesh.Route {
	return &mesh.Route{Name: prefix, Clusters: to, Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathPrefix, Value: prefix}}}
}

// listen adds a service with these routes. A guess makes half of the routes, which no request takes, lead there; what
// is not HTTP goes there too.
func (b *bed) listen(name string, v6 bool, guess string, routes ...*mesh.Route) service {
	b.vips++
	addr := netip.AddrFrom4([4]byte{10, 96, 0, byte(b.vips)})
	if v6 {
		name += "6"
		addr = netip.MustParseAddr(fmt.Sprintf("fd96::%x", b.vips))
	}
	svc := &mesh.Service{
		Name:      name,
		Frontends: []mesh.Frontend{{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Port: 80, Protocol: mesh.TCP}},
	}
	if guess != "" {
		if v6 {
			guess += "6"
		}
		svc.Clusters = []mesh.WeightedCluster{{Cluster: guess, Weight: 1}}
		for range len(routes) {
			routes = append(routes, route("/-likely-", svc.Clusters...))
		}
	}
	svc.HTTP = &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: routes}}}
	b.scope.HTTP = append(b.scope.HTTP, svc)
	return service{name, netip.AddrPortFrom(addr, 80), v6, strings.TrimSuffix(guess, "6")}
}

func (b *bed) publish() {
	b.Helper()
	pub, err := publish.New(b.rt, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	slices.SortFunc(b.scope.HTTP, func(a, b *mesh.Service) int { return strings.Compare(a.Name, b.Name) })
	if _, err := pub.Publish(b.ctx, &mesh.Snapshot{Scopes: []mesh.Scope{b.scope}}); err != nil {
		b.Fatal(err)
	}
}

// compile begins to make a class of a source of Java's, and tells when it is there. The run time has no compiler; this
// one is Debian's own.
func (b *bed) compile(source string) <-chan error {
	b.Helper()
	done := make(chan error, 1)
	b.place(source)
	go func() {
		cmd := exec.CommandContext(b.ctx, "ecj", "-proc:none", "-17", "-d", b.dir, filepath.Join(b.dir, source))
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", cmd.Args, err, out)
		}
		done <- err
	}()
	return done
}

// eventually polls until ok, or fails with what was seen last.
func eventually[T any](t testing.TB, what string, get func() T, ok func(T) bool) T {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		v := get()
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %+v", what, v)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
