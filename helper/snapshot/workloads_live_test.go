// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/translate/workload"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
	"kmesh/helper/xds"
)

// zstage is a server that serves the workload API as istiod does a ztunnel: by the delta
// protocol, each type as a whole, names in the envelopes.
type zstage struct {
	t                   *testing.T
	addresses, policies *cache.LinearCache
	requests            chan *discoveryv3.DeltaDiscoveryRequest
	addr                string
	grpc                *grpc.Server
}

func newZstage(t *testing.T) *zstage {
	z := &zstage{t: t, addresses: cache.NewLinearCache(AddressType), policies: cache.NewLinearCache(AuthorizationType),
		requests: make(chan *discoveryv3.DeltaDiscoveryRequest, 1000), addr: "127.0.0.1:0"}
	z.start()
	t.Cleanup(func() { z.grpc.Stop() })
	return z
}

// start listens; again at the same address.
func (z *zstage) start() {
	z.t.Helper()
	var ln net.Listener
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if ln, err = net.Listen("tcp", z.addr); err == nil {
			break
		}
		if time.Now().After(deadline) {
			z.t.Fatal(err)
		}
	}
	z.addr = ln.Addr().String()
	both := &cache.MuxCache{
		ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
		Caches:        map[string]cache.Cache{AddressType: z.addresses, AuthorizationType: z.policies},
	}
	z.grpc = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(z.grpc, serverv3.NewServer(context.Background(), both, serverv3.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, q *discoveryv3.DeltaDiscoveryRequest) error {
			z.requests <- proto.CloneOf(q) // the server changes it
			return nil
		},
	}))
	go func() { _ = z.grpc.Serve(ln) }()
}

// change is one response of a type.
func (z *zstage) change(c *cache.LinearCache, put map[string]types.Resource, gone ...string) {
	z.t.Helper()
	if err := c.UpdateResources(put, gone); err != nil {
		z.t.Fatal(err)
	}
}

// asked waits for a request of a type.
func (z *zstage) asked(what, typeURL string, is func(*discoveryv3.DeltaDiscoveryRequest) bool) *discoveryv3.DeltaDiscoveryRequest {
	z.t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case q := <-z.requests:
			if q.GetTypeUrl() == typeURL && is(q) {
				return q
			}
		case <-late:
			z.t.Fatalf("no request within 10 s: %s", what)
		}
	}
}

