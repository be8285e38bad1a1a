// SPDX-License-Identifier: Apache-2.0

package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// sotw is a stream of the state of the world.
type sotw struct {
	raw  grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	node *corev3.Node // nil once it was sent
}

func (w *sotw) recv() (*response, error) {
	raw, err := w.raw.Recv()
	if err != nil {
		return nil, err
	}
	return sotwResponse(raw), nil
}

// sotwResponse reads a response; it shares what it can.
func sotwResponse(raw *discoveryv3.DiscoveryResponse) *response {
	out := &response{typeURL: raw.GetTypeUrl(), version: raw.GetVersionInfo(), nonce: raw.GetNonce(), errors: raw.GetResourceErrors(), full: true}
	for _, a := range raw.GetResources() {
		it := unpack(a)
		it.version = raw.GetVersionInfo()
		out.items = append(out.items, it)
	}
	return out
}

func (w *sotw) send(req proto.Message) error {
	q := req.(*discoveryv3.DiscoveryRequest)
	q.Node, w.node = w.node, nil
	return w.raw.Send(q)
}

func (w *sotw) everything(t *table) proto.Message {
	return &discoveryv3.DiscoveryRequest{TypeUrl: t.typ.URL, VersionInfo: t.current()}
}

func (w *sotw) subscribe(t *table, sub *subscription, names []string) proto.Message {
	version := t.current()
	if sub.nonce == "" && !t.whole(names) {
		// On a new stream a version claims that everything named is known. It is
		// not: ask for all of it.
		version = ""
	}
	return &discoveryv3.DiscoveryRequest{TypeUrl: t.typ.URL, ResourceNames: names, VersionInfo: version, ResponseNonce: sub.nonce}
}

func (w *sotw) answer(t *table, sub *subscription, resp *response, detail string) proto.Message {
	req := &discoveryv3.DiscoveryRequest{TypeUrl: resp.typeURL, ResponseNonce: resp.nonce, ErrorDetail: nack(detail)}
	if t != nil {
		// An answer with fewer names would be a request for fewer.
		req.VersionInfo, req.ResourceNames = t.current(), sub.names
	}
	return req
}
