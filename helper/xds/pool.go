// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// PoolOptions are what holds for a connection, whoever has a stream on it.
type PoolOptions struct {
	// TLS encrypts; nil is plain text.
	TLS *TLS
	// TokenFile holds a bearer token, which is read anew for every stream. It needs
	// TLS.
	TokenFile string
	// Keepalive is the time between two signs of life on an idle connection; 30 s if
	// zero, and never less than the 10 s of the gRPC library.
	Keepalive time.Duration
	// MaxMessage is the largest response, in bytes; 200 MiB if zero.
	MaxMessage int
	// BackoffBase and BackoffMax bound the waits between attempts to connect; 100 ms
	// and 15 s if zero.
	BackoffBase, BackoffMax time.Duration
	Logger                  *slog.Logger
}

// complete checks the options and fills in what was left out.
func (o *PoolOptions) complete() error {
	if err := o.TLS.check(); err != nil {
		return err
	}
	if o.TokenFile != "" && o.TLS == nil {
		return &OptionError{"TokenFile", errors.New("a token is not sent in plain text: give the server's roots")}
	}
	fill(&o.Keepalive, keepaliveTime)
	fill(&o.BackoffBase, 100*time.Millisecond)
	fill(&o.BackoffMax, 15*time.Second)
	if o.MaxMessage <= 0 {
		o.MaxMessage = maxMessage
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return nil
}

// fill sets what was left out.
func fill(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

// Pool is the connections that several Servers share, one to each target: each
// Server has streams of its own on them, with its own node. A connection lives as long
// as a running Server uses it.
//
// What holds for a connection, its credentials above all, is the pool's, and no Server
// of it can bring its own: so two Servers can never disagree about whose certificate
// their connection has. (To compare what each brings would not do: certificates come
// from functions, which cannot be compared.)
type Pool struct {
	opts PoolOptions

	mu     sync.Mutex
	dialed []grpc.DialOption // nil before the first connection
	conns  map[string]*shared
}

// shared is one connection, and how many use it.
type shared struct {
	*grpc.ClientConn
	users int
}

// NewPool makes a pool without connections; it does no I/O. What is wrong with the
// options is an *OptionError.
func NewPool(opts PoolOptions) (*Pool, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	return &Pool{opts: opts, conns: map[string]*shared{}}, nil
}

// take returns the connection to a target, for release to give back; it connects when
// it is used.
func (p *Pool) take(target string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[target]; c != nil {
		c.users++
		return c.ClientConn, nil
	}
	if p.dialed == nil {
		options, err := p.dialing()
		if err != nil {
			return nil, err
		}
		p.dialed = options
	}
	conn, err := grpc.NewClient(target, p.dialed...)
	if err != nil {
		return nil, &OptionError{"Targets", fmt.Errorf("%q: %w", target, err)}
	}
	p.conns[target] = &shared{conn, 1}
	return conn, nil
}

// release gives a connection back; the last user's closes it.
func (p *Pool) release(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.conns[target]
	if c.users--; c.users == 0 {
		delete(p.conns, target)
		_ = c.Close()
	}
}

// dialing is how connections are made. The files are read once, so that wrong ones are
// found at the start.
func (p *Pool) dialing() ([]grpc.DialOption, error) {
	transport := insecure.NewCredentials()
	if p.opts.TLS != nil {
		var err error
		if transport, err = newTransport(*p.opts.TLS, p.opts.Logger); err != nil {
			return nil, err
		}
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(p.opts.MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: p.opts.Keepalive, Timeout: keepaliveTimeout}),
		// The waits between streams are ours: the connection's own must not add
		// minutes to them.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: p.opts.BackoffBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: p.opts.BackoffMax},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	if p.opts.TLS != nil && p.opts.TLS.ServerName != "" {
		// The name that is verified is also the one that the server is called by.
		options = append(options, grpc.WithAuthority(p.opts.TLS.ServerName))
	}
	if p.opts.TokenFile != "" {
		t := token{p.opts.TokenFile}
		if _, err := t.read(); err != nil {
			return nil, &OptionError{"TokenFile", err}
		}
		options = append(options, grpc.WithPerRPCCredentials(credentials.PerRPCCredentials(t)))
	}
	return options, nil
}
