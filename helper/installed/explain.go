// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/automaton"
	"kmesh/helper/head"
)

// Explain implements api.Requests.
func (t *Tables) Explain(ctx context.Context, in *apiv1.ExplainRequest) (*apiv1.ExplainResponse, error) {
	scope, err := t.scopeOf(ctx, in.Namespace, in.Name)
	if err != nil {
		return nil, err
	}
	if in.Port == 0 || in.Port > 65535 {
		return nil, status.Errorf(codes.InvalidArgument, "%d is not a port", in.Port)
	}
	q := question{Tables: t, n: t.names(), port: uint16(in.Port), head: in.Head}
	q.out = &apiv1.ExplainResponse{Scope: q.n.of(scope)}
	q.out.Request, _, _ = strings.Cut(string(in.Head), "\r\n")
	q.request, q.parsed = head.ParseRequest(in.Head)
	if q.parsed.Kind == head.Incomplete {
		return nil, status.Error(codes.InvalidArgument, "the request's head is not whole")
	}
	var dst destination
	if in.Address != "" {
		addr, err := netip.ParseAddr(in.Address)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "address: %v", err)
		}
		dst, err = t.byAddress(scope, netip.AddrPortFrom(addr.Unmap(), q.port))
		if err != nil {
			return nil, err
		}
	} else if dst, err = t.byName(ctx, q.n, scope, q.port, q.request.Authority); err != nil {
		return nil, err
	}
	return q.out, q.decide(dst)
}

// scopeOf returns the id of the view of the mesh that a pod has.
func (t *Tables) scopeOf(ctx context.Context, namespace, name string) (uint32, error) {
	cookies, err := t.podsNamed(ctx, namespace, name)
	if err != nil {
		return 0, err
	}
	for _, cookie := range cookies {
		if scope, ok, err := t.rt.ScopeOf(cookie); err != nil || ok {
			return scope, err
		}
	}
	return 0, status.Errorf(codes.NotFound, "pod %s/%s is not in the programs' table of pods: kmeshctl pods says why", namespace, name)
}

// question is a request on its way through the tables.
type question struct {
	*Tables
	n       names
	port    uint16
	head    []byte
	request head.Request
	parsed  head.Outcome
	out     *apiv1.ExplainResponse
}

// one adds the outcome of a share of such requests.
func (q *question) one(o *apiv1.Outcome) { q.out.Outcomes = append(q.out.Outcomes, o) }

// all makes it the only outcome, and no route's.
func (q *question) all(format string, args ...any) error {
	q.one(&apiv1.Outcome{Share: 1, Index: -1, Action: fmt.Sprintf(format, args...)})
	return nil
}

// connection is the outcome of what is not routed by request.
func (q *question) connection(why string) error {
	if len(q.out.Guess) == 0 {
		return q.all("%s: refused, as there is no cluster for such connections", why)
	}
	q.one(&apiv1.Outcome{Share: 1, Index: -1, Action: why, Clusters: q.out.Guess})
	return nil
}

func (q *question) decide(dst destination) error {
	if dst.service == 0 {
		return q.all("nothing has port %d of this address: the connection goes where the client meant it", q.port)
	}
	q.out.Frontend, q.out.Service = dst.text, q.n.of(dst.service)
	svc, ok, err := lookup[uint32, bpf.Service](q.rt.Services, dst.service)
	if err != nil {
		return err
	}
	if !ok {
		return q.all("refused: the service is not in the tables")
	}
	if q.out.Guess, err = q.guess(q.n, &svc); err != nil {
		return err
	}
	if svc.Flags&bpf.ServiceHTTP == 0 {
		return q.connection("the service is not routed by request: its connections are balanced")
	}
	if err := q.guessOf(dst); err != nil {
		return err
	}
	h, ok, err := lookup[uint32, bpf.HTTP](q.rt.HTTP, dst.service)
	if err != nil {
		return err
	}
	if !ok {
		return q.all("answered 503: the service's routing is not in the tables")
	}
	q.out.Http, q.out.Local = true, h.Flags&bpf.HTTPLocal != 0
	switch q.parsed.Kind {
	case head.Reject:
		return q.all("answered %d, and the connection ends: rule %s at byte %d", q.parsed.Status, q.parsed.Rule, q.parsed.At)
	case head.Pin:
		return q.connection(fmt.Sprintf("not routed by request (%s): the connection stays where it is", q.parsed.Reason))
	}
	domain, id, err := q.findHost(dst.service, h, q.request.Authority)
	if err != nil {
		return err
	}
	if id == 0 {
		return q.all("answered 404: no virtual host has %q", hostOf(q.request.Authority, h.Flags&bpf.HTTPIgnorePort != 0))
	}
	q.out.Domain, q.out.VirtualHost = domain, id
	v, ok, err := q.vhost(id)
	if err != nil {
		return err
	}
	if !ok {
		return q.all("answered 404: virtual host %d is not in the tables", id)
	}
	return q.match(v)
}

