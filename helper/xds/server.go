// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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
	// maxUnsettled bounds the list in the status.
	maxUnsettled = 1000
)

// ServerOptions configure ADS servers as a source.
type ServerOptions struct {
	// Targets are HOST:PORT of the servers, the preferred one first. All of them have
	// the same mesh: one is used at a time, and the next only while those before it do
	// not answer.
	Targets []string
	// Protocol is Delta if empty.
	Protocol Protocol
	// Types are what is asked for, in the order in which they depend on each other;
	// EnvoyTypes if empty.
	Types []Type
	// Node says who asks; its id must not be empty.
	Node *corev3.Node
	// TLS encrypts; nil is plain text.
	TLS *TLS
	// TokenFile holds a bearer token, which is read anew for every stream. It needs
	// TLS.
	TokenFile string
	// Headers are sent with every stream ("clusterid").
	Headers map[string]string
	// BackoffBase and BackoffMax bound the waits between streams; 100 ms and 15 s
	// if zero.
	BackoffBase, BackoffMax time.Duration
	// AbsentAfter is when a resource that was asked for by name and has not come
	// counts as one that does not exist; 15 s if zero.
	AbsentAfter time.Duration
	// AnswerWithin is how long a server has for its first response before another one
	// is tried, if there is one; 30 s if zero.
	AnswerWithin time.Duration
	// FallbackAfter is how long the server in use may be away before another one takes
	// its place; 10 s if zero. Before there is anything to serve, it is not waited for.
	FallbackAfter time.Duration
	// Keepalive is the time between two signs of life on an idle connection; 30 s if
	// zero, and never less than the 10 s of the gRPC library.
	Keepalive time.Duration
	// MaxMessage is the largest response, in bytes; 200 MiB if zero.
	MaxMessage int
	// Pool has the connections, which other Servers share. TLS, TokenFile, Keepalive and
	// MaxMessage are its own then, and must be left out here. Nil: the connections are
	// this Server's alone.
	Pool   *Pool
	Logger *slog.Logger
}

// OptionError is an option that cannot be used.
type OptionError struct {
	Option string // the field of ServerOptions or PoolOptions: "Targets", "TLS.RootsFile"
	Err    error
}

// Error implements error.
func (e *OptionError) Error() string { return "xds server: " + e.Option + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *OptionError) Unwrap() error { return e.Err }

// complete checks the options and fills in what was left out.
func (o *ServerOptions) complete() error {
	bad := func(option, format string, args ...any) error {
		return &OptionError{option, fmt.Errorf(format, args...)}
	}
	if len(o.Targets) == 0 {
		return bad("Targets", "there is none: give HOST:PORT")
	}
	seen := map[string]bool{}
	for _, target := range o.Targets {
		host, port, err := net.SplitHostPort(target)
		switch {
		case err != nil:
			return bad("Targets", "%q: %w: give HOST:PORT", target, err)
		case host == "" || port == "" || strings.ContainsAny(target, "/ "):
			return bad("Targets", "%q has no host, no port, or more than those: give HOST:PORT", target)
		case seen[target]:
			return bad("Targets", "%q is given twice: give each server once", target)
		}
		seen[target] = true
	}
	switch o.Protocol {
	case "":
		o.Protocol = Delta
	case Delta, SotW:
	default:
		return bad("Protocol", "%q is not known: use %s or %s", o.Protocol, Delta, SotW)
	}
	if o.Node.GetId() == "" {
		return bad("Node", "the node id is empty: servers refuse that")
	}
	if err := o.completeTypes(); err != nil {
		return err
	}
	if err := o.completeConnection(); err != nil {
		return err
	}
	fill(&o.BackoffBase, 100*time.Millisecond)
	fill(&o.BackoffMax, 15*time.Second)
	fill(&o.AbsentAfter, 15*time.Second)
	fill(&o.AnswerWithin, 30*time.Second)
	fill(&o.FallbackAfter, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// connection is what of the options holds for a connection.
func (o *ServerOptions) connection() PoolOptions {
	return PoolOptions{TLS: o.TLS, TokenFile: o.TokenFile, Keepalive: o.Keepalive, MaxMessage: o.MaxMessage,
		BackoffBase: o.BackoffBase, BackoffMax: o.BackoffMax, Logger: o.Logger}
}

// completeConnection checks what holds for a connection: it is given here, or is the
// pool's.
func (o *ServerOptions) completeConnection() error {
	if o.Pool == nil {
		c := o.connection()
		return c.complete()
	}
	own := ""
	switch {
	case o.TLS != nil:
		own = "TLS"
	case o.TokenFile != "":
		own = "TokenFile"
	case o.Keepalive != 0:
		own = "Keepalive"
	case o.MaxMessage != 0:
		own = "MaxMessage"
	default:
		return nil
	}
	return &OptionError{own, errors.New("is the pool's: give it to NewPool, or give no Pool")}
}

// completeTypes does so for the types.
func (o *ServerOptions) completeTypes() error {
	if len(o.Types) == 0 {
		o.Types = EnvoyTypes()
	}
	seen, all := map[string]bool{}, false
	for _, t := range o.Types {
		switch {
		case !strings.HasPrefix(t.URL, typePrefix) || t.URL == typePrefix:
			return &OptionError{"Types", fmt.Errorf("%q does not begin with %q", t.URL, typePrefix)}
		case t.Decode == nil:
			return &OptionError{"Types", fmt.Errorf("%s has no decoder", t.URL)}
		case seen[t.URL]:
			return &OptionError{"Types", fmt.Errorf("%s is given twice", t.URL)}
		}
		seen[t.URL], all = true, all || !t.ByName
	}
	if !all {
		return &OptionError{"Types", errors.New("all are asked for by name: one has to tell whether the server answers")}
	}
	return nil
}

// Server is the source that speaks ADS.
type Server struct {
	opts ServerOptions
	log  *slog.Logger

	// tables outlive streams. Only Run's goroutine changes them, under mu.
	tables map[string]*table
	// answered: a server has, since the beginning.
	answered bool

	mu     sync.Mutex
	status Status
	// down, unasked and fallback are problems: of the stream, of responses of types
	// that were not asked for, of preferred servers.
	down, unasked, fallback []mesh.Verdict
}

var _ Source = (*Server)(nil)

// NewServer makes the source; it does no I/O. What is wrong with the options is an
// *OptionError.
func NewServer(opts ServerOptions) (*Server, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		opts:   opts,
		log:    opts.Logger.With("xds", string(opts.Protocol)),
		tables: map[string]*table{},
		status: Status{Source: opts.Targets[0], Since: time.Now()},
	}
	for _, t := range opts.Types {
		s.tables[t.URL] = newTable(t)
	}
	return s, nil
}

// Status implements Source.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	out.Problems = append(out.Problems, s.down...)
	out.Problems = append(out.Problems, s.fallback...)
	out.Problems = append(out.Problems, s.unasked...)
	for _, t := range s.sorted() {
		if t.accepted+t.rejected > 0 || len(t.entries) > 0 {
			out.Types = append(out.Types, t.status())
		}
		out.Problems = append(out.Problems, t.problems()...)
		out.Unsettled = append(out.Unsettled, t.resources(func(e *entry) bool { return e.state != Acked })...)
	}
	out.Unsettled = out.Unsettled[:min(len(out.Unsettled), maxUnsettled)]
	return out
}

