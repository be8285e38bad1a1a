// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
)

// Requests follows requests and packets. Its methods may be called at once from several
// goroutines.
type Requests interface {
	Explain(ctx context.Context, in *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error)
	// Trace calls send for every packet until ctx ends, send fails, or there is
	// nothing left to trace.
	Trace(ctx context.Context, in *apiv1.TraceRequest, send func(*apiv1.TraceRecord) error) error
}

func (s service) Explain(ctx context.Context, in *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error) {
	if s.requests == nil {
		return s.UnimplementedKmeshServer.Explain(ctx, in)
	}
	return answer(s.requests.Explain(ctx, in))
}

func (s service) Trace(in *apiv1.TraceRequest, out grpc.ServerStreamingServer[apiv1.TraceRecord]) error {
	if s.requests == nil {
		return s.UnimplementedKmeshServer.Trace(in, out)
	}
	_, err := answer(&apiv1.TraceRecord{}, s.requests.Trace(out.Context(), in, out.Send))
	return err
}
