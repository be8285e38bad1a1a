// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"flag"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

var (
	seed  = flag.Uint64("seed", 1, "the first seed of random configurations")
	pairs = flag.Int("pairs", 1000, "how many pairs of random configurations")
	wide  = flag.Bool("wide", false, "try requests of more strings: ten times as many")
)

// texts are those of which requests are made, by dimension.
type texts struct {
	methods, paths, hosts, queries []string
	fields                         [][]head.Field
}

// below returns all paths of up to n bytes after the first "/".
func below(n int) []string {
	paths := []string{"/"}
	for i := 0; i < len(paths); i++ {
		if len(paths[i]) <= n {
			paths = append(paths, paths[i]+"a", paths[i]+"b", paths[i]+"/")
		}
	}
	return paths
}

// field makes a field of x, y and the like.
func field(name, value string) head.Field { return head.Field{Name: name, Value: value} }

var (
	coding, length = field("Transfer-Encoding", "chunked"), field("Content-Length", "1")

	small = texts{
		methods: []string{"GET", "OPTIONS"},
		paths:   append(below(2), "*"),
		hosts:   []string{"", "a", "b", "c.a.b", "a:1", "c"},
		queries: []string{"", "?k", "?k=a", "?k=b&l", "?k=ba&k=a"},
		fields: [][]head.Field{
			nil, {field("x", "")}, {field("x", "a")}, {field("X", "b")}, {field("x", "5")}, {field("y", "a")},
			{field("x", "a"), field("y", "b")}, {field("x", "a"), field("x", "b")}, {coding}, {coding, length},
		},
	}
	large = texts{
		methods: []string{"GET", "POST", "OPTIONS"},
		paths:   append(below(3), "/A", "/aB/b", "/a/bb", "*"),
		hosts:   []string{"", "a", "A", "b", "a.b", "c.a.b", "a.c", "a:1", "a.b:2", "c"},
		queries: []string{"", "?k", "?k=a", "?k=b&l", "?l=ab", "?k=ba&k=a", "?"},
		fields: append(small.fields,
			[]head.Field{field("x", "ab")}, []head.Field{field("x", "A")}, []head.Field{field("x", "aa")},
			[]head.Field{field("y", "")}, []head.Field{field("y", "b")}, []head.Field{field("y", "7")},
			[]head.Field{field("x", "a"), field("y", "")}, []head.Field{length}),
	}
)

// universe is every request that can be made of the strings.
func universe(t *testing.T, s texts) []*head.Request {
	var all []*head.Request
	refused := map[string]int{}
	for _, method := range s.methods {
		for _, path := range s.paths {
			for _, host := range s.hosts {
				for _, query := range s.queries {
					for _, fields := range s.fields {
						w := Witness{Method: method, Host: host, Target: path + query, Fields: fields}
						r, outcome := head.ParseRequest(w.Raw())
						if outcome.Kind != head.Route {
							refused[outcome.Rule]++
							continue
						}
						all = append(all, &r)
					}
				}
			}
		}
	}
	for _, rule := range []string{"te-with-content-length", "te-in-1.0", "star-target"} {
		if refused[rule] == 0 {
			t.Fatalf("no request is refused by %s", rule)
		}
	}
	return all
}

// fate is what the reference does with a request.
type fate struct {
	vh       *mesh.VirtualHost
	chain    []int
	outcomes map[string]float64 // as the client sees them
}

func fateOf(h *mesh.HTTP, r *head.Request, matchers map[*mesh.VirtualHost]*explain.Matcher) fate {
	f := fate{vh: explain.FindVirtualHost(h, r.Authority), outcomes: map[string]float64{}}
	left := 1.0
	add := func(what string, share float64) {
		if share > 0 {
			f.outcomes[what] += share
		}
	}
	for f.vh != nil && left > 0 {
		m := matchers[f.vh]
		if m == nil {
			m = new(explain.Matcher)
			matchers[f.vh] = m
		}
		n := 0
		i, _ := m.Match(f.vh, r, func(fr mesh.Fraction) bool {
			if fr.Numerator == 0 {
				return false
			}
			n++
			return n > len(f.chain)
		})
		if i < 0 {
			break
		}
		f.chain = append(f.chain, i)
		route, taken := f.vh.Routes[i], left
		if fr := route.Match.Fraction; fr != nil {
			taken *= float64(fr.Numerator) / float64(fr.Denominator)
		}
		left -= taken
		if a := route.Abort; a != nil {
			part := taken * float64(a.Fraction.Numerator) / float64(a.Fraction.Denominator)
			add(fmt.Sprint("abort ", a.Status), part)
			taken -= part
		}
		switch {
		case route.Unsupported:
			add("unsupported", taken)
		case route.Redirect != nil:
			add(fmt.Sprint(route.Redirect.Status, explain.Location(route.Redirect, &route.Match.Path, r)), taken)
		case route.Direct != nil:
			add(fmt.Sprintf("direct %d %s", route.Direct.Status, route.Direct.Body), taken)
		default:
			sum := uint32(0)
			for _, c := range route.Clusters {
				sum += c.Weight
			}
			for _, c := range route.Clusters {
				add(c.Cluster, taken*float64(c.Weight)/float64(sum))
			}
		}
	}
	add("404", left)
	return f
}

