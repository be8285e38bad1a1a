// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"kmesh/bpf"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
	"kmesh/netns"
	"kmesh/test/l7/gate"
	"kmesh/test/node"
)

// full says that the whole volumes are asked for.
var full = os.Getenv("KMESH_L7") == "full"

// seed of everything that is random.
var seed = func() uint64 {
	if s := os.Getenv("KMESH_L7_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			panic("KMESH_L7_SEED: " + err.Error())
		}
		return n
	}
	return rand.Uint64()
}()

func TestMain(m *testing.M) {
	flag.Parse()
	// Most rows of the matrix wait, for timers of TCP: they need no processor of their own.
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = f.Value.Set("12")
	}
	os.Exit(m.Run())
}

// mode is how the clients' packets get to Kmesh.
type mode string

const (
	direct mode = "direct" // not at all: clients connect straight to a server
	tcx    mode = "tcx"
	clsact mode = "clsact"
	// by a kmesh-helper, which the test starts; it makes its clients then
	running mode = "running"
)

const (
	nServers = 8
	nClients = 3
)

// Pods whose TCP differs from the others'.
const (
	bareClient  = 2 // no timestamps, no SACK, no window scaling
	bareServer  = 6
	smallServer = 7 // a smaller MTU
)

// bed is a node with three clients and pods for servers, and the services that are published.
type bed struct {
	t       testing.TB
	mode    mode
	small   bool              // small tables: they overflow within a short test
	sizes   map[string]uint32 // of other tables
	edition uint32
	ctx     context.Context
	node    *node.Node
	rt      *bpf.Runtime       // nil when direct
	pub     *publish.Publisher // nil when direct
	clients []*node.Pod        // enrolled, unless direct
	pods    []*node.Pod        // for servers
	gate    *gate.Gate         // at the first client
	tap     *tap               // at the first client

	ids atomic.Uint32

	mu       sync.Mutex
	services []*service
	changes  int // made to services

	publishing sync.Mutex // and rt and pub may be replaced under it
	published  int        // changes that the kernel knows
}

func newBed(t testing.TB, m mode) *bed {
	t.Helper()
	return newBedWith(t, m, false)
}

func newBedWith(t testing.TB, m mode, small bool) *bed {
	t.Helper()
	return newBedOf(t, m, small, nil)
}

