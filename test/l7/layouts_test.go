// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types"

	"kmesh/bpf"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// The services of a mesh that a real helper reads from files.
var (
	shopVIP = netip.MustParseAddrPort("10.96.1.1:80") // by request
	bindVIP = netip.MustParseAddrPort("10.96.1.1:81") // by connection
)

// fleet is a node whose helper and plugin are updated while there is traffic.
type fleet struct {
	*scene
	xds      string
	svc      *service
	servers  []*server
	helper   *node.Helper
	versions map[string]string // where the programs of each are
	asked    int               // requests beside those of the loads
}

// The versions: today's, the same with other programs, and one with another layout.
const (
	today   = "today"
	other   = "other programs"
	another = "another layout"
)

func newFleet(t *testing.T) *fleet {
	t.Helper()
	b := newBed(t, running)
	f := &fleet{scene: newScene(t, b, false, false), xds: t.TempDir(), versions: make(map[string]string)}
	var errs [3]error
	f.versions[today], errs[0] = node.Programs(b.ctx, "kmesh-helper", "kmesh-cni")
	f.versions[other], errs[1] = node.Version(b.ctx, 0, 1, "kmesh-helper")
	f.versions[another], errs[2] = node.Version(b.ctx, int(bpf.ABI)+1, 2, "kmesh-helper", "kmesh-cni")
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	f.servers = f.https(3)
	f.svc = &service{s: f.scene, at: shopVIP}
	f.write()
	f.node.UsePlugin(f.versions[today])
	f.start(today)
	b.clients = append(b.clients, b.client("client0"))
	return f
}

