// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// res is a resource as a server would deliver it.
func res(t testing.TB, m proto.Message, text string) xds.Resource {
	t.Helper()
	raw, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(raw, m); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return given(t, m)
}

// given is the same for a message that is there already.
func given(t testing.TB, m proto.Message) xds.Resource {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	r := xds.Resource{Message: m, Hash: sha256.Sum256(data), Source: "server", Version: "1"}
	switch m := m.(type) {
	case *listenerv3.Listener:
		r.Name = m.GetName()
	case *clusterv3.Cluster:
		r.Name = m.GetName()
	case *endpointv3.ClusterLoadAssignment:
		r.Name = m.GetClusterName()
	case *routev3.RouteConfiguration:
		r.Name = m.GetName()
	}
	return r
}

func lis(t testing.TB, name, addr string, clusters ...string) xds.Resource {
	text := fmt.Sprintf("name: '%s'\naddress: {socket_address: {address: %s, port_value: 80}}\nfilter_chains: [{filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, weighted_clusters: {clusters: [", name, addr)
	for _, c := range clusters {
		text += "{name: " + c + ", weight: 1}, "
	}
	return res(t, &listenerv3.Listener{}, text+"]}}}]}]")
}

func eds(t testing.TB, name string) xds.Resource {
	return res(t, &clusterv3.Cluster{}, "{name: "+name+", type: EDS}")
}

func static(t testing.TB, name string, port int) xds.Resource {
	return res(t, &clusterv3.Cluster{}, fmt.Sprintf("{name: %s, type: STATIC, load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.9.9.9, port_value: %d}}}}]}]}}", name, name, port))
}

func cla(t testing.TB, name string, ports ...int) xds.Resource {
	text := "cluster_name: " + name + "\nendpoints: [{lb_endpoints: ["
	for _, p := range ports {
		text += fmt.Sprintf("{endpoint: {address: {socket_address: {address: 10.1.1.1, port_value: %d}}}}, ", p)
	}
	return res(t, &endpointv3.ClusterLoadAssignment{}, text+"]}]")
}

func listeners(r ...xds.Resource) xds.Update {
	return xds.Update{Type: xds.ListenerType, Resources: r, Complete: true}
}

func clusters(r ...xds.Resource) xds.Update {
	return xds.Update{Type: xds.ClusterType, Resources: r, Complete: true}
}

func assignments(r ...xds.Resource) xds.Update {
	return xds.Update{Type: xds.AssignmentType, Resources: r}
}

// text writes a snapshot: services, what they lead to, endpoints.
func text(s *mesh.Snapshot) string {
	if s == nil {
		return "-"
	}
	scope := s.Scopes[0]
	var out []string
	for _, svc := range slices.Concat(scope.Services, scope.HTTP) {
		one := svc.Name + "@"
		if slices.Contains(scope.HTTP, svc) {
			one = "http:" + one
		}
		for i, f := range svc.Frontends {
			if i > 0 {
				one += ","
			}
			one += f.Prefix.Addr().String()
		}
		var names []string
		shown := *svc
		if svc.HTTP != nil {
			shown.Clusters = nil // the routes have them
		}
		clustersOf(&shown, func(name string) { names = append(names, name) })
		for _, name := range names {
			c := scope.Clusters[name]
			one += ">" + name
			switch {
			case c == nil:
				one += "(MISSING)"
			default:
				var ports []string
				for _, l := range c.Localities {
					for _, e := range l.Endpoints {
						ports = append(ports, fmt.Sprint(e.Addr.Port()))
					}
				}
				one += "(" + strings.Join(ports, ",") + ")"
			}
		}
		out = append(out, one)
	}
	return strings.Join(out, " ")
}

// bench is a store that a test steps by hand.
type bench struct {
	*Store
	t    *testing.T
	last *mesh.Snapshot
}

func newBench(t *testing.T, o Options) *bench {
	o.Logger = slog.New(slog.DiscardHandler)
	return &bench{Store: New(o), t: t}
}

