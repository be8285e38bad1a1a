// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"kmesh/helper/mesh"
)

// peer is one of the servers.
type peer struct {
	target string
	conn   *grpc.ClientConn
	client discoveryv3.AggregatedDiscoveryServiceClient
	wait   backoff
}

// dial takes the connections to all servers; they connect when they are used. hangUp
// gives them back.
func (s *Server) dial() (peers []*peer, hangUp func(), err error) {
	pool := s.opts.Pool
	if pool == nil { // one of its own
		if pool, err = NewPool(s.opts.connection()); err != nil {
			return nil, nil, err
		}
	}
	hangUp = func() {
		for _, p := range peers {
			pool.release(p.target)
		}
	}
	for _, target := range s.opts.Targets {
		conn, err := pool.take(target)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		peers = append(peers, &peer{target: target, conn: conn, client: discoveryv3.NewAggregatedDiscoveryServiceClient(conn),
			wait: backoff{base: s.opts.BackoffBase, max: s.opts.BackoffMax}})
	}
	return peers, hangUp, nil
}

// open opens a stream to a server, with the headers.
func (s *Server) open(ctx context.Context, p *peer) (wire, error) {
	if len(s.opts.Headers) > 0 {
		ctx = metadata.NewOutgoingContext(ctx, metadata.New(s.opts.Headers))
	}
	return open(ctx, s.opts.Protocol, p.client, s.node())
}

// delay returns how long to wait after a stream that ended like this.
func (p *peer) delay(err error) time.Duration {
	if status.Code(err) == codes.ResourceExhausted {
		p.wait.harder()
	}
	return p.wait.delay()
}

// untried returns the most preferred server that has not failed since one answered;
// again: all have.
func untried(peers []*peer, tried map[int]bool) (next int, again bool) {
	for i := range peers {
		if !tried[i] {
			return i, false
		}
	}
	return 0, true
}

// watched runs one stream to a server; while that is not the preferred one, those
// before it are asked from time to time whether they answer. The first that does
// ends the stream: better is its number, else -1.
func (s *Server) watched(parent context.Context, peers []*peer, now int, c Consumer) (answered bool, better int, err error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	if now == 0 {
		s.locked(func() { s.fallback = nil })
		answered, err = s.session(ctx, peers[0], c)
		return answered, -1, err
	}
	s.locked(func() {
		s.fallback = []mesh.Verdict{{Source: peers[0].target, Class: mesh.Invalid,
			Message: fmt.Sprintf("does not answer, %s is asked in its place", peers[now].target)}}
	})
	found := make(chan int, 1)
	found <- -1
	done := make(chan struct{})
	go func() {
		defer close(done)
		if i := s.look(ctx, peers[:now]); i >= 0 {
			<-found
			found <- i
			cancel()
		}
	}()
	answered, err = s.session(ctx, peers[now], c)
	cancel()
	<-done
	return answered, <-found, err
}

// look returns the number of the first of the servers that answers, or -1 when ctx
// ends.
func (s *Server) look(ctx context.Context, peers []*peer) int {
	for {
		step := s.opts.BackoffMax
		if sleep(ctx, step/2+rand.N(step/2+1)) != nil {
			return -1
		}
		for i, p := range peers {
			p.conn.ResetConnectBackoff()
			err := s.ask(ctx, p)
			if ctx.Err() != nil {
				return -1
			}
			if err == nil {
				return i
			}
			s.log.Debug("a preferred server does not answer", "server", p.target, "err", err)
		}
	}
}

// ask opens a stream of its own, and waits for an answer to its first request.
func (s *Server) ask(parent context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(parent, s.opts.AnswerWithin)
	defer cancel()
	w, err := s.open(ctx, p)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.opts.Types, func(t Type) bool { return !t.ByName })
	if err := w.send(w.everything(newTable(s.opts.Types[i]))); err != nil {
		return err
	}
	_, err = w.recv()
	return err
}

// sorted are the tables by their types' short names; mu is held.
func (s *Server) sorted() []*table {
	return slices.SortedFunc(maps.Values(s.tables), func(a, b *table) int {
		x, y := short(a.typ.URL), short(b.typ.URL)
		if x == y {
			x, y = a.typ.URL, b.typ.URL
		}
		if x < y {
			return -1
		}
		return 1
	})
}

// remedy is what to do about an error that a setting would avoid.
func remedy(p Protocol, err error) string {
	var tls *OptionError
	switch {
	case status.Code(err) == codes.Unimplemented:
		other := SotW
		if p == SotW {
			other = Delta
		}
		return fmt.Sprintf(" (the server may not speak this protocol: try %s)", other)
	case errors.As(err, &tls), status.Code(err) == codes.Unauthenticated, status.Code(err) == codes.PermissionDenied:
		return " (look at the token and the certificates)"
	}
	return ""
}
