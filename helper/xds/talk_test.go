// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

// talk is one stream, as a test sees it that plays the server.
type talk[Q, R any] struct {
	t    *testing.T
	in   chan *Q
	raw  interface{ Send(*R) error }
	end  chan error
	head metadata.MD
}

// next returns the next request.
func (k *talk[Q, R]) next() *Q {
	k.t.Helper()
	select {
	case q := <-k.in:
		return q
	case <-time.After(10 * time.Second):
		k.t.Fatal("no request within 10 s")
		return nil
	}
}

// say sends a response.
func (k *talk[Q, R]) say(r *R) {
	k.t.Helper()
	if err := k.raw.Send(r); err != nil {
		k.t.Fatalf("send: %v", err)
	}
}

// hang ends the stream; nil: in good order.
func (k *talk[Q, R]) hang(err error) { k.end <- err }

type (
	sotwTalk  = talk[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	deltaTalk = talk[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
)

// stage is a server whose streams a test plays.
type stage struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t     *testing.T
	addr  string
	grpc  *grpc.Server
	sotw  chan *sotwTalk
	delta chan *deltaTalk
}

// newStage serves on an address; "" is any.
func newStage(t *testing.T, addr string, opts ...grpc.ServerOption) *stage {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var ln net.Listener
	eventually(t, "listen", func() bool {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	})
	return stageOn(t, ln, opts...)
}

// stageOn serves on a listener.
func stageOn(t *testing.T, ln net.Listener, opts ...grpc.ServerOption) *stage {
	st := &stage{t: t, addr: ln.Addr().String(), grpc: grpc.NewServer(opts...), sotw: make(chan *sotwTalk, 100), delta: make(chan *deltaTalk, 100)}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(st.grpc, st)
	go func() { _ = st.grpc.Serve(ln) }()
	t.Cleanup(st.grpc.Stop)
	return st
}

// act plays one stream until the test or the client ends it.
func act[Q, R any](t *testing.T, raw interface {
	Send(*R) error
	Recv() (*Q, error)
	Context() context.Context
}, streams chan *talk[Q, R]) error {
	k := &talk[Q, R]{t: t, in: make(chan *Q, 10000), raw: raw, end: make(chan error, 1)}
	k.head, _ = metadata.FromIncomingContext(raw.Context())
	streams <- k
	go func() {
		for {
			q, err := raw.Recv()
			if err != nil {
				return
			}
			k.in <- q
		}
	}()
	select {
	case err := <-k.end:
		return err
	case <-raw.Context().Done():
		return raw.Context().Err()
	}
}

func (s *stage) StreamAggregatedResources(raw discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return act(s.t, raw, s.sotw)
}

func (s *stage) DeltaAggregatedResources(raw discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return act(s.t, raw, s.delta)
}

// enter waits for the next stream.
func enter[T any](t *testing.T, streams chan T) T {
	t.Helper()
	select {
	case k := <-streams:
		return k
	case <-time.After(10 * time.Second):
		t.Fatal("no stream within 10 s")
		panic("unreachable")
	}
}

// client makes a source with short waits.
func client(t *testing.T, protocol Protocol, change func(*ServerOptions), targets ...string) *Server {
	t.Helper()
	o := ServerOptions{Targets: targets, Protocol: protocol, Node: &corev3.Node{Id: nodeID}, Logger: quiet(),
		BackoffBase: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond, AbsentAfter: 10 * time.Second, FallbackAfter: time.Millisecond}
	if change != nil {
		change(&o)
	}
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sotwSay is a response with resources of one type.
func sotwSay(t *testing.T, typeURL, version string, resources ...types.Resource) *discoveryv3.DiscoveryResponse {
	t.Helper()
	r := &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: version, Nonce: "n" + version}
	for _, m := range resources {
		r.Resources = append(r.Resources, pack(t, m))
	}
	return r
}

// deltaSay is a response with resources of one type, each of the same version.
func deltaSay(t *testing.T, typeURL, version string, resources ...types.Resource) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, SystemVersionInfo: version, Nonce: "n" + version}
	for _, m := range resources {
		a := pack(t, m)
		msg, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		name, _ := nameOf(msg)
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: a})
	}
	return r
}

// garbage is a resource of a type that cannot be decoded.
func garbage(typeURL string) *anypb.Any {
	return &anypb.Any{TypeUrl: typeURL, Value: []byte{0xff, 0xff}}
}

// wantsEach is a consumer that wants the assignment of every cluster.
func wantsEach() *recorder {
	return &recorder{onCDS: func(r *recorder, names []string) { r.wanted = slices.Clone(names) }}
}

// state returns a resource's state, or a zero one.
func state(s *Server, typ, name string) ResourceState {
	for _, r := range s.Resources() {
		if r.Type == typ && r.Name == name {
			return r
		}
	}
	return ResourceState{}
}

// holds waits until a resource is in a state.
func holds(t *testing.T, s *Server, typ, name string, want State) ResourceState {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %q is %s", typ, name, want), func() bool { return state(s, typ, name).State == want })
	return state(s, typ, name)
}

// noneLeft checks that no goroutine of the client is left.
func noneLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 8<<20)
	own := func() string {
		for _, g := range bytes.Split(buf[:runtime.Stack(buf, true)], []byte("\n\n")) {
			for _, f := range []string{"xds.(*Server).", "xds.(*session).", "xds.receive(", "grpc.(*addrConn)", "grpc.newClientStream"} {
				if bytes.Contains(g, []byte(f)) {
					return string(g)
				}
			}
		}
		return ""
	}
	deadline := time.Now().Add(10 * time.Second)
	for own() != "" {
		if time.Now().After(deadline) {
			t.Fatalf("a goroutine is left:\n%s", own())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// run runs a source; the function that it returns ends it, and returns when it has
// ended.
func run(t *testing.T, s Source, c Consumer) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, c) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("run does not end")
		}
	}
	t.Cleanup(end)
	return end
}

// contains tells whether a text has all parts.
func contains(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
}
