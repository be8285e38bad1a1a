// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"kmesh/helper/mesh"
)

// stream is the state of one ADS stream.
type stream struct {
	s        *Server
	raw      grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	consumer Consumer

	nodeSent bool
	nonces   map[string]string // the last one, by type
	// names are what this stream has asked for, by type; nil: it has not asked for
	// any yet, and an empty list would mean all of them.
	names map[string][]string
	// deadlines of what was asked for by name and has not come.
	deadlines map[named]time.Time
	// refusals are the versions that were rejected last, by type.
	refusals map[string]*refusal
}

// named is one resource of a type that is subscribed by name.
type named struct{ typeURL, name string }

// byName are the types that are subscribed by name: assignments before routes, as
// they depend on each other.
var byName = []string{AssignmentType, RouteType}

// refusal paces the answers to a version that is sent again and again: a server
// that answers every NACK with the same version at once would make a busy loop.
type refusal struct {
	version string
	wait    backoff
	answer  *discoveryv3.DiscoveryRequest // not sent yet
	at      time.Time
}

// maxRefusalWait bounds how late a server learns that it may send again.
const maxRefusalWait = 2 * time.Second

func newStream(s *Server, raw grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse], c Consumer) *stream {
	return &stream{s: s, raw: raw, consumer: c, nonces: map[string]string{}, names: map[string][]string{}, deadlines: map[named]time.Time{}, refusals: map[string]*refusal{}}
}

// begin asks for everything: clusters before listeners, as they depend on each
// other, and the assignments and routes that are already known to be needed.
func (st *stream) begin() error {
	for _, t := range []string{ClusterType, ListenerType} {
		if err := st.send(&discoveryv3.DiscoveryRequest{TypeUrl: t, VersionInfo: st.s.versions[t]}); err != nil {
			return err
		}
	}
	return st.subscribe()
}

// send sends a request; the first of a stream says who we are.
func (st *stream) send(req *discoveryv3.DiscoveryRequest) error {
	if !st.nodeSent {
		req.Node = st.s.node()
		st.nodeSent = true
	}
	return st.raw.Send(req)
}

// subscribe sends the names that are wanted, if they have changed. It is a request
// of its own, never part of an ACK.
func (st *stream) subscribe() error {
	for _, t := range byName {
		if err := st.subscribeTo(t); err != nil {
			return err
		}
	}
	return nil
}

func (st *stream) subscribeTo(typeURL string) error {
	wanted := st.consumer.Wanted(typeURL)
	if sameNames(wanted, st.names[typeURL]) || (st.names[typeURL] == nil && len(wanted) == 0) {
		return nil
	}
	still := map[named]bool{}
	complete := true
	now := time.Now()
	for _, name := range wanted {
		n := named{typeURL, name}
		still[n] = true
		if st.s.received[n] {
			continue
		}
		complete = false
		if _, waiting := st.deadlines[n]; !waiting {
			st.deadlines[n] = now.Add(st.s.opts.AbsentAfter)
		}
	}
	gone := func(n named) bool { return n.typeURL == typeURL && !still[n] }
	maps.DeleteFunc(st.deadlines, func(n named, _ time.Time) bool { return gone(n) })
	maps.DeleteFunc(st.s.received, func(n named, _ bool) bool { return gone(n) })
	version := st.s.versions[typeURL]
	if st.nonces[typeURL] == "" && !complete {
		// On a new stream a version claims that everything named is known. It is
		// not: ask for all of it.
		version = ""
	}
	// Requests of one type keep their order.
	if r := st.refusals[typeURL]; r != nil && r.answer != nil {
		r.at = now
		if err := st.late(now); err != nil {
			return err
		}
	}
	st.names[typeURL] = append([]string{}, wanted...)
	return st.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: typeURL, ResourceNames: st.names[typeURL],
		VersionInfo: version, ResponseNonce: st.nonces[typeURL],
	})
}

// handle applies one response, and answers it exactly once.
func (st *stream) handle(ctx context.Context, resp *discoveryv3.DiscoveryResponse) error {
	typeURL := resp.GetTypeUrl()
	st.nonces[typeURL] = resp.GetNonce()
	update, problems := st.read(resp)
	var err error
	if typeURL != ListenerType && typeURL != ClusterType && !slices.Contains(byName, typeURL) {
		err = fmt.Errorf("type %q was not asked for", typeURL)
	} else {
		err = st.consumer.Apply(ctx, update)
		if slices.Contains(byName, typeURL) {
			for _, r := range update.Resources {
				n := named{typeURL, r.Name}
				if slices.Contains(st.names[typeURL], r.Name) {
					st.s.received[n] = true
				}
				delete(st.deadlines, n)
			}
		}
	}
	for _, p := range problems {
		err = errors.Join(err, p)
	}
	if err := st.answer(resp, problems, err); err != nil {
		return err
	}
	return st.subscribe()
}