// apply delivers and builds; it returns the snapshot as text, "=" if there is none.
func (b *bench) apply(updates ...xds.Update) string {
	b.t.Helper()
	if err := b.Apply(context.Background(), updates...); err != nil {
		b.t.Fatalf("rejected: %v", err)
	}
	return b.built()
}

func (b *bench) built() string {
	b.t.Helper()
	snap, _ := b.step()
	if snap == nil {
		return "="
	}
	if b.last != nil && snap.Version <= b.last.Version {
		b.t.Errorf("version %d after %d", snap.Version, b.last.Version)
	}
	b.last = snap
	return text(snap)
}

func (b *bench) want(got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// problem returns the problems as text.
func (b *bench) problem() string {
	var out []string
	for _, p := range b.Status().Problems {
		out = append(out, p.Error())
	}
	return strings.Join(out, "\n")
}

func (b *bench) state(typ, name string) State {
	for _, r := range b.Status().Resources {
		if r.Type == typ && r.Name == name {
			return r.State
		}
	}
	return ""
}

func TestWarming(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(eds(t, "a"), eds(t, "b"))), "=")
	if got := b.Wanted(xds.AssignmentType); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("wanted %q", got)
	}
	b.want(b.apply(listeners(lis(t, "l", "10.0.0.1", "a", "b"))), "=")
	if s := b.Status(); !strings.Contains(s.Holding, `"l"`) || b.state("Listener", "l") != Warming || b.state("Cluster", "a") != Warming {
		t.Errorf("status %+v", s)
	}
	b.want(b.apply(assignments(cla(t, "a", 1))), "=")
	b.want(b.apply(assignments(cla(t, "b", 2))), "l@10.0.0.1>a(1)>b(2)")
	if b.state("Listener", "l") != Live || b.state("Cluster", "a") != Live || b.state("ClusterLoadAssignment", "a") != Live || b.Status().Holding != "" {
		t.Errorf("status %+v", b.Status())
	}
	// A new listener waits alone; endpoints of the others flow on.
	b.want(b.apply(clusters(eds(t, "a"), eds(t, "b"), eds(t, "c")), listeners(lis(t, "l", "10.0.0.1", "a", "b"), lis(t, "m", "10.0.0.2", "c"))), "=")
	b.want(b.apply(assignments(cla(t, "a", 1, 3))), "l@10.0.0.1>a(1,3)>b(2)")
	// A listener that is changed to a cluster which warms keeps its old version.
	b.want(b.apply(listeners(lis(t, "l", "10.0.0.1", "c"), lis(t, "m", "10.0.0.2", "c"))), "=")
	if b.state("Listener", "l") != Warming {
		t.Errorf("state %s", b.state("Listener", "l"))
	}
	b.want(b.apply(assignments(cla(t, "c", 9))), "l@10.0.0.1>c(9) m@10.0.0.2>c(9)")
	if b.problem() != "" {
		t.Errorf("problems: %s", b.problem())
	}
}

func TestAbsentAssignment(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(eds(t, "a")), listeners(lis(t, "l", "10.0.0.1", "a"))), "=")
	b.Absent(xds.AssignmentType, []string{"a", "nobody"})
	b.want(b.built(), "l@10.0.0.1>a()")
	if !strings.Contains(b.problem(), `no ClusterLoadAssignment "a"`) {
		t.Errorf("problems: %s", b.problem())
	}
	b.want(b.apply(assignments(cla(t, "a", 4))), "l@10.0.0.1>a(4)")
	b.Absent(xds.AssignmentType, []string{"a"})
	b.want(b.built(), "=")
}

