// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"

	"kmesh/helper/mesh"
)

// random makes configurations over a small alphabet.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 0xd1ff))} }

func (r random) oneIn(n int) bool { return r.IntN(n) == 0 }

func oneOf[T any](r random, of ...T) T { return of[r.IntN(len(of))] }

func (r random) config() *mesh.HTTP {
	h := &mesh.HTTP{IgnorePort: r.oneIn(2)}
	domains := []string{"*", "a", "b", "a.b", "*.b", "a.*", "*.a.b", "a:1", "*b", "a.b:1"}
	r.Shuffle(len(domains), func(i, j int) { domains[i], domains[j] = domains[j], domains[i] })
	for i := range 1 + r.IntN(3) {
		vh := &mesh.VirtualHost{Name: fmt.Sprint("v", i), Domains: domains[:1+r.IntN(2)]}
		domains = domains[len(vh.Domains):]
		for k := range r.IntN(6) {
			vh.Routes = append(vh.Routes, r.route(k))
		}
		h.VirtualHosts = append(h.VirtualHosts, vh)
	}
	return h
}

func (r random) route(i int) *mesh.Route {
	route := &mesh.Route{Name: fmt.Sprint("r", i), Match: mesh.RouteMatch{Path: r.path()}}
	for range oneOf(r, 0, 0, 1, 1, 2) {
		route.Match.Headers = append(route.Match.Headers, r.header())
	}
	for range oneOf(r, 0, 0, 0, 1) {
		route.Match.Query = append(route.Match.Query, mesh.QueryMatch{Name: oneOf(r, "k", "k", "l"), Present: r.oneIn(3), Match: r.match()})
	}
	if r.oneIn(6) {
		route.Match.Fraction = &mesh.Fraction{Numerator: oneOf[uint32](r, 0, 10, 50, 50, 100), Denominator: 100}
	}
	r.action(route)
	return route
}

func (r random) action(route *mesh.Route) {
	route.Clusters, route.Redirect, route.Direct, route.Abort, route.Unsupported = nil, nil, nil, nil, false
	if r.oneIn(8) {
		route.Abort = &mesh.Abort{Fraction: mesh.Fraction{Numerator: oneOf[uint32](r, 10, 100), Denominator: 100}, Status: 503}
	}
	switch r.IntN(10) {
	case 0:
		route.Redirect = &mesh.Redirect{Status: oneOf[uint16](r, 301, 302), Host: oneOf(r, "", "c"), StripQuery: r.oneIn(3)}
		if r.oneIn(2) {
			route.Redirect.Prefix = oneOf(r, "/", "/a", "/b/a")
		} else {
			route.Redirect.Path = oneOf(r, "", "/a", "/b?a")
		}
	case 1:
		route.Direct = &mesh.DirectResponse{Status: oneOf[uint16](r, 200, 404), Body: oneOf(r, nil, []byte("a"))}
	case 2:
		route.Abort, route.Unsupported = nil, true
	case 3, 4:
		route.Clusters = []mesh.WeightedCluster{{Cluster: "A", Weight: oneOf[uint32](r, 1, 2)}, {Cluster: "B", Weight: oneOf[uint32](r, 0, 1, 2)}}
	default:
		route.Clusters = []mesh.WeightedCluster{{Cluster: oneOf(r, "A", "B", "C"), Weight: 1}}
	}
}

func (r random) word() string { return oneOf(r, "a", "b", "a", "b", "ab", "aa", "ba", "") }

