// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"sync/atomic"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/shelf"
)

// A RouteConfiguration holds the routes of many services, and is sent again whole when one
// of them changes. So it is taken apart: what has been decoded and validated of it once is
// known by its bytes. That is done with what is good only; whatever is wrong, the whole
// resource is decoded, for it is the whole in whose words a mistake is told.

// Host is a virtual host as it was sent. It is valid by itself. Equal bytes are one Host,
// as long as anybody holds it.
type Host struct {
	Raw  []byte
	Hash [sha256.Size]byte
	// message is what Raw was decoded to, until it is asked for.
	message atomic.Pointer[routev3.VirtualHost]
}

// hosts are all that anybody holds.
var hosts shelf.Shelf[[sha256.Size]byte, Host]

// HostsField is virtual_hosts in a RouteConfiguration.
const HostsField = protowire.Number(2)

// Message decodes the virtual host.
func (h *Host) Message() (*routev3.VirtualHost, error) {
	if m := h.message.Swap(nil); m != nil {
		return m, nil // the first to ask is mostly the only one
	}
	m := &routev3.VirtualHost{}
	if err := proto.Unmarshal(h.Raw, m); err != nil {
		return nil, fmt.Errorf("decode a virtual host: %w", err)
	}
	return m, nil
}

// hostOf returns the virtual host that has these bytes; nil if it is not valid.
func hostOf(raw []byte) *Host {
	hash := sha256.Sum256(raw)
	if h := hosts.Get(hash); h != nil {
		return h
	}
	m := &routev3.VirtualHost{}
	if proto.Unmarshal(raw, m) != nil || len(validate(m, "")) > 0 {
		return nil
	}
	h := &Host{Raw: slices.Clone(raw), Hash: hash} // the resource is let go
	h.message.Store(m)
	return hosts.Put(hash, h)
}

// apart takes a RouteConfiguration apart into its virtual hosts and the rest; false if it
// has to be decoded whole.
func apart(raw []byte) (rest *routev3.RouteConfiguration, out []*Host, ok bool) {
	var others []byte
	for left := raw; len(left) > 0; {
		num, typ, n := protowire.ConsumeTag(left)
		if n < 0 {
			return nil, nil, false
		}
		size := protowire.ConsumeFieldValue(num, typ, left[n:])
		if size < 0 {
			return nil, nil, false
		}
		field := left[:n+size]
		left = left[n+size:]
		if num != HostsField || typ != protowire.BytesType {
			others = append(others, field...)
			continue
		}
		value, _ := protowire.ConsumeBytes(field[n:])
		h := hostOf(value)
		if h == nil {
			return nil, nil, false
		}
		out = append(out, h)
	}
	rest = &routev3.RouteConfiguration{}
	if proto.Unmarshal(others, rest) != nil || len(validate(rest, "")) > 0 {
		return nil, nil, false
	}
	return rest, slices.Clip(out), true
}

// decodeRoutes decodes a RouteConfiguration, as decodeEnvoy does all others.
func decodeRoutes(name string, packed *anypb.Any) (Resource, error) {
	a, err := unwrap(packed)
	if err != nil || a.MessageName() != "envoy.config.route.v3.RouteConfiguration" {
		return decodeEnvoy(name, packed)
	}
	rest, list, ok := apart(a.GetValue())
	if !ok || rest.GetName() == "" || name != "" && name != rest.GetName() {
		return decodeEnvoy(name, packed)
	}
	return Resource{Name: rest.GetName(), Message: rest, Hosts: list, Hash: sha256.Sum256(a.GetValue())}, nil
}

// Whole is the message of a resource, with its virtual hosts.
func (r Resource) Whole() (proto.Message, error) {
	if len(r.Hosts) == 0 {
		return r.Message, nil
	}
	m := proto.Clone(r.Message).(*routev3.RouteConfiguration)
	for _, h := range r.Hosts {
		vh, err := h.Message()
		if err != nil {
			return nil, err
		}
		m.VirtualHosts = append(m.VirtualHosts, vh)
	}
	return m, nil
}