func TestUnchangedContentIsNoSnapshot(t *testing.T) {
	b := newBench(t, Options{})
	all := func(version string) []xds.Update {
		c, l := eds(t, "a"), lis(t, "l", "10.0.0.1", "a")
		c.Version, l.Version = version, version
		return []xds.Update{clusters(c), listeners(l)}
	}
	b.want(b.apply(append(all("1"), assignments(cla(t, "a", 1)))...), "l@10.0.0.1>a(1)")
	first := b.last
	b.want(b.apply(all("2")...), "=")
	if v := b.Status().Resources[0].Version; v != "2" {
		t.Errorf("version %q", v)
	}
	// Other bytes, same meaning.
	c := res(t, &clusterv3.Cluster{}, "{name: a, type: EDS, alt_stat_name: x}")
	b.want(b.apply(clusters(c)), "=")
	b.want(b.apply(listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.2", "a"))), "l@10.0.0.1>a(1) m@10.0.0.2>a(1)")
	if b.last.Scopes[0].Services[0] != first.Scopes[0].Services[0] || b.last.Scopes[0].Clusters["a"] != first.Scopes[0].Clusters["a"] {
		t.Error("what has not changed is another object")
	}
}

func TestDanglingCluster(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "a", 1), static(t, "b", 2)), listeners(lis(t, "l", "10.0.0.1", "a", "b"), lis(t, "new", "10.0.0.2", "nowhere"))),
		"l@10.0.0.1>a(1)>b(2)")
	p := b.problem()
	for _, part := range []string{"server", `Listener "new"`, "filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[0].name", `cluster "nowhere"`, "left out"} {
		if !strings.Contains(p, part) {
			t.Errorf("problem %q lacks %q", p, part)
		}
	}
	if b.state("Listener", "new") != LeftOut {
		t.Errorf("state %s", b.state("Listener", "new"))
	}
	// The cluster goes: the listener stays as it was, with the cluster.
	b.want(b.apply(clusters(static(t, "a", 1))), "=")
	if b.state("Listener", "l") != LastGood || !strings.Contains(b.problem(), "last good version stays") {
		t.Errorf("state %s, problems %s", b.state("Listener", "l"), b.problem())
	}
	// Clusters that are there go on changing.
	b.want(b.apply(clusters(static(t, "a", 7))), "l@10.0.0.1>a(7)>b(2)")
	// A new version that is dangling is not used, the old one is.
	b.want(b.apply(listeners(lis(t, "l", "10.0.0.9", "a", "nowhere"))), "=")
	b.want(b.apply(clusters(static(t, "a", 7), static(t, "nowhere", 3))), "l@10.0.0.9>a(7)>nowhere(3)")
	if b.problem() != "" {
		t.Errorf("problems: %s", b.problem())
	}
	b.want(b.apply(listeners()), "")
	if len(b.last.Scopes[0].Clusters) != 0 {
		t.Error("clusters without services")
	}
}

func TestInvalidKeepsLastGood(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(static(t, "a", 1), eds(t, "e")), assignments(cla(t, "e", 5)), listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.2", "e"))),
		"l@10.0.0.1>a(1) m@10.0.0.2>e(5)")
	reject := func(u xds.Update, parts ...string) {
		t.Helper()
		err := b.Apply(context.Background(), u)
		if err == nil {
			t.Fatal("accepted")
		}
		for _, p := range parts {
			if !strings.Contains(err.Error(), p) || !strings.Contains(b.problem(), p) {
				t.Errorf("error %q, problems %q, want %q", err, b.problem(), p)
			}
		}
		// Delivered again, it is rejected again.
		if again := b.Apply(context.Background(), u); again == nil || again.Error() != err.Error() {
			t.Errorf("again: %v", again)
		}
	}
	reject(clusters(static(t, "a", 0), eds(t, "e")), `Cluster "a"`, "port_value", "0 is not a port")
	b.want(b.built(), "=")
	if b.state("Cluster", "a") != LastGood {
		t.Errorf("state %s", b.state("Cluster", "a"))
	}
	reject(assignments(cla(t, "e", 0)), `ClusterLoadAssignment "e"`, "port_value")
	b.want(b.built(), "=")
	bad := res(t, &listenerv3.Listener{}, "{name: l}")
	reject(listeners(bad, lis(t, "m", "10.0.0.3", "e")), `Listener "l"`, "address")
	b.want(b.built(), "l@10.0.0.1>a(1) m@10.0.0.3>e(5)")
	if b.state("Listener", "l") != LastGood {
		t.Errorf("state %s", b.state("Listener", "l"))
	}
	// Refused by the source already: the name is known.
	refused := lis(t, "m", "10.0.0.4", "e")
	refused.Invalid = []mesh.Verdict{{Type: "Listener", Resource: "m", Field: "x", Class: mesh.Invalid, Message: "no"}}
	refused.Message = nil
	if err := b.Apply(context.Background(), listeners(lis(t, "l", "10.0.0.1", "a"), refused)); err == nil {
		t.Error("accepted")
	}
	b.want(b.built(), "=")
	b.want(b.apply(clusters(static(t, "a", 2), eds(t, "e")), listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.4", "e")), assignments(cla(t, "e", 6))),
		"l@10.0.0.1>a(2) m@10.0.0.4>e(6)")
}

