// SPDX-License-Identifier: Apache-2.0

package live

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
)

// outcome is what may come of a request.
type outcome struct {
	cluster string // one of its servers answers, or has the connection
	// Otherwise the program answers.
	status   int
	location string
	body     string // of a direct response
	direct   bool
	route    string // under which it is counted
}

func (o outcome) String() string {
	if o.cluster != "" {
		return "cluster " + o.cluster
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", o.status, o.location))
}

// ending says what becomes of the connection.
type ending int

const (
	goesOn ending = iota
	ends
	pinned  // its bytes go to a server as they are
	refused // it is reset: nothing serves what is not HTTP
)

// expected is what the reference allows.
type expected struct {
	kind     head.Kind
	outcomes []outcome // any of them
	ending   ending
	request  head.Request // when it is routed
}

func (e expected) String() string {
	text := fmt.Sprint(e.kind)
	for _, o := range e.outcomes {
		text += ", " + o.String()
	}
	return text + []string{"", ", then the end", ", pinned", ", reset"}[e.ending]
}

// state is what a connection has carried.
type state struct {
	used bool   // a request
	leg  string // the cluster to which the last one went; "": it was answered on the way
}

// expect decides about the bytes, which are a whole head, or more than it takes to refuse one.
func (w *world) expect(m *explain.Matcher, b []byte, s state) expected {
	r, out := head.ParseRequest(b)
	e := expected{kind: out.Kind, request: r}
	switch {
	case out.Kind == head.Reject:
		e.outcomes, e.ending = []outcome{{status: out.Status}}, ends
	case out.Kind == head.Pin && s.used && out.Reason != head.Connect:
		// A connection can begin so, not a request.
		e.outcomes, e.ending = []outcome{{status: 400}}, ends
	case out.Kind == head.Pin:
		e.outcomes, e.ending = w.pin(s)
	case out.Kind == head.Route:
		e.outcomes = w.decide(m, &r)
		if !r.KeepAlive {
			e.ending = ends
		}
	}
	return e
}

// pin is where bytes go that are not looked at: on, to whom the connection leads, or to what serves what is not HTTP.
func (w *world) pin(s state) ([]outcome, ending) {
	if s.leg != "" {
		return []outcome{{cluster: s.leg}}, pinned
	}
	var out []outcome
	for _, c := range w.service.Clusters {
		out = append(out, outcome{cluster: c.Cluster})
	}
	if out == nil {
		return nil, refused
	}
	return out, pinned
}

// decide is what the routes may do with the request: the first that it matches decides, and those before it that
// want a fraction of what they match.
func (w *world) decide(m *explain.Matcher, r *head.Request) (out []outcome) {
	vh := explain.FindVirtualHost(w.service.HTTP, r.Authority)
	if vh == nil {
		return []outcome{{status: 404}}
	}
	always := func(mesh.Fraction) bool { return true }
	for i, route := range vh.Routes {
		f := route.Match.Fraction
		if f != nil && f.Numerator == 0 {
			continue
		}
		if n, _ := m.Match(&mesh.VirtualHost{Routes: []*mesh.Route{route}}, r, always); n != 0 {
			continue
		}
		for _, o := range w.act(route, r) {
			o.route = publish.RouteName(w.service.Name, vh.Name, route.Name, i)
			out = append(out, o)
		}
		if f == nil || f.Numerator >= f.Denominator {
			return out
		}
	}
	return append(out, outcome{status: 404})
}

// act is what a route may do.
func (w *world) act(route *mesh.Route, r *head.Request) (out []outcome) {
	if a := route.Abort; a != nil && a.Fraction.Numerator > 0 {
		out = append(out, outcome{status: int(a.Status)})
		if a.Fraction.Numerator >= a.Fraction.Denominator {
			return out
		}
	}
	switch {
	case route.Unsupported:
		return append(out, outcome{status: 503})
	case route.Direct != nil:
		o := outcome{status: int(route.Direct.Status), direct: true}
		if r.Method != http.MethodHead && o.status != http.StatusNoContent && o.status != http.StatusNotModified {
			o.body = string(route.Direct.Body)
		}
		return append(out, o)
	case route.Redirect != nil:
		return append(out, outcome{status: int(route.Redirect.Status), location: explain.Location(route.Redirect, &route.Match.Path, r)})
	}
	for _, c := range route.Clusters {
		switch {
		case c.Weight == 0:
		case len(w.answers[c.Cluster]) == 0:
			out = append(out, outcome{status: 503})
		default:
			out = append(out, outcome{cluster: c.Cluster})
		}
	}
	return out
}

// observed is what a client saw of one request.
type observed struct {
	server string // that answered; "": the program did
	sum    string // of what the server got
	outcome
	bodyLen int
	raw     bool   // the server took it for a stream of bytes
	ended   bool   // the connection has ended behind it
	failure string // nothing of the kind
}

func (o observed) String() string {
	switch {
	case o.failure != "":
		return o.failure
	case o.raw:
		return fmt.Sprintf("a stream of %s at server %s", o.sum, o.server)
	case o.server != "":
		return fmt.Sprintf("server %s, which got %s", o.server, o.sum)
	}
	text := fmt.Sprintf("local answer %d %s, a body of %d bytes", o.status, o.location, o.bodyLen)
	if o.ended {
		text += ", then the end"
	}
	return text
}

// judge says what is wrong with what was seen of the bytes that were sent; "" if nothing is. allowed are the outcomes
// that it may have been.
func (w *world) judge(e expected, o observed, sent []byte) (allowed []outcome, wrong string) {
	if o.failure == reset && e.ending == refused {
		return nil, ""
	}
	if o.failure != "" {
		return nil, o.failure
	}
	if e.ending == pinned != o.raw {
		return nil, "the bytes are a stream to one of the two only"
	}
	if (e.ending == ends) != o.ended && !o.raw && !e.cutShort() {
		return nil, fmt.Sprintf("the connection ends: %v", o.ended)
	}
	if o.server != "" && o.sum != sumOf(sent) {
		return nil, "the server got other bytes than " + sumOf(sent)
	}
	for _, want := range e.outcomes {
		if w.same(want, o) {
			allowed = append(allowed, want)
		}
	}
	if len(allowed) == 0 {
		return nil, "not allowed"
	}
	return allowed, ""
}

// cutShort says that the rest of the body is never sent: the server ends the connection.
func (e expected) cutShort() bool { return e.request.ContentLength > longest }

func (w *world) same(want outcome, o observed) bool {
	if want.cluster != "" {
		return slices.Contains(w.answers[want.cluster], o.server)
	}
	if o.server != "" || want.status != o.status || want.location != o.location {
		return false
	}
	return !want.direct || want.body == o.body
}
