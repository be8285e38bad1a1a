// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const nodeID = "sidecar~10.0.0.1~test.default~default.svc.cluster.local"

// control is a go-control-plane server.
type control struct {
	t     *testing.T
	addr  string
	cache cache.SnapshotCache

	mu       sync.Mutex
	requests []*discoveryv3.DiscoveryRequest
	streams  int
	grpc     *grpc.Server
}

// newControl starts a server on a free port.
func newControl(t *testing.T) *control {
	c := &control{t: t, cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil)}
	c.listen("127.0.0.1:0")
	t.Cleanup(c.stop)
	return c
}

// listen starts serving; the cache stays from before.
func (c *control) listen(addr string) {
	c.t.Helper()
	var ln net.Listener
	eventually(c.t, "listen", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	})
	c.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	srv := serverv3.NewServer(ctx, c.cache, serverv3.CallbackFuncs{
		StreamOpenFunc: func(context.Context, int64, string) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.streams++
			return nil
		},
		StreamRequestFunc: func(_ int64, r *discoveryv3.DiscoveryRequest) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.requests = append(c.requests, cloneRequest(r))
			return nil
		},
	})
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, srv)
	c.mu.Lock()
	c.grpc = g
	c.mu.Unlock()
	go func() { _ = g.Serve(ln) }()
}

// cloneRequest copies what the tests look at: the server fills in the node.
func cloneRequest(r *discoveryv3.DiscoveryRequest) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetResponseNonce(),
		ResourceNames: slices.Clone(r.GetResourceNames()), ErrorDetail: r.GetErrorDetail()}
}

func (c *control) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grpc.Stop()
}

// seen returns the requests of one type so far.
func (c *control) seen(typeURL string) []*discoveryv3.DiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*discoveryv3.DiscoveryRequest
	for _, r := range c.requests {
		if r.GetTypeUrl() == typeURL {
			out = append(out, r)
		}
	}
	return out
}

// set publishes a version.
func (c *control) set(version string, clusters, assignments, listeners []types.Resource) {
	c.t.Helper()
	snap, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{
		resource.ClusterType: clusters, resource.EndpointType: assignments, resource.ListenerType: listeners,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.cache.SetSnapshot(context.Background(), nodeID, snap); err != nil {
		c.t.Fatal(err)
	}
}

func edsCluster(name string) types.Resource {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}}
}

func assignment(name string) types.Resource {
	return &endpointv3.ClusterLoadAssignment{ClusterName: name}
}