func (f fate) same(o fate) bool {
	return maps.EqualFunc(f.outcomes, o.outcomes, func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
}

func (f fate) redirects() bool {
	return slices.ContainsFunc(f.chain, func(i int) bool { return f.vh.Routes[i].Redirect != nil })
}

func (f fate) key() string { return fmt.Sprint(vhName(f.vh), f.chain) }

func (d *Decision) key() string {
	if !d.FoundHost {
		return fmt.Sprint(vhName(nil), d.indexes())
	}
	return fmt.Sprint(d.VirtualHost, d.indexes())
}

// TestBruteForce: what Compare says of two configurations is what trying every request
// of a universe says. Replay one pair with -seed N -pairs 1.
func TestBruteForce(t *testing.T) {
	requests := universe(t, small)
	if *wide {
		requests = universe(t, large)
	}
	t.Logf("%d pairs from seed %d, %d requests each", *pairs, *seed, len(requests))
	var changes, confirmed, same, never, changedRequests atomic.Int64
	t.Run("pairs", func(t *testing.T) {
		for worker := range 2 {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < *pairs; i += 2 {
					s := *seed + uint64(i)
					r := newRandom(s)
					before := r.config()
					after := r.changed(before)
					if r.oneIn(5) {
						after = r.config()
					}
					got, err := Compare(before, after, Limits{})
					if err != nil {
						t.Fatalf("seed %d: %v", s, err)
					}
					c := check{t: t, seed: s, hs: [2]*mesh.HTTP{before, after}, got: got}
					c.all(requests)
					changes.Add(int64(len(got.Changes)))
					confirmed.Add(int64(len(c.confirmed)))
					never.Add(int64(len(got.NeverOld) + len(got.NeverNew)))
					changedRequests.Add(int64(c.changed))
					if len(got.Changes) == 0 {
						same.Add(1)
					}
					if t.Failed() {
						t.FailNow()
					}
				}
			})
		}
	})
	t.Logf("%d changed decisions, %d of them met in the universe by %d requests; %d pairs without change; %d routes never reached",
		changes.Load(), confirmed.Load(), changedRequests.Load(), same.Load(), never.Load())
	if *pairs >= 1000 && (confirmed.Load() < 1000 || same.Load() < 20 || never.Load() < 500) {
		t.Error("the pairs do not show much")
	}
}

// TestSampled is the same with the generator that the matchers are tested with: every
// kind of condition over more strings, and requests near to what the routes ask.
func TestSampled(t *testing.T) {
	const configs, requests = 150, 300
	t.Logf("%d pairs from seed %d", configs, *seed)
	changed := 0
	for s := *seed; s < *seed+configs; s++ {
		g := match.NewGenerator(s)
		before := g.Config()
		after := newRandom(s).changed(before)
		got, err := Compare(before, after, Limits{})
		if err != nil {
			t.Fatalf("seed %d: %v", s, err)
		}
		if again, err := Compare(before, after, Limits{}); err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("seed %d: the second answer is another one: %v", s, err)
		}
		var sample []*head.Request
		for i := range requests {
			from := before
			bare := func(vh *mesh.VirtualHost) bool { return len(vh.Routes) == 0 }
			if i%2 == 1 && !slices.ContainsFunc(after.VirtualHosts, bare) {
				from = after
			}
			if r, outcome := head.ParseRequest(g.Request(from)); outcome.Kind == head.Route {
				sample = append(sample, &r)
			}
		}
		c := check{t: t, seed: s, hs: [2]*mesh.HTTP{before, after}, got: got}
		c.all(sample)
		changed += c.changed
	}
	if changed < 1000 {
		t.Errorf("only %d requests were decided otherwise", changed)
	}
}

