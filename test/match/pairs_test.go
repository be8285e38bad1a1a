// SPDX-License-Identifier: Apache-2.0

package match

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// How many pairs are tried, and from which seed: `KMESH_PAIRS=1000000`; a failure says
// how to repeat it.
const (
	pairsEnv     = "KMESH_PAIRS"
	seedEnv      = "KMESH_SEED"
	defaultPairs = 60_000
	perConfig    = 50
)

// decision is all that matchers have to agree about.
type decision struct {
	Outcome head.Outcome
	// Of a head that is routed:
	Method, Path, Query, Authority string
	ContentLength                  int64
	Chunked, Upgrade, Expect100    bool
	KeepAlive                      bool
	// Candidates are the routes that match but for their fractions; Route is the one
	// taken, by the draws of the pair.
	Candidates string
	Route      int
}

// reference decides by head and explain.
func reference(m *explain.Matcher, vh *mesh.VirtualHost, req []byte, draws uint64) decision {
	r, out := head.ParseRequest(req)
	d := decision{Outcome: out, Route: -1}
	if out.Kind != head.Route {
		return d
	}
	d.Method, d.Path, d.Query, d.Authority = r.Method, r.Path, r.Query, r.Authority
	d.ContentLength, d.Chunked, d.Upgrade, d.Expect100, d.KeepAlive = r.ContentLength, r.Chunked, r.Upgrade, r.Expect100, r.KeepAlive
	var candidates []int
	for i, route := range vh.Routes {
		alone := &mesh.VirtualHost{Routes: []*mesh.Route{route}}
		if n, _ := m.Match(alone, &r, func(mesh.Fraction) bool { return true }); n == 0 {
			candidates = append(candidates, i)
		}
	}
	d.Candidates = fmt.Sprint(candidates)
	d.Route, _ = m.Match(vh, &r, drawing(draws))
	return d
}

// drawing draws by the bits of draws, one after the other.
func drawing(draws uint64) func(mesh.Fraction) bool {
	return func(mesh.Fraction) bool {
		bit := draws & 1
		draws = draws>>1 | bit<<63
		return bit == 1
	}
}

// feed runs the Go machine over b in pieces: cut where the bits of cuts are set.
func feed(p *automaton.Program, b []byte, cuts uint64) *automaton.Machine {
	m := automaton.NewMachine(p)
	from := 0
	for i := range b {
		if cuts>>(i%64)&1 == 1 {
			m.Feed(b[from:i])
			from = i
		}
	}
	m.Feed(b[from:])
	return m
}

// table is the decision of a machine that has read req.
func table(m *automaton.Machine, vh *mesh.VirtualHost, req []byte, draws uint64) decision {
	d := decision{Route: -1}
	switch m.Kind() {
	case automaton.Incomplete:
		return d
	case automaton.Route:
		d.Outcome = head.Outcome{Kind: head.Route, At: int(m.Position)}
	default:
		d.Outcome = fired(m.Rule())
		d.Outcome.At = int(m.Position)
		return d
	}
	text := func(span int) string {
		from, to := m.Span(span)
		return string(req[from:to])
	}
	d.Method, d.Path, d.Query, d.Authority = text(automaton.SpanMethod), text(automaton.SpanPath), text(automaton.SpanQuery), text(automaton.SpanHost)
	if d.Path == "" {
		d.Path = "/" // of an absolute target without one
	}
	d.ContentLength, d.Chunked, d.Upgrade = m.ContentLength(), m.Chunked(), m.Upgrade()
	d.Expect100, d.KeepAlive = m.Flags()&automaton.FlagExpect != 0, m.KeepAlive()
	var candidates []int
	for i := m.Next(0); i >= 0; i = m.Next(i + 1) {
		candidates = append(candidates, i)
	}
	d.take(vh, candidates, draws)
	return d
}

// take sets the candidates, and the first of them that its fraction takes.
func (d *decision) take(vh *mesh.VirtualHost, candidates []int, draws uint64) {
	d.Candidates = fmt.Sprint(candidates)
	draw := drawing(draws)
	for _, i := range candidates {
		if i >= len(vh.Routes) {
			return // the list of candidates shows it
		}
		if f := vh.Routes[i].Match.Fraction; f == nil || draw(*f) {
			d.Route = i
			return
		}
	}
}

// fired is the outcome of the machine's rule.
func fired(r *automaton.Rule) head.Outcome {
	out := head.Outcome{Rule: r.ID, Status: int(r.Status)}
	switch r.Kind {
	case automaton.Reject:
		out.Kind = head.Reject
	case automaton.Pin:
		out.Kind = head.Pin
	}
	for reason := head.H2; reason <= head.Malformed; reason++ {
		if reason.String() == r.Reason {
			out.Reason = reason
		}
	}
	return out
}

// virtualHost is that of the request, or any: the grammar is the same in all.
func virtualHost(cfg *mesh.HTTP, req []byte) *mesh.VirtualHost {
	if r, out := head.ParseRequest(req); out.Kind == head.Route {
		if vh := explain.FindVirtualHost(cfg, r.Authority); vh != nil {
			return vh
		}
	}
	return cfg.VirtualHosts[len(req)%len(cfg.VirtualHosts)]
}

