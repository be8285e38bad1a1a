// SPDX-License-Identifier: Apache-2.0

// Package match makes pairs of HTTP routing and request heads, for holding the matchers
// against each other: the reference (head and explain), the byte tables in Go and in the
// kernel. Everything follows from a seed. Alphabets are small and requests are made from
// the conditions of the routes and then spoilt a little, so that nearly every condition
// is nearly met.
package match

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"

	"kmesh/helper/mesh"
)

// Generator makes pairs.
type Generator struct {
	r *rand.Rand
	// plain: hardly any expressions, for virtual hosts of many routes, which would
	// otherwise take most of the time.
	plain bool
}

// NewGenerator returns the generator of this seed.
func NewGenerator(seed uint64) *Generator {
	return &Generator{r: rand.New(rand.NewPCG(seed, 0x6b6d657368))}
}

// oneIn is true once in n times.
func (g *Generator) oneIn(n int) bool { return g.r.IntN(n) == 0 }

func pick[T any](g *Generator, of ...T) T { return of[g.r.IntN(len(of))] }

// Config makes the routing of a service.
func (g *Generator) Config() *mesh.HTTP {
	h := &mesh.HTTP{IgnorePort: g.oneIn(2)}
	domains := []string{"*", "b", "a.b", "a.b:80", "*.b", "*.a.b", "*-a.b", "a.*", "a.b.*", "[::1]", "a_b"}
	g.r.Shuffle(len(domains), func(i, j int) { domains[i], domains[j] = domains[j], domains[i] })
	for range 1 + g.r.IntN(3) {
		n := 1 + g.r.IntN(2)
		vh := &mesh.VirtualHost{Name: "vh" + strconv.Itoa(len(h.VirtualHosts)), Domains: domains[:n:n]}
		domains = domains[n:]
		routes := 1 + g.r.IntN(6)
		if g.plain = g.oneIn(40); g.plain {
			routes = 60 + g.r.IntN(80) // more than the bits of one word or two
		}
		for i := range routes {
			vh.Routes = append(vh.Routes, g.route(i))
		}
		h.VirtualHosts = append(h.VirtualHosts, vh)
	}
	return h
}

func (g *Generator) route(i int) *mesh.Route {
	name := "r" + strconv.Itoa(i)
	route := &mesh.Route{Name: name, Clusters: []mesh.WeightedCluster{{Cluster: name, Weight: 1}}}
	m := &route.Match
	m.Path = g.path()
	for range pick(g, 0, 0, 1, 1, 2, 3) {
		m.Headers = append(m.Headers, g.header())
	}
	for range pick(g, 0, 0, 0, 1, 2) {
		m.Query = append(m.Query, g.query())
	}
	if g.oneIn(8) {
		m.Fraction = &mesh.Fraction{Numerator: uint32(g.r.IntN(101)), Denominator: 100}
	}
	return route
}

func (g *Generator) path() mesh.PathMatch {
	p := mesh.PathMatch{
		Kind:       pick(g, mesh.PathPrefix, mesh.PathExact, mesh.PathSegmentPrefix, mesh.PathRegex),
		IgnoreCase: g.oneIn(4),
	}
	if g.plain && !g.oneIn(10) {
		p.Kind = pick(g, mesh.PathPrefix, mesh.PathExact, mesh.PathSegmentPrefix)
	}
	switch {
	case p.Kind == mesh.PathRegex:
		p.Value, p.IgnoreCase = g.pathRegex(), false
	case p.Kind == mesh.PathPrefix && g.oneIn(3):
		p.Value = pick(g, "", "/")
	case p.Kind == mesh.PathExact && g.oneIn(12):
		p.Value = "*"
	default:
		p.Value = g.segments()
	}
	return p
}

// segments is a path of a few short segments.
func (g *Generator) segments() string {
	path := ""
	for range 1 + g.r.IntN(3) {
		path += "/" + g.word()
	}
	return path
}