func TestRemovedAndForgotten(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(eds(t, "a")), assignments(cla(t, "a", 1)), listeners(lis(t, "l", "10.0.0.1", "a"))), "l@10.0.0.1>a(1)")
	// Absence of an assignment means nothing.
	b.want(b.apply(assignments()), "=")
	b.want(b.apply(listeners(), clusters()), "")
	if n := len(b.assignments); n != 0 {
		t.Errorf("%d assignments that nobody wants", n)
	}
	// Answers that come late are not kept.
	b.want(b.apply(assignments(cla(t, "a", 1))), "=")
	if n := len(b.assignments); n != 0 {
		t.Errorf("%d assignments that nobody wants", n)
	}
	// Back again, it has to warm again.
	b.want(b.apply(clusters(eds(t, "a")), listeners(lis(t, "l", "10.0.0.1", "a"))), "=")
	b.want(b.apply(assignments(cla(t, "a", 2))), "l@10.0.0.1>a(2)")
}

func TestCompleteAssignments(t *testing.T) {
	// A directory is complete: an assignment that is gone from it stays while its
	// cluster wants it, and is reported.
	b := newBench(t, Options{})
	complete := func(r ...xds.Resource) xds.Update {
		return xds.Update{Type: xds.AssignmentType, Resources: r, Complete: true}
	}
	b.want(b.apply(clusters(eds(t, "a")), complete(cla(t, "a", 1), cla(t, "unused", 1)), listeners(lis(t, "l", "10.0.0.1", "a"))), "l@10.0.0.1>a(1)")
	if b.state("ClusterLoadAssignment", "unused") != Unused {
		t.Errorf("state %s", b.state("ClusterLoadAssignment", "unused"))
	}
	b.want(b.apply(complete()), "=")
	if !strings.Contains(b.problem(), "is gone") || b.state("ClusterLoadAssignment", "a") != LastGood || b.state("ClusterLoadAssignment", "unused") != "" {
		t.Errorf("problems %s", b.problem())
	}
	b.want(b.apply(complete(cla(t, "a", 1))), "=")
	if b.problem() != "" {
		t.Errorf("problems %s", b.problem())
	}
}

func TestSameFrontend(t *testing.T) {
	b := newBench(t, Options{})
	c := clusters(static(t, "a", 1), static(t, "b", 2))
	b.want(b.apply(c, listeners(lis(t, "x", "10.0.0.1", "a"), lis(t, "y", "10.0.0.2", "b"))), "x@10.0.0.1>a(1) y@10.0.0.2>b(2)")
	// y wants x's address: the one that was there stays, and y stays where it was.
	b.want(b.apply(listeners(lis(t, "x", "10.0.0.1", "a"), lis(t, "y", "10.0.0.1", "b"))), "=")
	for _, part := range []string{`Listener "y"`, `listener "x"`, "10.0.0.1/32 port 80 TCP"} {
		if !strings.Contains(b.problem(), part) {
			t.Errorf("problem %q lacks %q", b.problem(), part)
		}
	}
	if b.state("Listener", "y") != LastGood {
		t.Errorf("state %s", b.state("Listener", "y"))
	}
	// A new listener before the incumbent in the alphabet does not win either.
	b.want(b.apply(listeners(lis(t, "aa", "10.0.0.1", "b"), lis(t, "x", "10.0.0.1", "a"), lis(t, "y", "10.0.0.2", "b"))), "=")
	if b.state("Listener", "aa") != LeftOut {
		t.Errorf("state %s", b.state("Listener", "aa"))
	}
	// Exchanging addresses in one step is fine.
	b.want(b.apply(listeners(lis(t, "x", "10.0.0.2", "a"), lis(t, "y", "10.0.0.1", "b"))), "x@10.0.0.2>a(1) y@10.0.0.1>b(2)")
	// So is handing one over.
	b.want(b.apply(listeners(lis(t, "a", "10.0.0.2", "b"), lis(t, "x", "10.0.0.3", "a"), lis(t, "y", "10.0.0.1", "b"))), "a@10.0.0.2>b(2) x@10.0.0.3>a(1) y@10.0.0.1>b(2)")
	if b.problem() != "" {
		t.Errorf("problems: %s", b.problem())
	}
}

