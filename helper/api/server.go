// SPDX-License-Identifier: Apache-2.0

// Package api serves the operator's view of one node: gRPC on a unix socket.
//
// Two things hold at all times. Only root and the helper's own user are answered:
// the kernel vouches for who is calling (SO_PEERCRED), file modes are the second
// lock. And a socket is never taken away from a helper that lives: its owner holds
// a lock for as long as it serves.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "kmesh/helper/api/v1"
)

// Source has the answers. Its methods may be called at once from several
// goroutines, and what they return is not changed afterwards.
type Source interface {
	Status(ctx context.Context) (*apiv1.StatusResponse, error)
	Pods(ctx context.Context) (*apiv1.PodsResponse, error)
	Services(ctx context.Context) (*apiv1.ServicesResponse, error)
	Xds(ctx context.Context, req *apiv1.XdsRequest) (*apiv1.XdsResponse, error)
	Flows(ctx context.Context, req *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error)
	Routes(ctx context.Context, req *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error)
}

// Options of Listen.
type Options struct {
	// Socket is the path of the unix socket. Its folder is made with mode 0700 when
	// it is missing.
	Socket string
	// Source has the answers.
	Source Source
	// Requests has those that follow requests and packets; nil: such questions are
	// not known.
	Requests Requests
	// Log may be nil.
	Log *slog.Logger
}

// Server holds the socket.
type Server struct {
	log      *slog.Logger
	lock     *os.File
	listener net.Listener
	grpc     *grpc.Server
}

// grace is how long answers under way may take after the end was asked for.
const grace = time.Second

// Listen takes the socket; Run answers on it. One of Run and Close must follow.
func Listen(opts Options) (*Server, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	lock, listener, err := listen(opts.Socket)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	s := &Server{log: opts.Log, lock: lock, listener: listener}
	s.grpc = grpc.NewServer(grpc.Creds(peerCredentials{
		allow: []uint32{0, uint32(os.Geteuid())},
		refused: func(uid uint32, pid int32) {
			s.log.Warn("api: refused a caller of another user", "uid", uid, "pid", pid)
		},
	}))
	apiv1.RegisterKmeshServer(s.grpc, service{source: opts.Source, requests: opts.Requests})
	return s, nil
}

// Run answers until ctx ends, then lets answers under way finish for a moment. It
// returns nil when it ended because of ctx.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving the api: %w", err)
	case <-ctx.Done():
	}
	hurry := time.AfterFunc(grace, s.grpc.Stop)
	defer hurry.Stop()
	s.grpc.GracefulStop()
	<-served
	return nil
}

// Close gives the socket back. It may be called more than once.
func (s *Server) Close() {
	s.grpc.Stop()
	s.listener.Close() // removes the socket, while the lock is still held
	s.lock.Close()
}

// service adapts a Source to the generated interface.
type service struct {
	apiv1.UnimplementedKmeshServer
	source   Source
	requests Requests
}

func (s service) Status(ctx context.Context, _ *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	return answer(s.source.Status(ctx))
}

func (s service) Pods(ctx context.Context, _ *apiv1.PodsRequest) (*apiv1.PodsResponse, error) {
	return answer(s.source.Pods(ctx))
}

func (s service) Services(ctx context.Context, _ *apiv1.ServicesRequest) (*apiv1.ServicesResponse, error) {
	return answer(s.source.Services(ctx))
}

func (s service) Xds(ctx context.Context, req *apiv1.XdsRequest) (*apiv1.XdsResponse, error) {
	return answer(s.source.Xds(ctx, req))
}

func (s service) Flows(ctx context.Context, req *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error) {
	return answer(s.source.Flows(ctx, req))
}

func (s service) Routes(ctx context.Context, req *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error) {
	return answer(s.source.Routes(ctx, req))
}

// answer gives an error the code that callers can tell apart: their own deadline
// and their own mistake from a failure of the helper.
func answer[T any](response *T, err error) (*T, error) {
	switch {
	case err == nil && response == nil:
		return nil, status.Error(codes.Internal, "no answer")
	case err == nil:
		return response, nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, status.FromContextError(err).Err()
	case status.Code(err) == codes.NotFound, status.Code(err) == codes.InvalidArgument:
		return nil, err
	default:
		return nil, status.Error(codes.Internal, err.Error())
	}
}