// write writes the mesh: /0 to /2 lead to a server each, and so does what is bound at connect.
func (f *fleet) write() {
	f.Helper()
	var routes, clusters strings.Builder
	for i, e := range f.servers {
		fmt.Fprintf(&routes, "            - {match: {prefix: /%d}, route: {cluster: e%d}}\n", i, i)
		clusters.WriteString(staticCluster(fmt.Sprintf("e%d", i), e.addr(false)))
	}
	at, _, err := f.pods[0].Listen(f.ctx, wire.Listen{Network: wire.TCP, Addr: ":9000", Name: "bound"})
	if err != nil {
		f.Fatal(err)
	}
	clusters.WriteString(staticCluster("bound", netip.AddrPortFrom(f.pods[0].IP4, at.Port())))
	text := fmt.Sprintf(`version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: shop
  address: {socket_address: {address: %s, port_value: %d}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: shop
        http_filters:
        - name: envoy.filters.http.router
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
        route_config:
          name: shop
          virtual_hosts:
          - name: all
            domains: ["*"]
            routes:
%s            - {match: {prefix: /}, route: {cluster: e0}}
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: bound
  address: {socket_address: {address: %s, port_value: %d}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: bound
        cluster: bound
%s`, shopVIP.Addr(), shopVIP.Port(), routes.String(), bindVIP.Addr(), bindVIP.Port(), clusters.String())
	if err := os.WriteFile(filepath.Join(f.xds, "mesh.yaml"), []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
}

func staticCluster(name string, at netip.AddrPort) string {
	return fmt.Sprintf(`- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: %s
  type: STATIC
  load_assignment:
    cluster_name: %s
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: %s, port_value: %d}}}
`, name, name, at.Addr(), at.Port())
}

// start starts a version's helper, which looks at its pods all the time.
func (f *fleet) start(version string) {
	f.Helper()
	f.node.UseHelper(f.versions[version])
	h, err := f.node.StartHelper(f.ctx, "--xds-dir", f.xds, "--sweep-every", "300ms")
	if err != nil {
		f.Fatalf("%s: %v", version, err)
	}
	f.Logf("%s: ready in %v", version, h.ReadyIn.Round(time.Millisecond))
	f.helper = h
}

// update kills the helper and starts another version's.
func (f *fleet) update(version string) {
	f.Helper()
	f.helper.Kill9()
	f.start(version)
}

// held are connections that are kept while everything is updated.
type held struct {
	f     *fleet
	what  string
	shop  *conn
	bound uint64
}

func (f *fleet) hold(what string) *held {
	f.Helper()
	h := &held{f: f, what: what, shop: f.dial(shopVIP)}
	res, err := f.clients[0].Dial(f.ctx, wire.Dial{Network: wire.TCP, Addr: bindVIP.String(), Keep: true})
	if err != nil || res.Errno != "" {
		f.Fatalf("%+v, %v", res, err)
	}
	h.bound = res.Handle
	h.work("new")
	return h
}

// work uses them: another endpoint for every request, the address that was meant.
func (h *held) work(when string) {
	h.f.Helper()
	for i, e := range h.f.servers {
		q := request{path: fmt.Sprintf("/%d", i), do: do{Size: 3000, Seed: uint64(i)}}
		rep, err := h.shop.exchange(q, patience)
		h.f.asked++
		if err == nil {
			err = q.faults(rep, e.name)
		}
		if err != nil {
			h.f.Fatalf("connection %s, %s: %v", h.what, when, err)
		}
	}
	res, err := h.f.clients[0].Exchange(h.f.ctx, wire.Exchange{Handle: h.bound})
	if err != nil || res.Server != "bound" || res.Peer != bindVIP.String() {
		h.f.Errorf("bound connection %s, %s: %+v, %v", h.what, when, res, err)
	}
}

func (h *held) close() {
	h.f.Helper()
	h.shop.Close()
	if err := h.f.clients[0].Hangup(h.f.ctx, h.bound); err != nil {
		h.f.Error(err)
	}
}

// TestLayouts: a real helper is killed, started again, and updated, to other programs of
// the same layout, to another layout, and back, under load: no request fails, none goes to
// a wrong endpoint, and connections outlive all of it.
//
// The other layout differs in its number alone, and so in every map and program; what its
// structures hold is the same. That the two never read each other's is what is shown.
func TestLayouts(t *testing.T) {
	f := newFleet(t)
	first := f.hold("of the first helper")
	var kept []*held
	var done int
	check := func(when string) {
		f.Helper()
		for _, h := range append(kept, first) {
			h.work(when)
		}
	}
	f.duringAllCounted(&done, threeLoads(f.servers), func() {
		for round, end := 0, time.Now().Add(spell(time.Second)); round == 0 || time.Now().Before(end); round++ {
			began := time.Now()
			f.update(today)
			check("helper killed and started")
			f.update(other)
			check("other programs")

			f.node.UsePlugin(f.versions[another]) // first the plugin, then the helper
			if round == 0 {
				_, err := f.node.AddPod(f.ctx, node.PodSpec{Name: "early", Annotations: node.Enrolled()})
				if e := (*cnitypes.Error)(nil); !errors.As(err, &e) || e.Code != 110 || !strings.Contains(e.Msg, "same version of both") {
					t.Errorf("a pod between the two halves of an update: %v, want code 110", err)
				}
			}
			f.update(another)
			kept = append(kept, f.hold(fmt.Sprintf("of round %d", round)))
			check("another layout")
			f.update(another)
			check("another layout, helper killed and started")

			f.node.UsePlugin(f.versions[today])
			f.update(today)
			check("back")
			t.Logf("round %d: 5 helpers in %v", round, time.Since(began).Round(time.Millisecond))
		}
	})
	for _, h := range append(kept, first) {
		h.close()
	}
	f.drained()
	if n := f.counted(); n != done+f.asked {
		t.Errorf("%d requests were counted, %d were made", n, done+f.asked)
	}
	// The rest serves connections that were bound at connect, in pods of that time.
	if err := f.node.DelPod(f.ctx, f.clients[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "layouts", f.layouts, func(all []string) bool { return len(all) == 1 })
}

// duringAllCounted is duringAll that adds up the requests that were answered.
func (f *fleet) duringAllCounted(done *int, loads []load, during func()) {
	f.Helper()
	stop, bound := make(chan struct{}), make(chan int)
	go func() { bound <- f.bind(stop) }()
	for _, t := range f.duringAll(f.svc, loads, during) {
		*done += t.done
	}
	close(stop)
	f.Logf("and %d connections that were bound at connect", <-bound)
}

// bind connects to the service that is bound at connect, until stop.
func (f *fleet) bind(stop chan struct{}) (n int) {
	for {
		select {
		case <-stop:
			return n
		default:
		}
		c, err := f.clients[0].DialN(f.ctx, wire.DialN{N: 20, Dial: wire.Dial{Network: wire.TCP, Addr: bindVIP.String()}})
		n += c.Servers["bound"]
		if err != nil || len(c.Errnos) != 0 || c.Servers["bound"] != 20 || c.Peers[bindVIP.String()] != 20 {
			f.Errorf("connections that are bound at connect: %+v, %v", c, err)
			return n
		}
	}
}

// layouts are the folders of layouts that are pinned.
func (f *fleet) layouts() []string {
	f.Helper()
	all, err := filepath.Glob(filepath.Join(f.node.BPFFS, "v*"))
	if err != nil {
		f.Fatal(err)
	}
	return all
}

// drained waits until one layout is left that has flows.
func (f *fleet) drained() {
	f.Helper()
	eventually(f.T, "layouts with programs for flows", func() []string {
		all, err := filepath.Glob(filepath.Join(f.node.BPFFS, "v*", "progs", "tc_egress"))
		if err != nil {
			f.Fatal(err)
		}
		return all
	}, func(all []string) bool { return len(all) == 1 })
}

// counted is the number of requests in /metrics.
func (f *fleet) counted() int {
	f.Helper()
	body, err := f.node.Get(f.ctx, "/metrics")
	if err != nil {
		f.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "istio_requests_total{") {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &v); err != nil {
				f.Fatal(err)
			}
			sum += v
		}
	}
	return int(sum)
}
