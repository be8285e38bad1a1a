// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "kmesh/helper/api/v1"
)

// requests answers with err, a trace after two packets; with nil until it is ended.
type requests struct {
	err   error
	ended chan error
}

func (r requests) Explain(context.Context, *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error) {
	return &apiv1.ExplainResponse{Service: "s"}, r.err
}

func (r requests) Trace(ctx context.Context, _ *apiv1.TraceRequest, send func(*apiv1.TraceRecord) error) error {
	for i := range 2 {
		if err := send(&apiv1.TraceRecord{Seq: uint32(i)}); err != nil {
			return err
		}
	}
	if r.err != nil {
		return r.err
	}
	<-ctx.Done()
	r.ended <- ctx.Err()
	return ctx.Err()
}

func client(t *testing.T, opts Options) apiv1.KmeshClient {
	t.Helper()
	opts.Socket, opts.Source = filepath.Join(t.TempDir(), "s"), fake{}
	s, err := Listen(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := grpc.NewClient("unix:"+opts.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return apiv1.NewKmeshClient(conn)
}

// receive reads a trace to its end.
func receive(ctx context.Context, c apiv1.KmeshClient) (n int, err error) {
	stream, err := c.Trace(ctx, &apiv1.TraceRequest{})
	if err != nil {
		return 0, err
	}
	for ; ; n++ {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// Every question has the code of its error: the caller's own mistake, or the helper's.
func TestRequestCodes(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts Options
		want codes.Code
	}{
		{"no answers", Options{}, codes.Unimplemented},
		{"not found", Options{Requests: requests{err: status.Error(codes.NotFound, "x")}}, codes.NotFound},
		{"invalid", Options{Requests: requests{err: status.Error(codes.InvalidArgument, "x")}}, codes.InvalidArgument},
		{"broken", Options{Requests: requests{err: errors.New("x")}}, codes.Internal},
		{"too late", Options{Requests: requests{err: context.DeadlineExceeded}}, codes.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			c := client(t, tt.opts)
			_, err1 := c.Explain(ctx, &apiv1.ExplainRequest{})
			_, err2 := receive(ctx, c)
			for i, err := range []error{err1, err2} {
				if status.Code(err) != tt.want {
					t.Errorf("question %d: %v, want %v", i, err, tt.want)
				}
			}
		})
	}
}

// A trace ends when its caller goes.
func TestTraceEnds(t *testing.T) {
	r := requests{ended: make(chan error, 1)}
	c := client(t, Options{Requests: r})
	if got, err := c.Explain(context.Background(), &apiv1.ExplainRequest{}); err != nil || got.Service != "s" {
		t.Errorf("got %v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := c.Trace(ctx, &apiv1.TraceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if rec, err := stream.Recv(); err != nil || rec.Seq != uint32(i) {
			t.Fatalf("packet %d: %v, %v", i, rec, err)
		}
	}
	cancel()
	select {
	case err := <-r.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the helper still traces")
	}
}