// trial is one virtual host with all that decides for it.
type trial struct {
	vh        *mesh.VirtualHost
	reference *explain.Matcher
	program   *automaton.Program
	kernel    *kernel
	place     uint32 // of the program in the kernel
}

// newTrial compiles the virtual host.
func newTrial(k *kernel, vh *mesh.VirtualHost) (*trial, error) {
	p, err := automaton.Compile(vh, automaton.Budget{Time: time.Minute})
	if err != nil {
		return nil, err
	}
	return &trial{vh: vh, reference: new(explain.Matcher), program: p, kernel: k, place: k.load(p)}, nil
}

// compare says how the matchers differ about a pair; "" if they do not.
func (tr *trial) compare(req []byte, draws, cuts uint64) string {
	want := reference(tr.reference, tr.vh, req, draws)
	for _, cuts := range []uint64{0, cuts, ^uint64(0)} {
		if got := table(feed(tr.program, req, cuts), tr.vh, req, draws); got != want {
			return fmt.Sprintf("cut at the bits of %#x:\n Go        %+v\n reference %+v", cuts, got, want)
		}
	}
	for _, cuts := range []uint64{0, cuts} {
		m, err := tr.kernel.feed(tr.program, tr.place, req, cuts)
		if err != nil {
			return err.Error()
		}
		if got := table(m, tr.vh, req, draws); got != want {
			return fmt.Sprintf("cut at the bits of %#x:\n kernel    %+v\n reference %+v", cuts, got, want)
		}
	}
	return ""
}

// differs is compare for shrinking: it compiles.
func differs(k *kernel, cfg *mesh.HTTP, req []byte, draws, cuts uint64) string {
	tr, err := newTrial(k, virtualHost(cfg, req))
	if err != nil {
		return ""
	}
	return tr.compare(req, draws, cuts)
}

// TestPairs: the reference and the automaton decide alike about every pair.
func TestPairs(t *testing.T) {
	pairs, first := defaultPairs, rand.Uint64()
	if s := os.Getenv(pairsEnv); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", pairsEnv, err)
		}
		pairs = n
	}
	if s := os.Getenv(seedEnv); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		first = n
	}
	t.Logf("to repeat: %s=%d %s=%d", seedEnv, first, pairsEnv, pairs)

	var next, done, routed, matched, over atomic.Int64
	var workers sync.WaitGroup
	start := time.Now()
	for range runtime.GOMAXPROCS(0) {
		k := newKernel(t)
		workers.Go(func() {
			for !t.Failed() {
				i := next.Add(1) - 1
				if i*perConfig >= int64(pairs)+over.Load() {
					return
				}
				n := tryConfig(t, k, first+uint64(i))
				done.Add(perConfig)
				routed.Add(int64(n.routed))
				matched.Add(int64(n.matched))
				over.Add(int64(n.over))
			}
		})
	}
	workers.Wait()
	t.Logf("%d pairs in %v, %d heads routed, %d to a route; %d more over budget",
		done.Load()-over.Load(), time.Since(start).Round(time.Millisecond), routed.Load(), matched.Load(), over.Load())
	if routed.Load() < done.Load()/2 || matched.Load() < done.Load()/5 {
		t.Error("too few heads are routed to say anything")
	}
	if over.Load() > done.Load()/100 {
		t.Error("too many virtual hosts are over budget")
	}
}

// tally counts pairs: with a head that is routed, to a route; and with a virtual host that
// is over budget.
type tally struct{ routed, matched, over int }

// tryConfig tries the pairs of one seed.
func tryConfig(t *testing.T, k *kernel, seed uint64) (n tally) {
	g := NewGenerator(seed)
	cfg := g.Config()
	trials := map[*mesh.VirtualHost]*trial{}
	for range perConfig {
		req := g.Request(cfg)
		draws, cuts := g.r.Uint64(), g.r.Uint64()&g.r.Uint64()&g.r.Uint64()
		vh := virtualHost(cfg, req)
		tr, ok := trials[vh]
		if !ok {
			var err error
			tr, err = newTrial(k, vh)
			var over *automaton.BudgetError
			if err != nil && !errors.As(err, &over) {
				t.Errorf("%s=%d: %v\n%s", seedEnv, seed, err, Format(cfg, nil))
				return n
			}
			trials[vh] = tr // nil if it costs too much: nobody runs it
		}
		if tr == nil {
			n.over++
			continue
		}
		if d := tr.compare(req, draws, cuts); d != "" {
			small, short := Shrink(cfg, req, func(c *mesh.HTTP, b []byte) bool { return differs(k, c, b, draws, cuts) != "" })
			t.Errorf("%s=%d %s=%d: %s\nshrunk:\n%s%s", seedEnv, seed, pairsEnv, perConfig, d, Format(small, short), differs(k, small, short, draws, cuts))
			return n
		}
		if d := reference(tr.reference, vh, req, draws); d.Outcome.Kind == head.Route {
			n.routed++
			if d.Route >= 0 {
				n.matched++
			}
		}
	}
	return n
}