// check holds a result against requests.
type check struct {
	t         *testing.T
	seed      uint64
	hs        [2]*mesh.HTTP
	got       *Result
	confirmed map[string]bool
	changed   int
}

func (c *check) all(requests []*head.Request) {
	c.t.Helper()
	c.confirmed = map[string]bool{}
	claimed := map[string]bool{}
	matchers := map[*mesh.VirtualHost]*explain.Matcher{}
	for i := range c.got.Changes {
		change := &c.got.Changes[i]
		key := change.Old.key() + change.New.key()
		if claimed[key] {
			c.t.Errorf("seed %d: %s is there twice", c.seed, key)
		}
		claimed[key] = true
		r, outcome := head.ParseRequest(change.Witness.Raw())
		old, new := fateOf(c.hs[0], &r, matchers), fateOf(c.hs[1], &r, matchers)
		if outcome.Kind != head.Route || old.key() != change.Old.key() || new.key() != change.New.key() {
			c.t.Errorf("seed %d: %s: witness %q: %v, %s, %s", c.seed, key, change.Witness.Raw(), outcome, old.key(), new.key())
		}
		if old.same(new) && !old.redirects() {
			c.t.Errorf("seed %d: %s: witness %q: no change: %v", c.seed, key, change.Witness.Raw(), old.outcomes)
		}
	}
	never := [2]map[RouteRef]*Never{{}, {}}
	for side, list := range [][]Never{c.got.NeverOld, c.got.NeverNew} {
		for i := range list {
			never[side][list[i].Route] = &list[i]
			c.behind(c.hs[side], &list[i], requests)
		}
	}
	for _, r := range requests {
		old, new := fateOf(c.hs[0], r, matchers), fateOf(c.hs[1], r, matchers)
		key := old.key() + new.key()
		changed := !old.same(new)
		switch {
		case changed && !claimed[key]:
			c.t.Errorf("seed %d: %s %s %s %v: %v becomes %v, which is not claimed", c.seed, r.Method, r.Target, r.Authority, r.Fields, old, new)
			return
		case !changed && claimed[key] && !old.redirects():
			c.t.Errorf("seed %d: %s %s %s %v: claimed, but stays %v", c.seed, r.Method, r.Target, r.Authority, r.Fields, old)
			return
		case changed:
			c.changed++
			c.confirmed[key] = true
		}
		for side, f := range []fate{old, new} {
			for _, i := range f.chain {
				ref := RouteRef{f.vh.Name, i, f.vh.Routes[i].Name}
				if n := never[side][ref]; n != nil {
					c.t.Errorf("seed %d: %s %s %s %v reaches %v, of which is said: %s", c.seed, r.Method, r.Target, r.Authority, r.Fields, ref, n.Reason)
					return
				}
			}
		}
	}
}

// behind: whatever meets a shadowed route meets one of those that it is behind.
func (c *check) behind(h *mesh.HTTP, n *Never, requests []*head.Request) {
	i := slices.IndexFunc(h.VirtualHosts, func(vh *mesh.VirtualHost) bool { return vh.Name == n.Route.VirtualHost })
	route := h.VirtualHosts[i].Routes[n.Route.Index]
	if f := route.Match.Fraction; f != nil && f.Numerator == 0 {
		return
	}
	own := &mesh.VirtualHost{Routes: []*mesh.Route{{Match: route.Match}}}
	before := &mesh.VirtualHost{}
	for _, by := range n.Behind {
		before.Routes = append(before.Routes, h.VirtualHosts[i].Routes[by.Index])
	}
	var alone, others explain.Matcher
	always := func(mesh.Fraction) bool { return true }
	for _, r := range requests {
		if explain.FindVirtualHost(h, r.Authority) != h.VirtualHosts[i] {
			continue
		}
		if is, _ := alone.Match(own, r, always); is < 0 {
			continue
		}
		if by, _ := others.Match(before, r, always); by < 0 {
			c.t.Errorf("seed %d: %s %s %s %v meets %v, of which is said: %s", c.seed, r.Method, r.Target, r.Authority, r.Fields, n.Route, n.Reason)
			return
		}
	}
}
