// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// MaxDirectBody bounds the body of a local answer: with its head it fits into a reply
// of the data path. It is Envoy's own default, too.
const MaxDirectBody = 4096

// maxRedirect bounds the text of a Location likewise.
const maxRedirect = 4096

// action translates what a route does; it returns the clusters that it names.
func (w *router) action(rt *routev3.Route, path string, out *mesh.Route) []RouteReference {
	switch a := rt.GetAction().(type) {
	case *routev3.Route_Route:
		var refs []RouteReference
		out.Clusters, refs = w.forward(a.Route, join(path, "route"))
		out.Hash = w.hash(a.Route.GetHashPolicy(), join(path, "route.hash_policy"))
		return refs
	case *routev3.Route_Redirect:
		out.Redirect = w.redirect(a.Redirect, join(path, "redirect"))
	case *routev3.Route_DirectResponse:
		out.Direct = w.direct(a.DirectResponse, join(path, "direct_response"))
	case nil:
		w.invalid(path, "has no action: give route, redirect or direct_response")
	}
	return nil
}

// forward translates the clusters of a route.
func (w *router) forward(a *routev3.RouteAction, path string) ([]mesh.WeightedCluster, []RouteReference) {
	switch s := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		at := join(path, "cluster")
		if s.Cluster == "" {
			w.invalid(at, "is empty")
		}
		return []mesh.WeightedCluster{{Cluster: s.Cluster, Weight: 1}}, []RouteReference{{Cluster: s.Cluster, Field: at}}
	case *routev3.RouteAction_WeightedClusters:
		return w.weighted(s.WeightedClusters, join(path, "weighted_clusters"))
	case nil:
		w.invalid(path, "has no cluster: give cluster or weighted_clusters")
	}
	return nil, nil // a condition, by the table
}

// hash takes the first policy that the data path has. Envoy mixes all of them; one
// behind the first is reported, whether it is a fallback or a part of the key.
func (w *router) hash(policies []*routev3.RouteAction_HashPolicy, path string) (out mesh.Hash) {
	for i, p := range policies {
		at := path + "[" + strconv.Itoa(i) + "]"
		h, why := hashOf(p)
		switch {
		case why != "":
			w.add(at, mesh.UnsupportedAction, why)
		case h == out:
			w.add(at, mesh.Default, "the same key again")
		case out.Kind != mesh.HashNone:
			w.add(at, mesh.UnsupportedAction, "only the first policy is used: requests are NOT hashed by this one")
		default:
			w.add(at, mesh.Enforced, "")
			out = h
		}
	}
	return out
}

// hashOf translates one policy, or says why it cannot be enforced.
func hashOf(p *routev3.RouteAction_HashPolicy) (h mesh.Hash, why string) {
	switch s := p.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		if s.ConnectionProperties.GetSourceIp() {
			return mesh.Hash{Kind: mesh.HashSource}, ""
		}
	case *routev3.RouteAction_HashPolicy_Header_:
		name := strings.ToLower(s.Header.GetHeaderName())
		if name == ":authority" {
			name = "host"
		}
		switch {
		case s.Header.GetRegexRewrite() != nil:
			return h, "a header's value is hashed as it is: requests are NOT hashed by a part of it"
		case name == "" || strings.HasPrefix(name, ":"):
			return h, fmt.Sprintf("requests are NOT hashed by %q: it is no header", name)
		case len(name) > mesh.MaxHashHeader:
			return h, fmt.Sprintf("the name has %d bytes: requests are NOT hashed by headers of more than %d", len(name), mesh.MaxHashHeader)
		}
		return mesh.Hash{Kind: mesh.HashHeader, Header: name}, ""
	}
	return h, "requests are hashed by a header or by source_ip only, NOT by this"
}

