// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Protocol is one of the two ways to speak ADS.
type Protocol string

// The protocols.
const (
	// Delta: the server sends what has changed, and what was removed.
	Delta Protocol = "delta"
	// SotW, state of the world: the server sends everything again.
	SotW Protocol = "sotw"
)

// response is a response of either protocol.
type response struct {
	typeURL, version, nonce string
	items                   []item
	removed                 []string
	errors                  []*discoveryv3.ResourceError
	// full: the items are all that there are, where everything was asked for.
	full bool
}

// item is one resource as it was sent.
type item struct {
	name    string // in the envelope; empty if there is none
	version string
	packed  *anypb.Any
	// heartbeat: only its time to live was sent. Nothing here ends with its time to
	// live: what was positively heard stays.
	heartbeat bool
	err       error // the envelope cannot be opened
}

// wire is one stream, in one of the protocols. One goroutine receives, one sends.
type wire interface {
	recv() (*response, error)
	// send sends a request; the first of a stream says who asks.
	send(req proto.Message) error
	// everything asks for all resources of a type, the first time on a stream.
	everything(t *table) proto.Message
	// subscribe changes which names are asked for, from sub's to these.
	subscribe(t *table, sub *subscription, names []string) proto.Message
	// answer is the ACK of a response, or, with a detail, the NACK.
	answer(t *table, sub *subscription, resp *response, detail string) proto.Message
}

// subscription is what one stream has asked for of one type.
type subscription struct {
	asked bool
	names []string // sorted; of a type that is asked for by name
	// wanted is what the consumer wanted then.
	wanted []string
	nonce  string // the last one
}

// open opens a stream.
func open(ctx context.Context, p Protocol, client discoveryv3.AggregatedDiscoveryServiceClient, node *corev3.Node) (wire, error) {
	if p == SotW {
		raw, err := client.StreamAggregatedResources(ctx)
		if err != nil {
			return nil, fmt.Errorf("open stream: %w", err)
		}
		return &sotw{raw: raw, node: node}, nil
	}
	raw, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, fmt.Errorf("open delta stream: %w", err)
	}
	return &delta{raw: raw, node: node}, nil
}

// nack is the detail of a NACK; nil of an ACK.
func nack(detail string) *status.Status {
	if detail == "" {
		return nil
	}
	return &status.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(detail, "?")}
}

// askable parts what can be asked for by name from what would mean all, or none.
// Both are sorted, and have no name twice.
func askable(wanted []string) (names, not []string) {
	for _, n := range slices.Compact(slices.Sorted(slices.Values(wanted))) {
		if n == "" || n == "*" {
			not = append(not, n)
		} else {
			names = append(names, n)
		}
	}
	return names, not
}

// unpack opens the envelope that servers may also use where the protocol has none.
func unpack(a *anypb.Any) item {
	envelope := &discoveryv3.Resource{}
	if !a.MessageIs(envelope) {
		return item{packed: a}
	}
	if err := a.UnmarshalTo(envelope); err != nil {
		return item{err: fmt.Errorf("decode envelope: %w", err)}
	}
	return opened(envelope)
}

// opened is what an envelope holds.
func opened(r *discoveryv3.Resource) item {
	it := item{name: r.GetName(), version: r.GetVersion(), packed: r.GetResource()}
	if it.name == "" {
		it.name = r.GetResourceName().GetName()
	}
	if it.packed == nil {
		it.heartbeat = r.GetTtl() != nil && it.name != ""
		if !it.heartbeat {
			it.err = fmt.Errorf("envelope %q is empty", it.name)
		}
		return it
	}
	if inner := unpack(it.packed); inner.packed != it.packed { // an envelope in an envelope
		it.packed, it.err = inner.packed, inner.err
		if it.err == nil && it.packed == nil {
			it.err = fmt.Errorf("envelope %q is empty", it.name)
		}
	}
	return it
}