// guessOf: a frontend may have a guess of its own.
func (q *question) guessOf(dst destination) error {
	if dst.key == (bpf.FrontendKey{}) {
		return nil
	}
	cluster, ok, err := lookup[bpf.FrontendKey, uint32](q.rt.Guesses, dst.key)
	if err != nil || !ok {
		return err
	}
	q.out.Guess, err = q.clusters(q.n, []bpf.Share{{Cluster: cluster, Weight: 1}})
	return err
}

// match runs the virtual host's program.
func (q *question) match(v *vhost) error {
	q.out.NRoutes = v.N_routes
	m, err := run(v, q.head)
	if err != nil {
		return err
	}
	if m.Kind() != automaton.Route {
		// The program and package head never differ.
		return fmt.Errorf("the program of virtual host %d says %v, the grammar %v", v.id, m.Kind(), q.parsed)
	}
	left := 1.0
	for i := m.Next(0); i >= 0; i = m.Next(i + 1) {
		if i >= len(v.routes) {
			return fmt.Errorf("the program of virtual host %d names route %d of %d", v.id, i, len(v.routes))
		}
		r := &v.routes[i]
		if left == 0 {
			q.out.Shadowed = append(q.out.Shadowed, q.n.of(r.Id))
			continue
		}
		p := taken(r)
		if p == 0 {
			continue
		}
		if err := q.take(v, i, left*p); err != nil {
			return err
		}
		if left *= 1 - p; p >= 1 {
			left = 0
		}
	}
	if left > 0 {
		q.one(&apiv1.Outcome{Share: left, Index: -1, Action: "answered 404: no route matches"})
	}
	return nil
}

// take adds what a route does with its share of the requests.
func (q *question) take(v *vhost, i int, share float64) error {
	r := &v.routes[i]
	abort := probability(r.Abort, r.AbortAlways != 0)
	if abort > 0 {
		text, err := q.reply(r.AbortReply, &q.request)
		if err != nil {
			return err
		}
		q.one(&apiv1.Outcome{Share: share * abort, Route: q.n.of(r.Id), Index: int32(i), Action: text + " (fault)"})
	}
	if abort >= 1 {
		return nil
	}
	one := &apiv1.Outcome{Share: share * (1 - abort), Route: q.n.of(r.Id), Index: int32(i)}
	var err error
	if one.Action, err = q.act(r, &q.request); err != nil {
		return err
	}
	if r.Kind == bpf.RouteForward {
		if one.Clusters, err = q.clusters(q.n, v.shares[i]); err != nil {
			return err
		}
		if r.Total == 0 {
			one.Action, one.Clusters = "answered 503: the route has no cluster", nil
		}
	}
	q.one(one)
	return nil
}

// run runs the bytes that are in the slab. What other bytes than a compiler's would do
// is an error of theirs, not the end of the helper.
func run(v *vhost, b []byte) (m *automaton.Machine, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the program of virtual host %d is damaged: %v", v.id, p)
		}
	}()
	m = automaton.NewMachine(&automaton.Program{Bytes: v.program})
	m.Feed(b)
	return m, nil
}

// hostOf is what a host is searched by.
func hostOf(authority string, ignorePort bool) string {
	host := strings.ToLower(authority)
	if ignorePort {
		host, _ = head.SplitHost(host)
	}
	return host
}
