// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// put writes a file with a rename.
func put(t *testing.T, dir, name, content string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name)
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// feed runs a source into a store, and the store, until the test ends.
func feed(t *testing.T, src xds.Source, s *Store) *published {
	t.Helper()
	got := run(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, s) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("source: %v", err)
		}
	})
	return got
}

// until takes snapshots until one is as wanted.
func (p *published) until(want string) *mesh.Snapshot {
	p.t.Helper()
	deadline := time.After(10 * time.Second)
	last := ""
	for {
		select {
		case s := <-p.ch:
			if last = text(s); last == want {
				return s
			}
		case <-deadline:
			p.t.Fatalf("last %q, want %q", last, want)
		}
	}
}

const (
	clustersYAML = `
resources:
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: v1
  type: EDS
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: v2
  type: STATIC
  load_assignment: {cluster_name: v2, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.1.0.2, port_value: 82}}}}]}]}
`
	endpointsYAML = `
resources:
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: v1
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.1.0.1, port_value: 81}}}}]}]
`
	listenersYAML = `
version_info: "1"
resources:
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: echo
  address: {socket_address: {address: 10.0.0.1, port_value: 80}}
  filter_chains:
  - filters:
    - name: tcp
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: echo
        weighted_clusters: {clusters: [{name: v1, weight: 80}, {name: v2, weight: 20}]}
`
	served = "echo@10.0.0.1>v1(81)>v2(82)"
)