func TestSameServiceName(t *testing.T) {
	b := newBench(t, Options{})
	two := res(t, &listenerv3.Listener{}, `
name: a
address: {socket_address: {address: 0.0.0.0, port_value: 80}}
filter_chains:
- {name: b, filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}]}
- {name: c, filter_chain_match: {prefix_ranges: [{address_prefix: 11.0.0.0, prefix_len: 8}]}, filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: a}}]}
`)
	b.want(b.apply(clusters(static(t, "a", 1)), listeners(two, lis(t, "a/b", "10.0.0.1", "a"))), "a/b@10.0.0.0>a(1) a/c@11.0.0.0>a(1)")
	if !strings.Contains(b.problem(), `service of the name "a/b"`) {
		t.Errorf("problems %s", b.problem())
	}
}

func TestNotGoverned(t *testing.T) {
	b := newBench(t, Options{})
	in := res(t, &listenerv3.Listener{}, "{name: in, api_listener: {}}")
	b.want(b.apply(clusters(), listeners(in)), "")
	if b.state("Listener", "in") != NotGoverned || b.problem() != "" {
		t.Errorf("state %s, problems %s", b.state("Listener", "in"), b.problem())
	}
}

func TestHoldFirst(t *testing.T) {
	dangling := []xds.Update{clusters(static(t, "a", 1)), listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.2", "nowhere"))}
	t.Run("forever", func(t *testing.T) {
		b := newBench(t, Options{HoldFirst: -1})
		b.want(b.apply(dangling...), "=")
		if s := b.Status().Holding; !strings.Contains(s, "nowhere") {
			t.Errorf("holding %q", s)
		}
		b.want(b.apply(clusters(static(t, "a", 1), static(t, "nowhere", 2))), "l@10.0.0.1>a(1) m@10.0.0.2>nowhere(2)")
		b.want(b.apply(clusters(static(t, "a", 2))), "l@10.0.0.1>a(2) m@10.0.0.2>nowhere(2)")
	})
	t.Run("for a time", func(t *testing.T) {
		b := newBench(t, Options{HoldFirst: 200 * time.Millisecond})
		got := run(t, b.Store)
		begin := time.Now()
		if err := b.Apply(context.Background(), dangling...); err != nil {
			t.Fatal(err)
		}
		if s := text(got.next()); s != "l@10.0.0.1>a(1)" {
			t.Errorf("snapshot %s", s)
		}
		if d := time.Since(begin); d < 200*time.Millisecond {
			t.Errorf("held for %v", d)
		}
	})
}

// published collects what Run publishes.
type published struct {
	t    *testing.T
	ch   chan *mesh.Snapshot
	mu   sync.Mutex
	fail error
}

func run(t *testing.T, s *Store) *published {
	p := &published{t: t, ch: make(chan *mesh.Snapshot, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx, func(_ context.Context, snap *mesh.Snapshot) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.fail != nil {
				return p.fail
			}
			p.ch <- snap
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return p
}

func (p *published) next() *mesh.Snapshot {
	p.t.Helper()
	select {
	case s := <-p.ch:
		return s
	case <-time.After(10 * time.Second):
		p.t.Fatal("no snapshot")
		return nil
	}
}

func TestRunGathers(t *testing.T) {
	s := New(Options{Gather: 500 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	got := run(t, s)
	begin := time.Now()
	if err := s.Apply(context.Background(), clusters(static(t, "a", 1)), listeners(lis(t, "l", "10.0.0.1", "a"))); err != nil {
		t.Fatal(err)
	}
	if x := text(got.next()); x != "l@10.0.0.1>a(1)" {
		t.Fatalf("first %s", x)
	}
	if d := time.Since(begin); d > 400*time.Millisecond {
		t.Errorf("the first change took %v", d)
	}
	for port := 2; port <= 50; port++ {
		if err := s.Apply(context.Background(), clusters(static(t, "a", port))); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for {
		n++
		if text(got.next()) == "l@10.0.0.1>a(50)" {
			break
		}
	}
	if n > 3 {
		t.Errorf("%d snapshots for one burst", n)
	}
}

func TestRunPublishesAgain(t *testing.T) {
	s := New(Options{Gather: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	got := run(t, s)
	got.mu.Lock()
	got.fail = errors.New("maps are full")
	got.mu.Unlock()
	if err := s.Apply(context.Background(), clusters(static(t, "a", 1)), listeners(lis(t, "l", "10.0.0.1", "a"))); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.Status().PublishError == "" {
		if time.Now().After(deadline) {
			t.Fatal("no error in the status")
		}
		time.Sleep(time.Millisecond)
	}
	if st := s.Status(); st.PublishError != "maps are full" || st.Published != 0 || st.Version != 1 {
		t.Errorf("status %+v", st)
	}
	got.mu.Lock()
	got.fail = nil
	got.mu.Unlock()
	if x := got.next(); text(x) != "l@10.0.0.1>a(1)" || x.Version != 1 {
		t.Errorf("snapshot %d %s", x.Version, text(x))
	}
}

func TestOrderIsStable(t *testing.T) {
	var first string
	for range 20 {
		b := newBench(t, Options{})
		var ls, cs []xds.Resource
		for i := range 30 {
			name := fmt.Sprintf("c%02d", i)
			cs = append(cs, static(t, name, i+1))
			ls = append(ls, lis(t, fmt.Sprintf("l%02d", 29-i), fmt.Sprintf("10.0.1.%d", i%20+1), name))
		}
		got := b.apply(clusters(cs...), listeners(ls...))
		for _, name := range slices.Sorted(maps.Keys(b.last.Scopes[0].Clusters)) {
			got += " " + name
		}
		got += "\n" + b.problem()
		if first == "" {
			first = got
		}
		if got != first {
			t.Fatalf("got\n%s\nbefore\n%s", got, first)
		}
	}
}

// TestEqualLooksAtEveryField: a field that is added to the model and not compared
// would keep its changes from ever being published.
func TestEqualLooksAtEveryField(t *testing.T) {
	each := func(typ reflect.Type, same func(changed reflect.Value) bool) {
		for i := range typ.NumField() {
			v := reflect.New(typ)
			switch f := v.Elem().Field(i); f.Kind() {
			case reflect.Slice:
				f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			case reflect.String:
				f.SetString("x")
			case reflect.Bool:
				f.SetBool(true)
			default:
				f.SetUint(1)
			}
			if same(v) {
				t.Errorf("%s.%s is not compared", typ, typ.Field(i).Name)
			}
		}
	}
	each(reflect.TypeFor[mesh.Service](), func(v reflect.Value) bool { return sameService(&mesh.Service{}, v.Interface().(*mesh.Service)) })
	each(reflect.TypeFor[mesh.Cluster](), func(v reflect.Value) bool { return sameCluster(&mesh.Cluster{}, v.Interface().(*mesh.Cluster)) })
	each(reflect.TypeFor[mesh.Locality](), func(v reflect.Value) bool {
		return sameLocality(mesh.Locality{}, *v.Interface().(*mesh.Locality))
	})
}