func (r random) path() mesh.PathMatch {
	value := "/" + oneOf(r, "", "a", "a", "b", "a/b", "ab", "aa", "b/")
	switch r.IntN(6) {
	case 0:
		return mesh.PathMatch{Kind: mesh.PathPrefix, Value: oneOf(r, "", "/")}
	case 1:
		return mesh.PathMatch{Kind: mesh.PathRegex, Value: oneOf(r, ".*a", ".*/b/.*", "/[^/]+", "/a+", "/(a|b)*", `/a(/.*)?`, ".*", `\*|/a`, `/\w*`, `.*\bb`, "(?i)/A.*", "[^b]*", "/a/[^/]*")}
	case 2:
		return mesh.PathMatch{Kind: mesh.PathExact, Value: oneOf(r, value, value, value, "*"), IgnoreCase: r.oneIn(4)}
	case 3:
		return mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: "/" + oneOf(r, "a", "b", "ab", "a/b"), IgnoreCase: r.oneIn(4)}
	default:
		return mesh.PathMatch{Kind: mesh.PathPrefix, Value: value, IgnoreCase: r.oneIn(4)}
	}
}

func (r random) match() mesh.StringMatch {
	m := mesh.StringMatch{Kind: mesh.StringKind(r.IntN(5)), Value: r.word(), IgnoreCase: r.oneIn(4)}
	if m.Kind == mesh.StringRegex {
		m.IgnoreCase = false
		m.Value = oneOf(r, regexp.QuoteMeta(m.Value), ".*", ".+", "a*", "[^a]*", ".*b.*", "(a|b)", "", ".", "[a-z]{2}", "(?i)A.?", `\w`)
	}
	return m
}

func (r random) header() mesh.HeaderMatch {
	h := mesh.HeaderMatch{Name: oneOf(r, "x", "x", "x", "y", "y"), Invert: r.oneIn(4), Match: r.match(), MissingAsEmpty: r.oneIn(4)}
	switch r.IntN(14) {
	case 0, 1, 2:
		return mesh.HeaderMatch{Name: ":method", Match: mesh.StringMatch{Value: oneOf(r, "GET", "POST", "OPTIONS")}, Invert: h.Invert}
	case 3:
		h.Name, h.Match.Value = oneOf(r, ":authority", "host"), oneOf(r, "a", "a.b", "a:1", "b")
	case 4:
		h.Name = oneOf(r, "transfer-encoding", "content-length")
		h.Match = mesh.StringMatch{Value: oneOf(r, "chunked", "1")}
	case 5:
		h.Name = ":method"
	}
	switch r.IntN(6) {
	case 0:
		h.Kind = mesh.HeaderPresent
	case 1:
		h.Kind = mesh.HeaderAbsent
	case 2:
		h.Kind, h.Start, h.End = mesh.HeaderRange, oneOf[int64](r, 0, 5, -9, 7), oneOf[int64](r, 5, 6, 100)
	}
	return h
}

// changed makes a configuration that differs in a few things.
func (r random) changed(h *mesh.HTTP) *mesh.HTTP {
	out := &mesh.HTTP{IgnorePort: h.IgnorePort != r.oneIn(12)}
	for _, vh := range h.VirtualHosts {
		v := *vh
		v.Routes = nil
		for _, route := range vh.Routes {
			c := *route
			v.Routes = append(v.Routes, &c)
		}
		out.VirtualHosts = append(out.VirtualHosts, &v)
	}
	for range 1 + r.IntN(2) {
		v := oneOf(r, out.VirtualHosts...)
		if len(v.Routes) == 0 || r.oneIn(8) {
			v.Routes = slices.Insert(v.Routes, r.IntN(len(v.Routes)+1), r.route(9))
			continue
		}
		i := r.IntN(len(v.Routes))
		switch r.IntN(8) {
		case 0:
			v.Routes = slices.Delete(v.Routes, i, i+1)
		case 1:
			k := r.IntN(len(v.Routes))
			v.Routes[i], v.Routes[k] = v.Routes[k], v.Routes[i]
		case 2:
			v.Routes[i].Match.Path = r.path()
		case 3:
			v.Routes[i].Match.Headers = append(slices.Clone(v.Routes[i].Match.Headers), r.header())
		case 4:
			v.Routes[i].Match.Headers = nil
		case 5:
			v.Routes[i].Match.Fraction = nil
		case 6:
			v.Domains = []string{oneOf(r, "c", "c.b", "*.c")} // new to both
		default:
			r.action(v.Routes[i])
		}
	}
	return out
}
