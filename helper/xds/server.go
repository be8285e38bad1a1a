// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

const (
	// maxMessage bounds one response: a whole mesh comes in one.
	maxMessage = 200 << 20
	// A stream that is half open is found out within keepaliveTime and
	// keepaliveTimeout together.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// ServerOptions configure an ADS server as a source.
type ServerOptions struct {
	// Target is HOST:PORT. The connection is plain text.
	Target string
	// Node says who asks; its id must not be empty.
	Node *corev3.Node
	// BackoffBase and BackoffMax bound the waits between streams; 100 ms and 15 s
	// if zero.
	BackoffBase, BackoffMax time.Duration
	// AbsentAfter is when a resource that was asked for by name and has not come
	// counts as one that does not exist; 15 s if zero.
	AbsentAfter time.Duration
	Logger      *slog.Logger
}

// Server is the source that speaks ADS, state of the world.
type Server struct {
	opts ServerOptions
	log  *slog.Logger

	// Only Run's goroutine uses these. They outlive streams.
	versions map[string]string // the last accepted, by type
	received map[named]bool    // what was asked for by name, has come and is still wanted

	mu     sync.Mutex
	status Status
	types  map[string]*TypeStatus
	nacks  map[string][]mesh.Verdict
	down   []mesh.Verdict
}

var _ Source = (*Server)(nil)

// NewServer makes the source; it does no I/O.
func NewServer(opts ServerOptions) (*Server, error) {
	if _, _, err := net.SplitHostPort(opts.Target); err != nil {
		return nil, fmt.Errorf("xds server %q: %w: give HOST:PORT", opts.Target, err)
	}
	if opts.Node.GetId() == "" {
		return nil, errors.New("xds server: the node id is empty: servers refuse that")
	}
	if opts.BackoffBase <= 0 {
		opts.BackoffBase = 100 * time.Millisecond
	}
	if opts.BackoffMax <= 0 {
		opts.BackoffMax = 15 * time.Second
	}
	if opts.AbsentAfter <= 0 {
		opts.AbsentAfter = 15 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	return &Server{
		opts:     opts,
		log:      opts.Logger.With("xds", opts.Target),
		versions: map[string]string{},
		received: map[named]bool{},
		types:    map[string]*TypeStatus{},
		nacks:    map[string][]mesh.Verdict{},
		status:   Status{Source: opts.Target, Since: time.Now()},
	}, nil
}

// Status implements Source.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	out.Problems = slices.Clone(s.down)
	var names []string
	for name := range s.types {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out.Types = append(out.Types, *s.types[name])
		out.Problems = append(out.Problems, s.nacks[name]...)
	}
	return out
}

// Run keeps a stream to the server until ctx ends. When it is down, everything
// that was delivered stays.
func (s *Server) Run(ctx context.Context, c Consumer) error {
	conn, err := grpc.NewClient(s.opts.Target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		// The waits between streams are ours: the connection's own must not add
		// minutes to them.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: s.opts.BackoffBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: s.opts.BackoffMax},
			MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return fmt.Errorf("xds server %s: %w", s.opts.Target, err)
	}
	defer conn.Close()
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	wait := backoff{base: s.opts.BackoffBase, max: s.opts.BackoffMax}
	for {
		conn.ResetConnectBackoff()
		answered, err := s.session(ctx, client, c)
		if ctx.Err() != nil {
			return nil
		}
		if answered {
			// It worked: servers end long streams on purpose.
			wait.reset()
		}
		if status.Code(err) == codes.ResourceExhausted {
			wait.harder()
		}
		delay := wait.delay()
		s.lost(err)
		s.log.Warn("stream ended, everything stays as it is", "err", err, "again_in", delay.Round(time.Millisecond))
		if sleep(ctx, delay) != nil {
			return nil
		}
	}
}

// session runs one stream; it tells whether the server has answered anything.
func (s *Server) session(parent context.Context, client discoveryv3.AggregatedDiscoveryServiceClient, c Consumer) (answered bool, err error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	raw, err := client.StreamAggregatedResources(ctx)
	if err != nil {
		return false, fmt.Errorf("open stream: %w", err)
	}
	st := newStream(s, raw, c)
	if err := st.begin(); err != nil && !errors.Is(err, io.EOF) { // io.EOF: Recv says why
		return false, err
	}
	// One response at a time: the next is not read before this one is applied.
	type received struct {
		resp *discoveryv3.DiscoveryResponse
		err  error
	}
	incoming := make(chan received)
	go func() {
		for {
			resp, err := raw.Recv()
			select {
			case incoming <- received{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if at, ok := st.next(); ok {
			timer.Reset(max(time.Until(at), 0))
		} else {
			timer.Reset(time.Hour)
		}
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case <-timer.C:
			now := time.Now()
			st.absences(now)
			if err := st.late(now); err != nil && !errors.Is(err, io.EOF) {
				return answered, err
			}
		case in := <-incoming:
			if in.err != nil {
				return answered, in.err
			}
			if !answered {
				answered = true
				s.up()
			}
			if err := st.handle(ctx, in.resp); err != nil && !errors.Is(err, io.EOF) { // io.EOF: Recv says why
				return answered, err
			}
		}
	}
}

// up records that the server answers.
func (s *Server) up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Connected, s.status.Since = true, time.Now()
	s.down = nil
}

// lost records that the stream is down.
func (s *Server) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected {
		s.status.Connected, s.status.Since = false, time.Now()
	}
	msg := "the stream ended"
	if err != nil && !errors.Is(err, io.EOF) {
		msg = err.Error()
	}
	s.down = []mesh.Verdict{{Source: s.opts.Target, Class: mesh.Invalid,
		Message: "not connected, the last good state stays: " + msg}}
}

// note records what became of a response.
func (s *Server) note(typeURL, version string, resources int, problems []mesh.Verdict, rejected string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.types[typeURL]
	if t == nil {
		t = &TypeStatus{Type: short(typeURL)}
		s.types[typeURL] = t
	}
	s.status.LastUpdate = time.Now()
	t.Resources, t.LastError = resources, rejected
	s.nacks[typeURL] = problems
	if rejected != "" {
		t.Rejected++
		return
	}
	t.Accepted++
	t.Version = version
}

// node is sent with the first request of a stream only.
func (s *Server) node() *corev3.Node {
	return proto.CloneOf(s.opts.Node)
}

// sameNames compares two sorted lists.
func sameNames(a, b []string) bool { return slices.Equal(a, b) }

// trim keeps an error text short enough for a request.
func trim(msg string) string {
	const most = 4096
	if len(msg) <= most {
		return msg
	}
	return strings.ToValidUTF8(msg[:most], "") + " ..."
}