func newBedOf(t testing.TB, m mode, small bool, sizes map[string]uint32) *bed {
	t.Helper()
	limit := 10 * time.Minute
	if full {
		limit = time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	b := &bed{t: t, mode: m, small: small, sizes: sizes, ctx: ctx, node: node.ForTest(t, node.Options{})}
	if m != direct && m != running {
		b.load()
		b.publish(t, func() {}) // live, with nothing in it
	}
	t.Cleanup(func() {
		for _, p := range b.node.Pods() {
			if err := b.node.DelPod(context.Background(), p); err != nil {
				t.Error(err)
			}
		}
		if b.rt != nil {
			b.rt.Close()
			if err := os.RemoveAll(b.node.BPFFS); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range nServers {
		b.pods = append(b.pods, b.pod(node.PodSpec{Name: fmt.Sprintf("e%d", i)}))
	}
	if m == running {
		return b
	}
	for i := range nClients {
		b.clients = append(b.clients, b.client(fmt.Sprintf("client%d", i)))
	}
	b.differ()
	g, err := gate.Attach(b.node, b.clients[0])
	if err != nil {
		t.Fatal(err)
	}
	b.gate = g
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// load loads the runtime, opening what is pinned already.
func (b *bed) load() {
	b.t.Helper()
	opts := bpf.LoadOptions{BPFFS: b.node.BPFFS, PoisonHolds: true, Edition: b.edition}
	if b.small {
		opts.MaxEntries = map[string]uint32{"km_flows": 256, "km_tuples": 256, "km_over": 256, "km_ended": 256, "km_legs": 1024, "km_holds": 32, "km_free_holds": 32}
	}
	if b.sizes != nil {
		opts.MaxEntries = b.sizes
	}
	var err error
	if b.rt, err = bpf.Load(opts); err != nil {
		b.t.Fatalf("%+v", err)
	}
	b.rt.EachNetns = b.node.EachNetns
	if b.pub, err = publish.New(b.rt, slog.New(slog.DiscardHandler)); err != nil {
		b.t.Fatal(err)
	}
}

// differ gives some pods another TCP.
func (b *bed) differ() {
	b.t.Helper()
	bare := map[string]string{"tcp_timestamps": "0", "tcp_sack": "0", "tcp_window_scaling": "0"}
	// Data in the SYN, without cookies (ip-sysctl.rst, tcp_fastopen), where a program asks for it.
	for p, settings := range map[*node.Pod]map[string]string{
		b.clients[0]: {"tcp_fastopen": "5"}, b.pods[0]: {"tcp_fastopen": "1538"},
		b.clients[bareClient]: bare, b.pods[bareServer]: bare,
	} {
		for name, value := range settings {
			if err := p.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644) }); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	if b.mode == clsact { // in one of the modes
		for _, p := range append(b.clients, b.pods...) {
			if err := softwareChecksums(p); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	if err := b.pods[smallServer].Do(func() error {
		l, err := netlink.LinkByName(node.IfName)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1300)
	}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) pod(spec node.PodSpec) *node.Pod {
	b.t.Helper()
	p, err := b.node.AddPod(b.ctx, spec)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// client makes a pod that is enrolled as the mode says.
func (b *bed) client(name string) *node.Pod {
	b.t.Helper()
	spec := node.PodSpec{Name: name}
	if b.mode == tcx || b.mode == running {
		spec.Annotations = node.Enrolled()
	}
	p := b.pod(spec)
	if b.mode == clsact { // which the plugin takes only where there is no TCX
		_, err := netns.New(netns.Options{BPFFS: b.node.BPFFS, RunDir: b.node.RunDir, ForceClsact: true}).Enroll(b.ctx, netns.Request{
			Attachment: netns.Attachment{ContainerID: p.ContainerID, Network: node.Network, IfName: node.IfName},
			Namespace:  p.Namespace, Name: p.Name, UID: p.UID, NetnsPath: p.NetnsPath, CgroupPath: p.CgroupParent,
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return p
}

// publish makes a change to the services and tells the kernel. A publication waits for a grace period, so those that
// rows want at the same time are made into one.
func (b *bed) publish(t testing.TB, change func()) {
	t.Helper()
	b.mu.Lock()
	change()
	b.changes++
	mine := b.changes
	b.mu.Unlock()
	if b.mode == direct {
		return
	}
	b.publishing.Lock()
	defer b.publishing.Unlock()
	if b.published >= mine {
		return // by another one, meanwhile
	}
	b.mu.Lock()
	snap, upTo := b.snapshot(), b.changes
	b.mu.Unlock()
	if _, err := b.pub.Publish(b.ctx, snap); err != nil {
		t.Errorf("publish: %v", err)
	}
	b.published = upTo
}

// snapshot is what shall be published.
func (b *bed) snapshot() *mesh.Snapshot {
	sc := mesh.Scope{Clusters: make(map[string]*mesh.Cluster)}
	for _, s := range b.services {
		sc.HTTP = append(sc.HTTP, s.mesh)
		for _, c := range s.clusters {
			sc.Clusters[c.Name] = c
		}
	}
	slices.SortFunc(sc.HTTP, func(a, b *mesh.Service) int { return strings.Compare(a.Name, b.Name) })
	return &mesh.Snapshot{Scopes: []mesh.Scope{sc}}
}

// events are the counters of the L7 path; they are those of the whole bed.
func (b *bed) events(t testing.TB) []uint64 {
	t.Helper()
	out := make([]uint64, bpf.Events)
	if b.rt == nil {
		return out
	}
	for i := range out {
		if err := b.rt.Events.Lookup(uint32(i), &out[i]); err != nil {
			t.Fatal(err)
		}
	}
	return out
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

// addrOf is a pod's address of a family.
func addrOf(p *node.Pod, v6 bool) netip.Addr {
	if v6 {
		return p.IP6
	}
	return p.IP4
}