// weighted translates weighted clusters.
func (w *router) weighted(wc *routev3.WeightedCluster, path string) (out []mesh.WeightedCluster, refs []RouteReference) {
	list := wc.GetClusters()
	at := join(path, "clusters")
	switch {
	case len(list) == 0:
		w.invalid(at, "is empty")
	case len(list) > MaxWeightedClusters:
		w.invalid(at, "has %d clusters: a route can have %d", len(list), MaxWeightedClusters)
	}
	var sum uint64
	for i, c := range list {
		at := at + "[" + strconv.Itoa(i) + "]"
		if c.GetName() == "" && c.GetClusterHeader() == "" {
			w.invalid(join(at, "name"), "is empty")
		}
		if c.GetWeight() == nil {
			w.invalid(join(at, "weight"), "is missing")
		}
		sum += uint64(c.GetWeight().GetValue())
		out = append(out, mesh.WeightedCluster{Cluster: c.GetName(), Weight: c.GetWeight().GetValue()})
		refs = append(refs, RouteReference{Cluster: c.GetName(), Field: join(at, "name")})
	}
	//lint:ignore SA1019 older control planes still give it
	total := wc.GetTotalWeight()
	switch {
	case len(list) == 0:
	case sum == 0:
		w.invalid(at, "all weights are 0: give one of them a weight")
	case sum > math.MaxUint32:
		w.invalid(at, "the sum of weights %d is more than %d", sum, uint32(math.MaxUint32))
	case total.GetValue() > 0 && uint64(total.GetValue()) != sum:
		w.invalid(join(path, "total_weight"), "%d is not the sum of the weights, %d", total.GetValue(), sum)
	}
	return out, refs
}

// redirects are the statuses of RedirectAction.
var redirects = map[routev3.RedirectAction_RedirectResponseCode]uint16{
	routev3.RedirectAction_MOVED_PERMANENTLY:  301,
	routev3.RedirectAction_FOUND:              302,
	routev3.RedirectAction_SEE_OTHER:          303,
	routev3.RedirectAction_TEMPORARY_REDIRECT: 307,
	routev3.RedirectAction_PERMANENT_REDIRECT: 308,
}

// redirect translates a redirect.
func (w *router) redirect(a *routev3.RedirectAction, path string) *mesh.Redirect {
	out := &mesh.Redirect{
		Scheme: a.GetSchemeRedirect(), Host: a.GetHostRedirect(),
		Path: a.GetPathRedirect(), Prefix: a.GetPrefixRewrite(), StripQuery: a.GetStripQuery(),
	}
	if a.GetHttpsRedirect() {
		out.Scheme = "https"
	}
	status, ok := redirects[a.GetResponseCode()]
	if !ok {
		w.invalid(join(path, "response_code"), "%d is not a redirect", a.GetResponseCode())
	}
	out.Status = status
	if a.GetPortRedirect() > 65535 {
		w.invalid(join(path, "port_redirect"), "%d is not a port", a.GetPortRedirect())
	}
	out.Port = uint16(a.GetPortRedirect())
	for _, part := range []struct{ field, value string }{
		{"scheme_redirect", out.Scheme}, {"host_redirect", out.Host}, {"path_redirect", out.Path}, {"prefix_rewrite", out.Prefix},
	} {
		for _, c := range []byte(part.value) {
			if c <= ' ' || c == 0x7f {
				w.invalid(join(path, part.field), "%q has a character that cannot stand in a Location", part.value)
				break
			}
		}
	}
	if n := len(out.Scheme) + len(out.Host) + len(out.Path) + len(out.Prefix); n > maxRedirect {
		w.invalid(path, "has %d bytes, and %d fit into a Location", n, maxRedirect)
	}
	return out
}

// direct translates a direct response.
func (w *router) direct(a *routev3.DirectResponseAction, path string) *mesh.DirectResponse {
	if a.GetStatus() < 200 || a.GetStatus() > 599 {
		w.invalid(join(path, "status"), "%d is not a status: give one between 200 and 599", a.GetStatus())
	}
	out := &mesh.DirectResponse{Status: uint16(min(a.GetStatus(), 599))}
	if a.GetBody() == nil {
		return out
	}
	at := join(path, "body")
	var body []byte
	switch s := a.GetBody().GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		body = []byte(s.InlineString)
	case *corev3.DataSource_InlineBytes:
		body = slices.Clone(s.InlineBytes)
	case nil:
		w.invalid(at, "is empty: give inline_string or inline_bytes")
		return out
	default:
		w.add(at, mesh.UnsupportedAction, "only inline_string and inline_bytes are read: the answer has no body")
		return out
	}
	switch {
	case uint64(len(body)) > uint64(w.maxBody):
		w.invalid(at, "has %d bytes, the RouteConfiguration allows %d", len(body), w.maxBody)
	case len(body) > MaxDirectBody:
		w.add(at, mesh.UnsupportedAction, fmt.Sprintf("has %d bytes, and %d fit into an answer: it has no body", len(body), MaxDirectBody))
	default:
		w.add(at, mesh.Enforced, "")
		out.Body = body
	}
	return out
}