// TestWorkloadsLive: a server's words become services, change them and take them away, over
// a stream that breaks; what it should not have said is told back to it.
func TestWorkloadsLive(t *testing.T) {
	z := newZstage(t)
	log := slog.New(slog.DiscardHandler)
	src, err := xds.NewServer(xds.ServerOptions{Targets: []string{z.addr}, Types: WorkloadTypes(), Node: &corev3.Node{Id: "ztunnel~10.0.0.9~kmesh.kmesh-system~kmesh-system.svc.cluster.local"},
		Logger: log, BackoffBase: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	w := NewWorkloads(WorkloadsOptions{Here: workload.Here{Node: "n1"}, Logger: log})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, w) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("source: %v", err)
		}
	}()
	// until waits for a change that makes it true.
	until := func(what string, is func() bool) {
		t.Helper()
		late := time.After(10 * time.Second)
		for !is() {
			select {
			case <-w.Changed():
			case <-late:
				t.Fatalf("not within 10 s: %s; announced %s, status %+v", what, said(w.Announced()), w.Status())
			}
		}
	}
	announces := func(text string) {
		t.Helper()
		until(text, func() bool { return said(w.Announced()) == text })
	}
	first := func(q *discoveryv3.DeltaDiscoveryRequest) bool { return q.GetResponseNonce() == "" }

	// An empty mesh is a word too.
	until("both types", func() bool { return w.Status().Waiting == "" })
	if q := z.asked("of services", AddressType, first); len(q.GetResourceNamesSubscribe())+len(q.GetInitialResourceVersions()) != 0 {
		t.Errorf("first request %v", q)
	}
	deny := &policy.Authorization{Namespace: "default", Name: "deny", Scope: policy.Scope_WORKLOAD_SELECTOR, Action: policy.Action_DENY, Rules: []*policy.Rule{{}}}
	z.change(z.addresses, map[string]types.Resource{
		"default/a": wService("a", 1, 80), "default/b": wService("b", 2, 80),
		"Kubernetes//Pod/default/p": wPod("Kubernetes//Pod/default/p", 1, "a b", "default/deny"), "Kubernetes//Pod/default/q": wPod("Kubernetes//Pod/default/q", 2, "a"),
	})
	z.change(z.policies, map[string]types.Resource{"default/deny": deny})
	announces("a:80>8080@1,2 b:80>8080@1")
	until("the policy", func() bool {
		got := w.Unenforced(nil)
		return len(got) == 1 && strings.Contains(got[0].Message, "NOT ENFORCED: connections to default/Kubernetes//Pod/default/p")
	})
	before := w.Announced()

	z.change(z.addresses, map[string]types.Resource{"Kubernetes//Pod/default/q": wPod("Kubernetes//Pod/default/q", 3, "a")})
	announces("a:80>8080@1,3 b:80>8080@1")
	if after := w.Announced(); after.list[0].Service != before.list[0].Service || after.list[1] != before.list[1] {
		t.Error("more has changed than the endpoints of a")
	}
	z.change(z.addresses, nil, "Kubernetes//Pod/default/q")
	announces("a:80>8080@1 b:80>8080@1")
	z.change(z.policies, nil, "default/deny")
	until("no policy", func() bool { return w.Status().Authorizations == 0 })

	// The invalid is told back by its name, keeps its last good version, and is no harm to
	// what comes with it.
	z.change(z.addresses, map[string]types.Resource{"default/a": wService("a", 1, 0), "default/c": wService("c", 3, 80)})
	announces("a:80>8080@1 b:80>8080@1 c:80>")
	nack := z.asked("a NACK", AddressType, func(q *discoveryv3.DeltaDiscoveryRequest) bool { return q.GetErrorDetail() != nil })
	if msg := nack.GetErrorDetail().GetMessage(); !strings.Contains(msg, `Service "default/a": ports[0].service_port`) || strings.Contains(msg, "default/c") {
		t.Errorf("NACK %s", msg)
	}

	// A stream that breaks takes nothing away; the next one claims what was accepted and
	// is told of what has changed meanwhile, what was removed included.
	z.grpc.Stop()
	z.change(z.addresses, map[string]types.Resource{"default/d": wService("d", 4, 80)}, "default/b")
	if got := said(w.Announced()); got != "a:80>8080@1 b:80>8080@1 c:80>" {
		t.Errorf("without a stream %s", got)
	}
	z.start()
	announces("a:80>8080@1 c:80> d:80>")
	again := z.asked("of services, again", AddressType, func(q *discoveryv3.DeltaDiscoveryRequest) bool { return len(q.GetInitialResourceVersions()) > 0 })
	claims := again.GetInitialResourceVersions()
	if got := slices.Sorted(maps.Keys(claims)); !slices.Equal(got, []string{"Kubernetes//Pod/default/p", "default/a", "default/b", "default/c"}) || claims["default/a"] == claims["default/b"] {
		t.Errorf("claims %v", claims)
	}
	// What was rejected is not claimed, and so it is sent, and told back, again.
	z.asked("a NACK, again", AddressType, func(q *discoveryv3.DeltaDiscoveryRequest) bool { return q.GetErrorDetail() != nil })

	good := wService("a", 1, 82)
	good.GetService().Ports[0].AppProtocol = address.AppProtocol_HTTP11
	z.change(z.addresses, map[string]types.Resource{"default/a": good})
	announces("a:82>8082@1 c:80> d:80>")
	if st := w.Status(); len(st.Problems) != 0 || st.Services != 3 {
		t.Errorf("status %+v", st)
	}
}
