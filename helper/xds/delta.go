// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// delta is a stream of differences.
type delta struct {
	raw  grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	node *corev3.Node // nil once it was sent
}

func (w *delta) recv() (*response, error) {
	raw, err := w.raw.Recv()
	if err != nil {
		return nil, err
	}
	return deltaResponse(raw), nil
}

// deltaResponse reads a response; it shares what it can.
func deltaResponse(raw *discoveryv3.DeltaDiscoveryResponse) *response {
	out := &response{typeURL: raw.GetTypeUrl(), version: raw.GetSystemVersionInfo(), nonce: raw.GetNonce(), errors: raw.GetResourceErrors(),
		removed: slices.Clone(raw.GetRemovedResources())}
	for _, n := range raw.GetRemovedResourceNames() {
		out.removed = append(out.removed, n.GetName())
	}
	for _, r := range raw.GetResources() {
		out.items = append(out.items, opened(r))
	}
	return out
}

func (w *delta) send(req proto.Message) error {
	q := req.(*discoveryv3.DeltaDiscoveryRequest)
	q.Node, w.node = w.node, nil
	return w.raw.Send(q)
}

func (w *delta) everything(t *table) proto.Message {
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.typ.URL, InitialResourceVersions: t.claims()}
}

// subscribe is a request of its own, without a nonce: one with a nonce would be
// ignored if another response is on its way.
func (w *delta) subscribe(t *table, sub *subscription, names []string) proto.Message {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.typ.URL}
	for _, n := range names {
		if _, had := slices.BinarySearch(sub.names, n); !had {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, n)
		}
	}
	for _, n := range sub.names {
		if _, still := slices.BinarySearch(names, n); !still {
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, n)
		}
	}
	if !sub.asked {
		req.InitialResourceVersions = t.claims()
	}
	return req
}

func (w *delta) answer(_ *table, _ *subscription, resp *response, detail string) proto.Message {
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.typeURL, ResponseNonce: resp.nonce, ErrorDetail: nack(detail)}
}
