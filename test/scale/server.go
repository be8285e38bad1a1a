// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// adsAddr is where the server listens, in the node's network namespace.
const adsAddr = "127.0.0.1:15010"

// The workload API's types, of which there is nothing here. Whoever follows scopes asks for them.
var workloadTypes = []string{"type.googleapis.com/istio.workload.Address", "type.googleapis.com/istio.security.Authorization"}

// resource is what a cache holds.
type resource = types.Resource

// server is go-control-plane's ADS server over one linear cache for each type and view: what it sends for a change is
// what has changed.
type server struct {
	grpc  *grpc.Server
	mux   *cachev3.MuxCache
	views []string
	// sent counts what went to clients, in bytes.
	sent atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
	last  time.Time // when the newest response was handed over to be sent
}

// newServer makes one with a view for each name that view gives a client.
func newServer(view func(*discoveryv3.DeltaDiscoveryRequest) string, views []string) *server {
	s := &server{views: views, conns: make(map[net.Conn]bool)}
	s.mux = &cachev3.MuxCache{
		ClassifyDelta: func(r *cachev3.DeltaRequest) string {
			for _, t := range workloadTypes {
				if r.GetTypeUrl() == t {
					return t
				}
			}
			return view(r) + " " + r.GetTypeUrl()
		},
		Caches: make(map[string]cachev3.Cache),
	}
	for _, t := range workloadTypes {
		s.mux.Caches[t] = cachev3.NewLinearCache(t)
	}
	for _, v := range views {
		for _, t := range []string{resourcev3.ListenerType, resourcev3.ClusterType, resourcev3.EndpointType, resourcev3.RouteType} {
			s.mux.Caches[v+" "+t] = cachev3.NewLinearCache(t)
		}
	}
	return s
}

// cache is that of a view's type.
func (s *server) cache(view, typeURL string) *cachev3.LinearCache {
	return s.mux.Caches[view+" "+typeURL].(*cachev3.LinearCache)
}

// load gives a view a whole world.
func (s *server) load(view string, clusters, assignments map[string]types.Resource, listener, routes types.Resource) {
	s.cache(view, resourcev3.ClusterType).SetResources(clusters)
	s.cache(view, resourcev3.EndpointType).SetResources(assignments)
	s.cache(view, resourcev3.ListenerType).SetResources(map[string]types.Resource{"0.0.0.0_80": listener})
	s.cache(view, resourcev3.RouteType).SetResources(map[string]types.Resource{routesName: routes})
}

// start listens; in runs a function in the node's network namespace.
func (s *server) start(in func(func() error) error) error {
	var l net.Listener
	if err := in(func() (err error) {
		l, err = net.Listen("tcp", adsAddr)
		return err
	}); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	s.grpc = grpc.NewServer()
	callbacks := serverv3.CallbackFuncs{StreamDeltaResponseFunc: func(int64, *discoveryv3.DeltaDiscoveryRequest, *discoveryv3.DeltaDiscoveryResponse) {
		s.mu.Lock()
		s.last = time.Now()
		s.mu.Unlock()
	}}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, serverv3.NewServer(context.Background(), s.mux, callbacks))
	go func() { _ = s.grpc.Serve(&countedListener{l, s}) }()
	return nil
}

// lastSent is when the newest response was handed over to be sent.
func (s *server) lastSent() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// cut closes every connection; the server goes on.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// countedListener counts what is written into its connections.
type countedListener struct {
	net.Listener
	s *server
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	counted := &countedConn{c, l.s}
	l.s.mu.Lock()
	l.s.conns[counted] = true
	l.s.mu.Unlock()
	return counted, nil
}

type countedConn struct {
	net.Conn
	s *server
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.s.sent.Add(int64(n))
	return n, err
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	// Not under the lock that cut holds.
	go func() {
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
	}()
	return err
}