// fault is what a route says about one fault filter; no abort means none, too.
type fault struct{ abort *mesh.Abort }

// perFilter gives the verdicts of a typed_per_filter_config and returns what it
// says about fault filters.
func (r *report) perFilter(configs map[string]*anypb.Any, path string) map[string]fault {
	var out map[string]fault
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		at := path + "[" + strconv.Quote(name) + "]"
		f, ok := r.filterConfig(configs[name], at, false)
		if !ok {
			continue
		}
		if out == nil {
			out = map[string]fault{}
		}
		out[name] = f
	}
	return out
}

// filterConfig reads one entry, inside a FilterConfig or not.
func (r *report) filterConfig(packed *anypb.Any, path string, wrapped bool) (fault, bool) {
	wrapper := &routev3.FilterConfig{}
	if !wrapped && packed.MessageIs(wrapper) {
		if err := packed.UnmarshalTo(wrapper); err != nil {
			r.invalid(path, "cannot be decoded: %v", err)
			return fault{}, false
		}
		if wrapper.GetDisabled() {
			r.add(path, mesh.Enforced, "the filter is off here")
			return fault{}, true
		}
		if wrapper.GetConfig() == nil {
			r.add(path, mesh.Default, "is empty")
			return fault{}, false
		}
		return r.filterConfig(wrapper.GetConfig(), path, true)
	}
	if cfg, ok := r.asFault(packed, path); ok {
		if empty(cfg.ProtoReflect()) {
			r.add(path, mesh.Enforced, "no fault here")
		}
		r.walk(cfg, path)
		return fault{r.abort(cfg, path)}, true
	}
	rl, ok := httpExtensions[packed.MessageName()]
	if !ok {
		rl = ignored(fmt.Sprintf("extension %q is not supported: %s", packed.GetTypeUrl(), msgUnknown))
	}
	r.note(path, rl)
	return fault{}, false
}

// asFault unpacks the configuration of a fault filter.
func (r *report) asFault(packed *anypb.Any, path string) (*faultv3.HTTPFault, bool) {
	cfg := &faultv3.HTTPFault{}
	if !packed.MessageIs(cfg) {
		return nil, false
	}
	if err := packed.UnmarshalTo(cfg); err != nil {
		r.invalid(path, "cannot be decoded: %v", err)
		return nil, false
	}
	return cfg, true
}

// abort translates an abort; nil when there is none, or when it depends on what
// is not tested here (the walk has said so).
func (r *report) abort(cfg *faultv3.HTTPFault, path string) *mesh.Abort {
	a := cfg.GetAbort()
	if a == nil {
		return nil
	}
	path = join(path, "abort")
	if a.GetErrorType() == nil {
		r.invalid(path, "has no status: give http_status")
		return nil
	}
	s, ok := a.GetErrorType().(*faultv3.FaultAbort_HttpStatus)
	if !ok {
		return nil
	}
	if s.HttpStatus < 200 || s.HttpStatus > 599 {
		r.invalid(join(path, "http_status"), "%d is not a status: give one between 200 and 599", s.HttpStatus)
		return nil
	}
	f, ok := r.fraction(a.GetPercentage(), join(path, "percentage"))
	if !ok || f.Numerator == 0 {
		return nil
	}
	if cfg.GetUpstreamCluster() != "" || len(cfg.GetHeaders()) > 0 || len(cfg.GetDownstreamNodes()) > 0 {
		return nil
	}
	return &mesh.Abort{Fraction: f, Status: uint16(s.HttpStatus)}
}
