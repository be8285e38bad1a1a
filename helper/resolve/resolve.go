// SPDX-License-Identifier: Apache-2.0

// Package resolve finds the addresses of names: the endpoints of DNS clusters.
//
// The invariant: addresses are taken away only by an answer that says so. A server that
// is silent, broken or refuses leaves the last known ones where they are, and the answer
// says why; a denial (NXDOMAIN, or no record) of a name that had addresses is believed
// when it comes twice in a row, because a name server that just started denies what it
// has not read yet.
//
// Names are asked of the servers in resolv.conf, with its search list, options and
// later changes; /etc/hosts is not read. Each name is asked again when its records
// expire or its refresh time is over, whichever its cluster chose.
package resolve

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"kmesh/helper/mesh"
)

// Options configure a resolver. The zero value of each is its default.
type Options struct {
	// Config is the file that names the servers; /etc/resolv.conf.
	Config string
	// Port is that of the servers; 53.
	Port uint16
	// MinTTL and MaxTTL bound the time between two answers for one name: a second, an
	// hour.
	MinTTL, MaxTTL time.Duration
	// Parallel is how many names are asked for at the same time; 16.
	Parallel int
	// Timeout is how long one name may take, with all its servers and attempts; 15 s.
	Timeout time.Duration
	Log     *slog.Logger
	// Clock and Random are the time and the chance that jitter comes from: Random
	// returns a time between zero and n.
	Clock  Clock
	Random func(n time.Duration) time.Duration
}

// Clock is the time.
type Clock interface {
	Now() time.Time
	// Timer sends once, d from now, unless it is stopped before.
	Timer(d time.Duration) (c <-chan time.Time, stop func())
}

// wall is the time of day.
type wall struct{}

func (wall) Now() time.Time { return time.Now() }

func (wall) Timer(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Resolver asks for names, and asks again.
type Resolver struct {
	opts   Options
	config config
	// changed has room for one: the names that are watched are others.
	changed chan struct{}

	mu    sync.Mutex
	names map[mesh.Lookup]*name
	queue queue // those that are not being asked for, the next one first
}

// New makes a resolver that watches nothing.
func New(opts Options) *Resolver {
	if opts.Config == "" {
		opts.Config = "/etc/resolv.conf"
	}
	if opts.Port == 0 {
		opts.Port = 53
	}
	if opts.MinTTL <= 0 {
		opts.MinTTL = time.Second
	}
	if opts.MaxTTL <= 0 {
		opts.MaxTTL = time.Hour
	}
	if opts.Parallel <= 0 {
		opts.Parallel = 16
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 15 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Clock == nil {
		opts.Clock = wall{}
	}
	if opts.Random == nil {
		opts.Random = func(n time.Duration) time.Duration { return rand.N(n + 1) }
	}
	return &Resolver{
		opts: opts, config: config{path: opts.Config},
		changed: make(chan struct{}, 1), names: map[mesh.Lookup]*name{},
	}
}

// Watch says which names are wanted, all of them: others are forgotten. It does not
// wait for anything.
func (r *Resolver) Watch(lookups []mesh.Lookup) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := make(map[mesh.Lookup]bool, len(lookups))
	for _, l := range lookups {
		wanted[l] = true
		if r.names[l] == nil {
			n := &name{lookup: l, due: r.opts.Clock.Now()}
			r.names[l] = n
			heap.Push(&r.queue, n)
		}
	}
	for l, n := range r.names {
		if !wanted[l] {
			delete(r.names, l)
			if n.place >= 0 {
				heap.Remove(&r.queue, n.place)
			}
		}
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// result is what became of asking for a name.
type result struct {
	name  *name
	found found
}

// Run asks for the names until ctx ends, and delivers each answer that differs from the
// one before. What is delivered is not changed afterwards.
func (r *Resolver) Run(ctx context.Context, deliver func(map[mesh.Lookup]mesh.Answer)) error {
	results := make(chan result, r.opts.Parallel)
	running := 0
	for {
		due, next := r.due(r.opts.Parallel - running)
		for _, n := range due {
			running++
			go func() { results <- result{n, r.ask(ctx, n.lookup)} }()
		}
		var timer <-chan time.Time
		stop := func() {}
		if running < r.opts.Parallel && !next.IsZero() {
			timer, stop = r.opts.Clock.Timer(next.Sub(r.opts.Clock.Now()))
		}
		select {
		case <-ctx.Done():
			stop()
			for ; running > 0; running-- {
				<-results
			}
			return nil
		case <-r.changed:
		case <-timer:
		case res := <-results:
			running--
			if answer, changed := r.take(res); changed && ctx.Err() == nil {
				deliver(map[mesh.Lookup]mesh.Answer{res.name.lookup: answer})
			}
		}
		stop()
	}
}

// due takes up to limit names out of the queue whose time has come; it also says when
// that of the next one comes, zero if there is none.
func (r *Resolver) due(limit int) (list []*name, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.opts.Clock.Now()
	for len(list) < limit && len(r.queue) > 0 && !r.queue[0].due.After(now) {
		list = append(list, heap.Pop(&r.queue).(*name))
	}
	if len(r.queue) > 0 {
		next = r.queue[0].due
	}
	return list, next
}

// take takes a result in, and tells whether it changes what is known.
func (r *Resolver) take(res result) (mesh.Answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := res.name
	if r.names[n.lookup] != n {
		return mesh.Answer{}, false // forgotten meanwhile
	}
	before := n.answer
	wait, changed := n.take(res.found, &r.opts)
	n.due = r.opts.Clock.Now().Add(wait)
	heap.Push(&r.queue, n)
	switch {
	case n.answer.Problem == before.Problem:
	case n.answer.Problem == "":
		r.opts.Log.Info("a name is resolved again", "name", n.lookup.Name, "addresses", len(n.answer.Addrs))
	default:
		r.opts.Log.Warn("a name is not resolved", "name", n.lookup.Name, "why", n.answer.Problem, "next", wait)
	}
	return n.answer, changed
}

// queue is a heap of names by their time.
type queue []*name

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	n := x.(*name)
	n.place = len(*q)
	*q = append(*q, n)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	n.place = -1
	return n
}
