// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

const (
	// unsentMost is how many requests may wait for a server that does not read.
	unsentMost = 64
	// unsentFor is how long the next one may.
	unsentFor = 30 * time.Second
	// maxRefusalWait bounds how late a server learns that it may send again.
	maxRefusalWait = 2 * time.Second
)

// errSilent: the server has taken the stream and does not answer.
var errSilent = errors.New("no answer")

// errDeaf: the server does not read.
var errDeaf = fmt.Errorf("the server has not read %d requests within %v", unsentMost, unsentFor)

// session is the state of one stream.
type session struct {
	srv      *Server
	target   string
	wire     wire
	consumer Consumer
	log      *slog.Logger

	// unsent are the requests on their way: a server that sends without reading must
	// not keep us from reading.
	unsent chan proto.Message
	// broken is closed when nothing can be sent any more; what is received says why.
	broken chan struct{}

	subs map[string]*subscription
	// deadlines of what was asked for by name and has not come.
	deadlines map[named]time.Time
	// refusals are the versions that were rejected last, by type.
	refusals map[string]*refusal
}

// named is one resource of a type that is subscribed by name.
type named struct{ typeURL, name string }

// refusal paces the answers to a version that is sent again and again: a server
// that answers every NACK with the same version at once would make a busy loop.
type refusal struct {
	version string
	wait    backoff
	answer  proto.Message // not sent yet
	at      time.Time
}

// received is what the stream has given.
type received struct {
	resp *response
	err  error
}

// session runs one stream to the current server; it tells whether the server has
// answered anything.
func (s *Server) session(parent context.Context, p *peer, c Consumer) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	w, err := s.open(ctx, p)
	if err != nil {
		return false, err
	}
	ss := &session{srv: s, target: p.target, wire: w, consumer: c, log: s.log.With("server", p.target),
		unsent: make(chan proto.Message, unsentMost), broken: make(chan struct{}),
		subs: map[string]*subscription{}, deadlines: map[named]time.Time{}, refusals: map[string]*refusal{}}
	s.locked(func() {
		for url, t := range s.tables {
			t.server, ss.subs[url] = p.target, &subscription{}
		}
	})
	go ss.send(ctx, cancel)
	// One response at a time: the next is not read before this one is applied.
	more, incoming := make(chan struct{}, 1), make(chan received)
	go receive(ctx, w, more, incoming)

	if err := ss.begin(ctx); err != nil {
		return false, err
	}
	var silent <-chan time.Time
	if len(s.opts.Targets) > 1 {
		late := time.NewTimer(s.opts.AnswerWithin)
		defer late.Stop()
		silent = late.C
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	more <- struct{}{}
	for {
		timer.Reset(time.Hour)
		if at, ok := ss.next(); ok {
			timer.Reset(max(time.Until(at), 0))
		}
		select {
		case <-ctx.Done():
			return answered, context.Cause(ctx)
		case <-silent:
			return answered, fmt.Errorf("%w within %v", errSilent, s.opts.AnswerWithin)
		case <-timer.C:
			now := time.Now()
			ss.absences(now)
			if err := ss.late(ctx, now); err != nil {
				return answered, err
			}
		case in := <-incoming:
			if in.err != nil {
				return answered, in.err
			}
			if !answered {
				answered, silent = true, nil
				s.up(p)
			}
			if err := ss.handle(ctx, in.resp); err != nil {
				return answered, err
			}
			more <- struct{}{}
		}
	}
}

// receive reads a response whenever it is told to.
func receive(ctx context.Context, w wire, more <-chan struct{}, incoming chan<- received) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
		resp, err := w.recv()
		select {
		case incoming <- received{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// send sends the requests in their order.
func (ss *session) send(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case req := <-ss.unsent:
			if err := ss.wire.send(req); err != nil {
				if !errors.Is(err, io.EOF) { // io.EOF: what is received says why
					cancel(fmt.Errorf("send: %w", err))
				}
				close(ss.broken)
				return
			}
		}
	}
}

// post queues a request.
func (ss *session) post(ctx context.Context, req proto.Message) error {
	select {
	case ss.unsent <- req:
		return nil
	case <-ss.broken:
		return nil
	default:
	}
	late := time.NewTimer(unsentFor)
	defer late.Stop()
	select {
	case ss.unsent <- req:
		return nil
	case <-ss.broken:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return errDeaf
	}
}

// begin asks for everything, in the order in which the types depend on each other,
// and for what is already known to be needed by name.
func (ss *session) begin(ctx context.Context) error {
	for _, t := range ss.srv.opts.Types {
		if t.ByName {
			continue
		}
		ss.subs[t.URL].asked = true
		if err := ss.post(ctx, ss.wire.everything(ss.srv.tables[t.URL])); err != nil {
			return err
		}
	}
	return ss.subscribe(ctx)
}