// word is a short string over a small alphabet, often empty or alike.
func (g *Generator) word() string {
	if g.oneIn(12) {
		return pick(g, "ab.c", "A,b", "a;b", "%2f", "\xc3\xa4", "ab-12", "a:b", "\"", "..")
	}
	w := ""
	for range g.r.IntN(4) {
		w += pick(g, "a", "a", "b", "b", "A", "1", "-")
	}
	return w
}

// value is a header's value: a word, a list, or something longer.
func (g *Generator) value() string {
	switch g.r.IntN(8) {
	case 0:
		return g.word() + "," + g.word()
	case 1:
		return strings.Trim(g.word()+" "+g.word(), " ")
	case 2:
		return strconv.Itoa(g.r.IntN(40) - 10)
	default:
		return g.word()
	}
}

// names are those of the headers: some begin others, some mean something to the grammar.
var names = []string{"x", "x", "x-a", "x-a", "x-ab", "x_a", "accept", "cookie"}
var framingNames = []string{"host", "connection", "content-length", "transfer-encoding", "expect", "upgrade", "conn", "te"}

func (g *Generator) headerName() string {
	if g.oneIn(6) {
		return pick(g, framingNames...)
	}
	return pick(g, names...)
}

func (g *Generator) header() mesh.HeaderMatch {
	h := mesh.HeaderMatch{Name: g.headerName(), Invert: g.oneIn(4)}
	switch {
	case g.oneIn(6):
		h.Name = ":method"
		h.Match = mesh.StringMatch{Value: pick(g, "GET", "POST", "get", "OPTIONS", "HEAD")}
		if g.oneIn(3) {
			h.Match = g.stringMatch(func() string { return pick(g, "G", "ET", "PO", "GET", "O") })
		}
		return h
	case g.oneIn(8):
		h.Name = ":authority"
		h.Match = g.stringMatch(func() string { return pick(g, "a.b", "a.b:80", "A.b", ":80", "a", "b", "") })
		return h
	case h.Name == "content-length":
		h.Match = g.stringMatch(func() string { return pick(g, "0", "1", "10", "01", "") })
	case h.Name == "connection":
		h.Match = g.stringMatch(func() string { return pick(g, "close", "keep-alive", "Close", "upgrade", "cl") })
	default:
		h.Match = g.stringMatch(g.value)
	}
	h.Kind = pick(g, mesh.HeaderString, mesh.HeaderString, mesh.HeaderString, mesh.HeaderString,
		mesh.HeaderRange, mesh.HeaderPresent, mesh.HeaderAbsent)
	switch h.Kind {
	case mesh.HeaderString:
		h.MissingAsEmpty = g.oneIn(4)
	case mesh.HeaderRange:
		h.Match, h.MissingAsEmpty = mesh.StringMatch{}, g.oneIn(4)
		h.Start = pick(g, 0, 1, -5, 7, 99, -120, math.MinInt64, math.MaxInt64-3, int64(g.r.IntN(3000)-1000))
		h.End = pick(g, 0, 2, 10, 100, 12345, math.MaxInt64, h.Start, h.Start+1, -4)
		if h.End < h.Start && !g.oneIn(10) {
			h.Start, h.End = h.End, h.Start
		}
	default:
		h.Match = mesh.StringMatch{}
	}
	return h
}

func (g *Generator) query() mesh.QueryMatch {
	q := mesh.QueryMatch{Name: pick(g, "a", "b", "ab", "A", "a-")}
	if g.oneIn(4) {
		q.Present = true
		return q
	}
	q.Match = g.stringMatch(func() string { return strings.NewReplacer(" ", "", "&", "").Replace(g.value()) })
	return q
}

func (g *Generator) stringMatch(value func() string) mesh.StringMatch {
	m := mesh.StringMatch{
		Kind: pick(g, mesh.StringExact, mesh.StringPrefix, mesh.StringSuffix, mesh.StringContains, mesh.StringRegex),
	}
	if g.plain && !g.oneIn(10) {
		m.Kind = pick(g, mesh.StringExact, mesh.StringPrefix)
	}
	if m.Kind == mesh.StringRegex {
		m.Value = g.regex(value())
		return m
	}
	m.Value, m.IgnoreCase = value(), g.oneIn(4)
	return m
}