func listener(name string) types.Resource {
	return &listenerv3.Listener{Name: name, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "10.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 80}}}}}
}

// wantsAll is a consumer that wants the assignment of every cluster.
func wantsAll() *recorder {
	return &recorder{onCDS: func(r *recorder, names []string) { r.wanted = slices.Clone(names) }}
}

// newServer makes a client with short waits.
func newServer(t *testing.T, addr string) *Server {
	t.Helper()
	s, err := NewServer(ServerOptions{Targets: []string{addr}, Protocol: SotW, Node: &corev3.Node{Id: nodeID}, Logger: quiet(),
		BackoffBase: 10 * time.Millisecond, BackoffMax: 100 * time.Millisecond, AbsentAfter: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServerDelivers(t *testing.T) {
	c := newControl(t)
	c.set("1", []types.Resource{edsCluster("a"), edsCluster("b")}, []types.Resource{assignment("a"), assignment("b")}, []types.Resource{listener("l")})
	s, r := newServer(t, c.addr), wantsAll()
	start(t, s, r)
	eventually(t, "everything", func() bool {
		return r.get("Cluster") == "a,b" && r.get("ClusterLoadAssignment") == "a,b" && r.get("Listener") == "l"
	})
	eventually(t, "acks", func() bool {
		return slices.ContainsFunc(c.seen(AssignmentType), func(q *discoveryv3.DiscoveryRequest) bool {
			return q.GetVersionInfo() == "1" && q.GetErrorDetail() == nil && slices.Equal(q.GetResourceNames(), []string{"a", "b"})
		})
	})
	for _, typ := range []string{ClusterType, ListenerType} {
		eventually(t, "ack", func() bool { return len(c.seen(typ)) == 2 })
		ack := c.seen(typ)[1]
		if ack.GetVersionInfo() != "1" || ack.GetResponseNonce() == "" || ack.GetErrorDetail() != nil || len(ack.GetResourceNames()) != 0 {
			t.Errorf("ack %v", ack)
		}
	}

	// Removal: absence in clusters and listeners, even of all of them; an
	// assignment that is not named any more is unsubscribed.
	c.set("2", []types.Resource{edsCluster("b")}, []types.Resource{assignment("b")}, nil)
	eventually(t, "removal", func() bool { return r.get("Cluster") == "b" && r.get("Listener") == "" })
	eventually(t, "unsubscription", func() bool {
		q := c.seen(AssignmentType)
		return slices.Equal(q[len(q)-1].GetResourceNames(), []string{"b"})
	})
	c.set("3", nil, nil, nil)
	eventually(t, "removal of all", func() bool { return r.get("Cluster") == "" })
	eventually(t, "unsubscription of all", func() bool {
		q := c.seen(AssignmentType)
		return len(q[len(q)-1].GetResourceNames()) == 0
	})
	// And back.
	c.set("4", []types.Resource{edsCluster("a")}, []types.Resource{assignment("a")}, []types.Resource{listener("l")})
	eventually(t, "return", func() bool { return r.get("Cluster") == "a" && r.get("Listener") == "l" })
	eventually(t, "subscription", func() bool {
		q := c.seen(AssignmentType)
		last := q[len(q)-1]
		return slices.Equal(last.GetResourceNames(), []string{"a"}) && last.GetVersionInfo() == "4"
	})
	if p := problem(s); p != "" {
		t.Errorf("problems: %s", p)
	}
	if st := s.Status(); !st.Connected || len(st.Types) != 3 || st.Types[0].Version != "4" {
		t.Errorf("status %+v", st)
	}
}

func TestServerRejects(t *testing.T) {
	c := newControl(t)
	c.set("1", []types.Resource{edsCluster("a")}, []types.Resource{assignment("a")}, nil)
	s, r := newServer(t, c.addr), wantsAll()
	start(t, s, r)
	eventually(t, "first", func() bool { return len(c.seen(ClusterType)) == 2 && len(c.seen(ListenerType)) == 2 })

	r.mu.Lock()
	r.reject = errors.New(`Listener "bad": address: is missing`)
	r.mu.Unlock()
	c.set("2", []types.Resource{edsCluster("a")}, []types.Resource{assignment("a")}, []types.Resource{listener("good")})
	eventually(t, "nack", func() bool {
		return slices.ContainsFunc(c.seen(ListenerType), func(q *discoveryv3.DiscoveryRequest) bool {
			return strings.Contains(q.GetErrorDetail().GetMessage(), "address: is missing")
		})
	})
	all := c.seen(ListenerType)
	nack := all[len(all)-1]
	if nack.GetVersionInfo() != "1" || nack.GetResponseNonce() == "" || nack.GetErrorDetail().GetCode() != int32(codes.InvalidArgument) {
		t.Errorf("nack %v", nack)
	}
	if r.get("Listener") != "good" {
		t.Error("the valid resource of a rejected response was not delivered")
	}
	eventually(t, "status", func() bool {
		return slices.ContainsFunc(s.Status().Types, func(ts TypeStatus) bool {
			return ts.Type == "Listener" && ts.Rejected > 0 && ts.Version == "1" && strings.Contains(ts.LastError, "missing")
		})
	})
	// The server sends the version again after every NACK: the answers slow down.
	n := len(c.seen(ListenerType))
	time.Sleep(300 * time.Millisecond) // what is shown is how little happens in a time
	if more := len(c.seen(ListenerType)) - n; more > 12 {
		t.Errorf("%d rejections within 300 ms", more)
	}
	r.mu.Lock()
	r.reject = nil
	r.mu.Unlock()
	c.set("3", []types.Resource{edsCluster("a")}, []types.Resource{assignment("a")}, []types.Resource{listener("good")})
	eventually(t, "ack", func() bool {
		all := c.seen(ListenerType)
		last := all[len(all)-1]
		return last.GetVersionInfo() == "3" && last.GetErrorDetail() == nil
	})
}

func TestServerReconnects(t *testing.T) {
	c := newControl(t)
	c.set("1", []types.Resource{edsCluster("a")}, []types.Resource{assignment("a")}, []types.Resource{listener("l")})
	s, r := newServer(t, c.addr), wantsAll()
	start(t, s, r)
	eventually(t, "first", func() bool { return r.get("ClusterLoadAssignment") == "a" && r.get("Listener") == "l" })
	eventually(t, "acks", func() bool { return len(c.seen(AssignmentType)) == 2 })

	c.stop()
	eventually(t, "loss is noticed", func() bool { return !s.Status().Connected && strings.Contains(problem(s), "last good state stays") })
	if r.get("Cluster") != "a" || r.get("Listener") != "l" {
		t.Error("a lost stream took something away")
	}
	c.set("2", []types.Resource{edsCluster("a"), edsCluster("b")}, []types.Resource{assignment("a"), assignment("b")}, []types.Resource{listener("l2")})
	before := len(c.seen(ClusterType))
	c.listen(c.addr)
	eventually(t, "new state", func() bool { return r.get("Cluster") == "a,b" && r.get("Listener") == "l2" })
	eventually(t, "assignments", func() bool { return r.get("ClusterLoadAssignment") == "a,b" })
	if first := c.seen(ClusterType)[before]; first.GetVersionInfo() != "1" || first.GetResponseNonce() != "" {
		t.Errorf("first request of the new stream: %v", first)
	}
	eventually(t, "connected", func() bool { return s.Status().Connected && problem(s) == "" })
}

func TestServerAbsentAssignment(t *testing.T) {
	c := newControl(t)
	c.set("1", []types.Resource{edsCluster("a"), edsCluster("none")}, []types.Resource{assignment("a")}, nil)
	s, r := newServer(t, c.addr), wantsAll()
	start(t, s, r)
	eventually(t, "absence", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Equal(r.absent, []string{"none"})
	})
	if r.get("ClusterLoadAssignment") != "a" {
		t.Error("the other assignment has not come")
	}
}

// TestServerRoutes: route configurations are subscribed by name, answered with the
// names, and missed when they do not come.
func TestServerRoutes(t *testing.T) {
	c := newControl(t)
	publish := func(version string, routes ...string) {
		var list []types.Resource
		for _, name := range routes {
			list = append(list, &routev3.RouteConfiguration{Name: name})
		}
		snap, err := cache.NewSnapshot(version, map[resource.Type][]types.Resource{
			resource.ClusterType: {edsCluster("a")}, resource.EndpointType: {assignment("a")},
			resource.ListenerType: {listener("l")}, resource.RouteType: list,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.cache.SetSnapshot(context.Background(), nodeID, snap); err != nil {
			t.Fatal(err)
		}
	}
	publish("1", "80")
	s, r := newServer(t, c.addr), wantsAll()
	r.routes = []string{"80", "none"}
	start(t, s, r)
	eventually(t, "routes", func() bool { return r.get("RouteConfiguration") == "80" && r.get("ClusterLoadAssignment") == "a" })
	eventually(t, "absence", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Equal(r.absent, []string{"route none"})
	})
	r.mu.Lock()
	r.routes = []string{"80", "90"}
	r.mu.Unlock()
	publish("2", "80", "90") // any response makes the stream ask again
	eventually(t, "more routes", func() bool { return r.get("RouteConfiguration") == "80,90" })
	for _, req := range c.seen(RouteType) {
		if len(req.GetResourceNames()) != 2 || req.GetErrorDetail() != nil {
			t.Errorf("request %v", req)
		}
	}
	if first := c.seen(RouteType)[0]; !slices.Equal(first.GetResourceNames(), []string{"80", "none"}) || first.GetVersionInfo() != "" {
		t.Errorf("first request %v", first)
	}
}

// script is an ADS server that does what a test says.
type script struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	run func(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error
}

func (s *script) StreamAggregatedResources(st discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.run(st)
}

// scripted serves a script.
func scripted(t *testing.T, run func(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &script{run: run})
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	return ln.Addr().String()
}

func pack(t *testing.T, m types.Resource) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestServerNodeOnlyOnce(t *testing.T) {
	var mu sync.Mutex
	var nodes []string
	addr := scripted(t, func(st discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
		for i := 0; ; i++ {
			req, err := st.Recv()
			if err != nil {
				return err
			}
			mu.Lock()
			nodes = append(nodes, fmt.Sprintf("%s:%s", short(req.GetTypeUrl()), req.GetNode().GetId()))
			mu.Unlock()
			if i == 0 {
				if err := st.Send(&discoveryv3.DiscoveryResponse{TypeUrl: ClusterType, VersionInfo: "1", Nonce: "n"}); err != nil {
					return err
				}
			}
		}
	})
	start(t, newServer(t, addr), wantsAll())
	eventually(t, "requests", func() bool { mu.Lock(); defer mu.Unlock(); return len(nodes) == 3 })
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"Cluster:" + nodeID, "Listener:", "Cluster:"}; !slices.Equal(nodes, want) {
		t.Errorf("%q, want %q", nodes, want)
	}
}

func TestServerBadResponses(t *testing.T) {
	good := pack(t, edsCluster("good"))
	noName := pack(t, &clusterv3.Cluster{})
	ruleBroken := pack(t, &clusterv3.Cluster{Name: "broken", HealthChecks: []*corev3.HealthCheck{{}}})
	tests := map[string]struct {
		resources []*anypb.Any
		typeURL   string
		detail    string // in the NACK; none expected if empty
		names     string // delivered
		bad       string // delivered as invalid
	}{
		"good":          {resources: []*anypb.Any{good}, names: "good"},
		"wrong type":    {resources: []*anypb.Any{good, pack(t, listener("l"))}, detail: "resources[1]", names: "good,old"},
		"garbage":       {resources: []*anypb.Any{{TypeUrl: ClusterType, Value: []byte{0xff}}, good}, detail: "resources[0]", names: "good,old"},
		"unknown":       {resources: []*anypb.Any{{TypeUrl: "type.googleapis.com/no.Such"}, good}, detail: "no.Such", names: "good,old"},
		"no name":       {resources: []*anypb.Any{noName}, detail: "no name", names: "old"},
		"rule":          {resources: []*anypb.Any{ruleBroken, good}, detail: `Cluster "broken": health_checks[0].timeout`, names: "good", bad: "broken"},
		"duplicate":     {resources: []*anypb.Any{good, good}, detail: `Cluster "good": name: duplicate name`, bad: "good"},
		"not asked for": {typeURL: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", detail: "not asked for", names: "old"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			typeURL := tc.typeURL
			if typeURL == "" {
				typeURL = ClusterType
			}
			answer := make(chan *discoveryv3.DiscoveryRequest, 1)
			addr := scripted(t, func(st discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
				if err := st.Send(&discoveryv3.DiscoveryResponse{TypeUrl: ClusterType, VersionInfo: "1", Nonce: "n1", Resources: []*anypb.Any{pack(t, edsCluster("old"))}}); err != nil {
					return err
				}
				if err := st.Send(&discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: "2", Nonce: "n2", Resources: tc.resources}); err != nil {
					return err
				}
				for {
					req, err := st.Recv()
					if err != nil {
						return err
					}
					if req.GetResponseNonce() == "n2" {
						answer <- req
					}
				}
			})
			s, r := newServer(t, addr), &recorder{}
			start(t, s, r)
			var req *discoveryv3.DiscoveryRequest
			select {
			case req = <-answer:
			case <-time.After(10 * time.Second):
				t.Fatal("no answer")
			}
			if got := req.GetErrorDetail().GetMessage(); (tc.detail == "") != (got == "") || !strings.Contains(got, tc.detail) {
				t.Errorf("detail %q, want %q", got, tc.detail)
			}
			if r.get("Cluster") != tc.names {
				t.Errorf("clusters %q, want %q", r.get("Cluster"), tc.names)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if tc.bad != "" && r.bad[tc.bad] == "" {
				t.Errorf("invalid: %v", r.bad)
			}
			if version := req.GetVersionInfo(); tc.detail != "" && typeURL == ClusterType && version != "1" {
				t.Errorf("nack with version %q", version)
			}
		})
	}
}

func TestServerBacksOff(t *testing.T) {
	var mu sync.Mutex
	var times []time.Time
	addr := scripted(t, func(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Now())
		return status.Error(codes.Unavailable, "not today")
	})
	s := newServer(t, addr)
	start(t, s, &recorder{})
	eventually(t, "eight attempts", func() bool { mu.Lock(); defer mu.Unlock(); return len(times) >= 8 })
	mu.Lock()
	defer mu.Unlock()
	if d := times[7].Sub(times[6]); d < 40*time.Millisecond {
		t.Errorf("eighth attempt came after %v: no backoff", d)
	}
	if !strings.Contains(problem(s), "not today") {
		t.Errorf("problems %q", problem(s))
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{base: 100 * time.Millisecond, max: time.Second}
	within := func(step time.Duration) {
		t.Helper()
		if d := b.delay(); d < step/2 || d > step {
			t.Errorf("delay %v, want %v to %v", d, step/2, step)
		}
	}
	for _, step := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		within(step * time.Millisecond)
	}
	b.reset()
	within(100 * time.Millisecond)
	b.reset()
	b.harder()
	within(400 * time.Millisecond)
}