// subscribe sends the names that are wanted, if they have changed. It is a request
// of its own, never part of an ACK.
func (ss *session) subscribe(ctx context.Context) error {
	for _, t := range ss.srv.opts.Types {
		if !t.ByName {
			continue
		}
		if err := ss.subscribeTo(ctx, ss.srv.tables[t.URL]); err != nil {
			return err
		}
	}
	return nil
}

func (ss *session) subscribeTo(ctx context.Context, t *table) error {
	url, sub := t.typ.URL, ss.subs[t.typ.URL]
	list := ss.consumer.Wanted(url)
	if n := len(list); n > 0 && n == len(sub.wanted) && &list[0] == &sub.wanted[0] {
		return nil // as after most responses
	}
	wanted, not := askable(list)
	if len(not) > 0 {
		ss.consumer.Absent(url, not)
	}
	sub.wanted = list
	// Before the first name an empty list would mean all of them.
	if slices.Equal(wanted, sub.names) || (!sub.asked && len(wanted) == 0) {
		return nil
	}
	now := time.Now()
	ss.srv.locked(func() {
		t.retain(wanted)
		for _, name := range wanted {
			e := t.get(name)
			if _, asked := slices.BinarySearch(sub.names, name); asked || t.heard(name) {
				continue
			}
			e.enter(Requested)
			if n := (named{url, name}); ss.deadlines[n].IsZero() {
				ss.deadlines[n] = now.Add(ss.srv.opts.AbsentAfter)
			}
		}
	})
	maps.DeleteFunc(ss.deadlines, func(n named, _ time.Time) bool {
		_, still := slices.BinarySearch(wanted, n.name)
		return n.typeURL == url && !still
	})
	// Requests of one type keep their order.
	if err := ss.flush(ctx, url); err != nil {
		return err
	}
	req := ss.wire.subscribe(t, sub, wanted)
	sub.asked, sub.names = true, wanted
	return ss.post(ctx, req)
}

// answer sends the ACK or the NACK of a response, once.
func (ss *session) answer(ctx context.Context, key, version string, req proto.Message, rejected bool) error {
	if err := ss.flush(ctx, key); err != nil {
		return err
	}
	if !rejected {
		delete(ss.refusals, key)
		return ss.post(ctx, req)
	}
	r := ss.refusals[key]
	if r == nil || r.version != version {
		ss.refusals[key] = &refusal{version: version, wait: backoff{base: ss.srv.opts.BackoffBase, max: maxRefusalWait}}
		return ss.post(ctx, req)
	}
	r.answer, r.at = req, time.Now().Add(r.wait.delay())
	return nil
}

// flush sends the answer of a type that still waits.
func (ss *session) flush(ctx context.Context, key string) error {
	r := ss.refusals[key]
	if r == nil || r.answer == nil {
		return nil
	}
	req := r.answer
	r.answer = nil
	return ss.post(ctx, req)
}

// late sends the answers whose time has come.
func (ss *session) late(ctx context.Context, now time.Time) error {
	for _, key := range slices.Sorted(maps.Keys(ss.refusals)) {
		if r := ss.refusals[key]; r.answer == nil || r.at.After(now) {
			continue
		}
		if err := ss.flush(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// next returns when there is something to do without being told: a resource
// counts as absent, an answer is due.
func (ss *session) next() (time.Time, bool) {
	var next time.Time
	sooner := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for _, at := range ss.deadlines {
		sooner(at)
	}
	for _, r := range ss.refusals {
		if r.answer != nil {
			sooner(r.at)
		}
	}
	return next, !next.IsZero()
}

// absences tells the consumer about what was asked for by name and whose time has
// run out.
func (ss *session) absences(now time.Time) {
	for _, t := range ss.srv.opts.Types {
		var names []string
		for n, at := range ss.deadlines {
			if n.typeURL == t.URL && !at.After(now) {
				names = append(names, n.name)
				delete(ss.deadlines, n)
			}
		}
		if len(names) == 0 {
			continue
		}
		slices.Sort(names)
		ss.log.Warn("the server does not have what was asked for", "type", short(t.URL), "names", len(names), "first", names[0])
		ss.srv.locked(func() {
			for _, name := range names {
				ss.srv.tables[t.URL].lack(name)
			}
		})
		ss.consumer.Absent(t.URL, names)
	}
}

// verdict is one of the transport's own.
func (ss *session) verdict(typeURL, name, field, message string) mesh.Verdict {
	return mesh.Verdict{Source: ss.target, Type: short(typeURL), Resource: name, Field: field, Class: mesh.Invalid, Message: message}
}