func TestBadFiles(t *testing.T) {
	tests := map[string]struct {
		file, old, new string
		problem        []string // parts of one problem
	}{
		"syntax": {"listeners.yaml", "resources:", "resources: [", []string{"listeners.yaml", "line "}},
		"unknown type": {"listeners.yaml", "envoy.config.listener.v3.Listener", "envoy.config.listener.v9.Listener",
			[]string{"listeners.yaml", `"echo"`, "resources[0].@type", "v9.Listener"}},
		"unknown field": {"listeners.yaml", "filter_chains:", "filter_chain:",
			[]string{"listeners.yaml", `"echo"`, "resources[0].filter_chain"}},
		"dangling cluster": {"listeners.yaml", "name: v2", "name: v3",
			[]string{"listeners.yaml", `Listener "echo"`, "filter_chains[0].filters[0].typed_config.weighted_clusters.clusters[1].name", `"v3"`}},
		"cluster removed": {"clusters.yaml", "name: v2\n", "name: v5\n",
			[]string{"listeners.yaml", `Listener "echo"`, "clusters[1].name", `"v2"`}},
		"duplicate name": {"clusters.yaml", "name: v2\n", "name: v1\n",
			[]string{"clusters.yaml", `Cluster "v1"`, "resources[1]", "resources[0]"}},
		"port 0": {"listeners.yaml", "port_value: 80", "port_value: 0",
			[]string{"listeners.yaml", `Listener "echo"`, "address.socket_address.port_value", "0 is not a port"}},
		"endpoint port 0": {"endpoints.yaml", "port_value: 81", "port_value: 0",
			[]string{"endpoints.yaml", `ClusterLoadAssignment "v1"`, "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value"}},
		"static port 0": {"clusters.yaml", "port_value: 82", "port_value: 0",
			[]string{"clusters.yaml", `Cluster "v2"`, "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value"}},
		"port too large": {"listeners.yaml", "port_value: 80", "port_value: 65536",
			[]string{"listeners.yaml", `Listener "echo"`, "resources[0].address.socket_address.port_value"}},
		"weight overflow": {"listeners.yaml", "weight: 80", "weight: 4294967290",
			[]string{"listeners.yaml", `Listener "echo"`, "weighted_clusters.clusters", "sum of weights"}},
		"weight too large": {"listeners.yaml", "weight: 80", "weight: 4294967296",
			[]string{"listeners.yaml", `"echo"`, "weighted_clusters.clusters[0].weight", "4294967296"}},
		"endpoints removed": {"endpoints.yaml", "cluster_name: v1", "cluster_name: other",
			[]string{"clusters.yaml", `Cluster "v1"`, "eds_cluster_config", "is gone"}},
	}
	content := map[string]string{"clusters.yaml": clustersYAML, "endpoints.yaml": endpointsYAML, "listeners.yaml": listenersYAML}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, c := range content {
				put(t, dir, file, c)
			}
			log := slog.New(slog.DiscardHandler)
			src, s := xds.NewFiles(xds.FilesOptions{Dir: dir, Logger: log}), New(Options{Logger: log})
			got := feed(t, src, s)
			got.until(served)
			bad := strings.Replace(content[tc.file], tc.old, tc.new, 1)
			if bad == content[tc.file] {
				t.Fatal("nothing was replaced")
			}
			put(t, dir, tc.file, bad)
			problems := func() string {
				var out []string
				for _, p := range append(src.Status().Problems, s.Status().Problems...) {
					out = append(out, p.Error())
				}
				return strings.Join(out, "\n")
			}
			deadline := time.Now().Add(10 * time.Second)
			for !holds(problems(), dir, tc.problem) {
				if time.Now().After(deadline) {
					t.Fatalf("problems:\n%s\nwant one with %q", problems(), tc.problem)
				}
				time.Sleep(5 * time.Millisecond)
			}
			// The last good state serves on, and other files still apply.
			put(t, dir, "more.yaml", strings.NewReplacer("name: echo", "name: more", "10.0.0.1", "10.0.0.2").Replace(
				strings.Replace(listenersYAML, "{name: v1, weight: 80}, {name: v2, weight: 20}", "{name: late, weight: 1}", 1))+`
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: late
  type: STATIC
`)
			got.until(served + " more@10.0.0.2>late()")
			// Repaired, it applies.
			put(t, dir, tc.file, strings.Replace(content[tc.file], "10.0.0.1", "10.0.0.3", 1))
			if tc.file == "listeners.yaml" {
				got.until(strings.Replace(served, "10.0.0.1", "10.0.0.3", 1) + " more@10.0.0.2>late()")
			}
			deadline = time.Now().Add(10 * time.Second)
			for problems() != "" {
				if time.Now().After(deadline) {
					t.Fatalf("problems stay: %s", problems())
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// holds tells whether one line has every part and names a file in dir.
func holds(lines, dir string, parts []string) bool {
	for _, line := range strings.Split(lines, "\n") {
		ok := strings.HasPrefix(line, dir)
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		if ok {
			return true
		}
	}
	return false
}

func TestFileChangeWithinASecond(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "all.yaml", clustersYAML)
	put(t, dir, "eds.yaml", endpointsYAML)
	put(t, dir, "lds.yaml", listenersYAML)
	log := slog.New(slog.DiscardHandler)
	got := feed(t, xds.NewFiles(xds.FilesOptions{Dir: dir, Logger: log}), New(Options{Logger: log}))
	got.until(served)
	begin := time.Now()
	put(t, dir, "lds.yaml", strings.Replace(listenersYAML, "weight: 20", "weight: 0", 1))
	snap := got.next()
	if d := time.Since(begin); d > time.Second {
		t.Errorf("took %v", d)
	}
	if w := snap.Scopes[0].Services[0].Clusters[1].Weight; w != 0 {
		t.Errorf("weight %d", w)
	}
}

// TestControlPlane goes from a real go-control-plane server to snapshots: a NACK of
// what the mesh cannot accept, an outage, a new state after it.
func TestControlPlane(t *testing.T) {
	for _, protocol := range []xds.Protocol{xds.SotW, xds.Delta} {
		t.Run(string(protocol), func(t *testing.T) { controlPlane(t, protocol) })
	}
}

func controlPlane(t *testing.T, protocol xds.Protocol) {
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	set := func(version string, clusters, endpoints, listeners []xds.Resource) {
		t.Helper()
		list := func(rs []xds.Resource) []types.Resource {
			var out []types.Resource
			for _, r := range rs {
				out = append(out, r.Message)
			}
			return out
		}
		snap, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{
			resource.ClusterType: list(clusters), resource.EndpointType: list(endpoints), resource.ListenerType: list(listeners)})
		if err != nil {
			t.Fatal(err)
		}
		if err := snapshots.SetSnapshot(context.Background(), "node", snap); err != nil {
			t.Fatal(err)
		}
	}
	nacks := make(chan string, 100)
	nacked := func(detail string) {
		if detail == "" {
			return
		}
		select {
		case nacks <- detail:
		default:
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	listen := func(addr string) (*grpc.Server, string) {
		t.Helper()
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		g := grpc.NewServer()
		discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, serverv3.NewServer(ctx, snapshots, serverv3.CallbackFuncs{
			StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
				nacked(r.GetErrorDetail().GetMessage())
				return nil
			},
			StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
				nacked(r.GetErrorDetail().GetMessage())
				return nil
			}}))
		go func() { _ = g.Serve(ln) }()
		return g, ln.Addr().String()
	}
	g, addr := listen("127.0.0.1:0")

	// A cluster that is not accepted must not keep the others from their endpoints:
	// this server answers only who names every assignment that it has.
	bad := res(t, &clusterv3.Cluster{}, "{name: bad, type: EDS, lb_policy: MAGLEV, maglev_lb_config: {table_size: 250}}")
	worse := res(t, &clusterv3.Cluster{}, "{name: worse, type: EDS, health_checks: [{}]}")
	set("1", []xds.Resource{eds(t, "a"), eds(t, "b"), bad, worse}, []xds.Resource{cla(t, "a", 1), cla(t, "b", 2), cla(t, "bad", 1), cla(t, "worse", 1)}, []xds.Resource{lis(t, "l", "10.0.0.1", "a", "b")})
	log := slog.New(slog.DiscardHandler)
	src, err := xds.NewServer(xds.ServerOptions{Targets: []string{addr}, Protocol: protocol, Node: &corev3.Node{Id: "node"}, Logger: log, BackoffBase: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Logger: log})
	got := feed(t, src, s)
	if x := text(got.next()); x != "l@10.0.0.1>a(1)>b(2)" {
		t.Fatalf("the first snapshot is not whole: %s", x)
	}
	set("2", []xds.Resource{eds(t, "a"), eds(t, "b")}, []xds.Resource{cla(t, "a", 1, 3), cla(t, "b", 0)}, []xds.Resource{lis(t, "l", "10.0.0.1", "a", "b"), lis(t, "m", "10.0.0.2", "a")})
	got.until("l@10.0.0.1>a(1,3)>b(2) m@10.0.0.2>a(1,3)")
	told := func(parts ...string) {
		t.Helper()
		late := time.After(10 * time.Second)
		for {
			select {
			case n := <-nacks:
				if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(n, p) }) {
					return
				}
			case <-late:
				t.Fatalf("no nack with %q", parts)
			}
		}
	}
	told(`Cluster "bad": maglev_lb_config.table_size: 250`, `Cluster "worse": health_checks[0].timeout`)
	told(`ClusterLoadAssignment "b": endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: 0`)
	g.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for src.Status().Connected {
		if time.Now().After(deadline) {
			t.Fatal("the loss is not noticed")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if st := s.Status(); st.Version != st.Published || st.Version == 0 {
		t.Errorf("status %+v", st)
	}
	set("3", []xds.Resource{eds(t, "a")}, []xds.Resource{cla(t, "a", 4)}, []xds.Resource{lis(t, "m", "10.0.0.2", "a")})
	g, _ = listen(addr)
	defer g.Stop()
	got.until("m@10.0.0.2>a(4)")
	set("4", nil, nil, nil)
	got.until("")
	if p := s.Status().Problems; len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}