// Resources tells of every resource that was asked for or has come, by type and
// name.
func (s *Server) Resources() []ResourceState {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ResourceState
	for _, t := range s.sorted() {
		out = append(out, t.resources(func(*entry) bool { return true })...)
	}
	return out
}

// locked changes what Status reads.
func (s *Server) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// up records that a server answers.
func (s *Server) up(p *peer) {
	s.answered = true
	p.wait.reset()
	s.log.Info("the server answers", "server", p.target)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Source = p.target
	s.status.Connected, s.status.Since = true, time.Now()
	s.down, s.unasked = nil, nil
}

// heard records that something was delivered; mu is held.
func (s *Server) heard() { s.status.LastUpdate = time.Now() }

// lost records that the stream to a server is down.
func (s *Server) lost(target string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected {
		s.status.Connected, s.status.Since = false, time.Now()
	}
	msg := "the stream ended"
	if err != nil && !errors.Is(err, io.EOF) {
		msg = trim(err.Error(), maxReason*2)
	}
	s.down = []mesh.Verdict{{Source: target, Class: mesh.Invalid,
		Message: "not connected, the last good state stays: " + msg + remedy(s.opts.Protocol, err)}}
}

// node is sent with the first request of a stream only.
func (s *Server) node() *corev3.Node {
	return proto.CloneOf(s.opts.Node)
}

// Run keeps a stream to one of the servers until ctx ends. When it is down,
// everything that was delivered stays.
func (s *Server) Run(ctx context.Context, c Consumer) error {
	peers, hangUp, err := s.dial()
	if err != nil {
		return err
	}
	defer hangUp()
	now := 0                // the peer in use
	away := time.Time{}     // since when it has not answered
	tried := map[int]bool{} // those that have not answered since one did
	for ctx.Err() == nil {
		p := peers[now]
		p.conn.ResetConnectBackoff()
		answered, better, err := s.watched(ctx, peers, now, c)
		if ctx.Err() != nil {
			return nil
		}
		if better >= 0 {
			s.log.Info("a preferred server answers", "server", peers[better].target)
			now, away = better, time.Time{}
			clear(tried)
			continue
		}
		s.lost(p.target, err)
		if answered || away.IsZero() {
			away = time.Now()
		}
		if answered {
			clear(tried)
		} else {
			tried[now] = true
		}
		delay := p.delay(err)
		// A short absence is no reason to ask a server that may know less.
		if !answered && (!s.answered || time.Since(away) >= s.opts.FallbackAfter) {
			var again bool
			if now, again = untried(peers, tried); again {
				clear(tried)
			} else {
				delay = 0
			}
		}
		s.log.Warn("stream ended, everything stays as it is", "server", p.target, "err", err, "next", peers[now].target, "in", delay.Round(time.Millisecond))
		if sleep(ctx, delay) != nil {
			return nil
		}
	}
	return nil
}