// read decodes a response. What cannot be decoded is a problem, and keeps absence
// from meaning removal: nobody knows which resource it was.
func (st *stream) read(resp *discoveryv3.DiscoveryResponse) (Update, []mesh.Verdict) {
	typeURL := resp.GetTypeUrl()
	u := Update{Type: typeURL, Complete: typeURL == ListenerType || typeURL == ClusterType}
	var problems []mesh.Verdict
	first := map[string]int{}
	for i, a := range resp.GetResources() {
		at := "resources[" + strconv.Itoa(i) + "]"
		got, res, err := decode(a)
		if err == nil && got != typeURL {
			err = fmt.Errorf("has type %q in a response of type %q", got, typeURL)
		}
		if err != nil {
			u.Complete = false
			problems = append(problems, mesh.Verdict{Source: st.s.opts.Target, Type: short(typeURL), Field: at, Class: mesh.Invalid, Message: clean(err)})
			continue
		}
		res.Version, res.Source, res.typeURL = resp.GetVersionInfo(), st.s.opts.Target, typeURL
		bad := func(field, msg string) {
			res.Invalid = append(res.Invalid, mesh.Verdict{Source: res.Source, Type: short(typeURL), Resource: res.Name, Field: field, Class: mesh.Invalid, Message: msg})
		}
		for _, e := range validate(res.Message, "") {
			bad(e.field, e.reason)
		}
		if j, dup := first[res.Name]; dup {
			bad("name", "duplicate name in one response")
			u.Resources[j].Invalid = append(u.Resources[j].Invalid, res.Invalid...)
			continue
		}
		first[res.Name] = len(u.Resources)
		u.Resources = append(u.Resources, res)
	}
	slices.SortFunc(u.Resources, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return u, problems
}

// answer sends the ACK or the NACK of a response.
func (st *stream) answer(resp *discoveryv3.DiscoveryResponse, problems []mesh.Verdict, reject error) error {
	typeURL := resp.GetTypeUrl()
	req := &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.GetNonce()}
	req.ResourceNames = st.names[typeURL]
	rejected := ""
	if reject == nil {
		st.s.versions[typeURL] = resp.GetVersionInfo()
	} else {
		rejected = trim(reject.Error())
		req.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(rejected, "?")}
		st.s.log.Error("response rejected, its valid resources are used", "type", short(typeURL), "version", resp.GetVersionInfo(), "err", rejected)
	}
	req.VersionInfo = st.s.versions[typeURL]
	st.s.note(typeURL, resp.GetVersionInfo(), len(resp.GetResources()), problems, rejected)
	if reject == nil {
		delete(st.refusals, typeURL)
		return st.send(req)
	}
	r := st.refusals[typeURL]
	if r == nil || r.version != resp.GetVersionInfo() {
		st.refusals[typeURL] = &refusal{version: resp.GetVersionInfo(), wait: backoff{base: st.s.opts.BackoffBase, max: maxRefusalWait}}
		return st.send(req)
	}
	r.answer, r.at = req, time.Now().Add(r.wait.delay())
	return nil
}

// late sends the answers whose time has come.
func (st *stream) late(now time.Time) error {
	for _, t := range slices.Sorted(maps.Keys(st.refusals)) {
		r := st.refusals[t]
		if r.answer == nil || r.at.After(now) {
			continue
		}
		req := r.answer
		r.answer = nil
		req.ResourceNames = st.names[t]
		if err := st.send(req); err != nil {
			return err
		}
	}
	return nil
}

// next returns when there is something to do without being told: a resource
// counts as absent, an answer is due.
func (st *stream) next() (time.Time, bool) {
	var next time.Time
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for _, at := range st.deadlines {
		sooner(at)
	}
	for _, r := range st.refusals {
		if r.answer != nil {
			sooner(r.at)
		}
	}
	return next, !next.IsZero()
}

// absences tells the consumer about what was asked for by name and whose time has
// run out.
func (st *stream) absences(now time.Time) {
	for _, t := range byName {
		var names []string
		for n, at := range st.deadlines {
			if n.typeURL == t && !at.After(now) {
				names = append(names, n.name)
				delete(st.deadlines, n)
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			st.consumer.Absent(t, names)
		}
	}
}
