// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"

	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

var pairs = flag.Int("pairs", 30_000, "generated pairs to hold against the reference")

// verdict is what two machines must agree on.
type verdict struct {
	outcome    string
	at         int
	method     string
	path       string
	query      string
	authority  string
	length     int64
	chunked    bool
	upgrade    bool
	expect     bool
	keepAlive  bool
	candidates string
}

// wanted is the reference's. The candidates are those of all routes.
func wanted(m *explain.Matcher, vh *mesh.VirtualHost, b []byte) verdict {
	r, out := head.ParseRequest(b)
	v := verdict{outcome: describe(out.Kind.String(), out.Rule, uint16(out.Status), out.Reason.String()), at: out.At}
	if out.Kind != head.Route {
		return v
	}
	v.method, v.path, v.query, v.authority = r.Method, r.Path, r.Query, r.Authority
	v.length, v.chunked, v.upgrade = r.ContentLength, r.Chunked, r.Upgrade
	v.expect, v.keepAlive = r.Expect100, r.KeepAlive
	var found []int
	for i, route := range vh.Routes {
		alone := &mesh.VirtualHost{Routes: []*mesh.Route{route}}
		if n, _ := m.Match(alone, &r, func(mesh.Fraction) bool { return true }); n == 0 {
			found = append(found, i)
		}
	}
	v.candidates = fmt.Sprint(found)
	return v
}

// describe names an outcome. A rule that only says why a head is routed does not
// count.
func describe(kind, rule string, status uint16, reason string) string {
	if kind == "route" || kind == "incomplete" {
		return kind
	}
	return fmt.Sprintf("%s %s %d %s", kind, rule, status, reason)
}

func got(m *automaton.Machine, b []byte) verdict {
	kind := m.Kind()
	var v verdict
	if r := m.Rule(); r != nil {
		v.outcome = describe(kind.String(), r.ID, r.Status, r.Reason)
	} else {
		v.outcome = describe(kind.String(), "", 0, "")
	}
	if kind == automaton.Incomplete {
		return v
	}
	v.at = int(m.Position)
	if kind != automaton.Route {
		return v
	}
	text := func(span int) string {
		from, to := m.Span(span)
		return string(b[from:to])
	}
	v.method, v.query, v.authority = text(automaton.SpanMethod), text(automaton.SpanQuery), text(automaton.SpanHost)
	if v.path = text(automaton.SpanPath); v.path == "" {
		v.path = "/"
	}
	v.length, v.chunked, v.upgrade = m.ContentLength(), m.Chunked(), m.Upgrade()
	v.expect, v.keepAlive = m.Flags()&automaton.FlagExpect != 0, m.KeepAlive()
	var found []int
	for i := m.Next(0); i >= 0; i = m.Next(i + 1) {
		found = append(found, i)
	}
	v.candidates = fmt.Sprint(found)
	return v
}

func run(p *automaton.Program, b []byte, cuts ...int) verdict {
	m := automaton.NewMachine(p)
	from := 0
	for _, at := range append(cuts, len(b)) {
		m.Feed(b[from:at])
		from = at
	}
	return got(m, b)
}

func runBytes(p *automaton.Program, b []byte) verdict {
	m := automaton.NewMachine(p)
	for i := range b {
		m.Feed(b[i : i+1])
	}
	return got(m, b)
}

// refusals counts virtual hosts that are too large. The generator makes a hundred
// random paths and puts ".*/\pL+" beside them, but hardly ever.
type refusals struct{ all, refused int }

func (r *refusals) compile(t *testing.T, seed int, vh *mesh.VirtualHost) *automaton.Program {
	r.all++
	p, err := automaton.Compile(vh, automaton.Budget{})
	var over *automaton.BudgetError
	if errors.As(err, &over) {
		r.refused++
		return nil
	}
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return p
}

func (r *refusals) check(t *testing.T) {
	if r.refused > 0 {
		t.Logf("%d of %d virtual hosts are too large", r.refused, r.all)
	}
	if r.refused*1000 > r.all {
		t.Errorf("%d of %d virtual hosts are refused", r.refused, r.all)
	}
}

// TestReference holds the machine against the reference, on whole heads, on heads
// fed byte by byte and on heads cut in two.
func TestReference(t *testing.T) {
	const perConfig = 100
	routed, matched := 0, 0
	var refusals refusals
	for seed := range *pairs / perConfig {
		g := match.NewGenerator(uint64(seed))
		cfg := g.Config()
		programs := map[*mesh.VirtualHost]*automaton.Program{}
		for _, vh := range cfg.VirtualHosts {
			programs[vh] = refusals.compile(t, seed, vh)
		}
		var matcher explain.Matcher
		for n := range perConfig {
			req := g.Request(cfg)
			vh := cfg.VirtualHosts[n%len(cfg.VirtualHosts)]
			if r, out := head.ParseRequest(req); out.Kind == head.Route {
				if found := explain.FindVirtualHost(cfg, r.Authority); found != nil {
					vh = found
				}
			}
			want := wanted(&matcher, vh, req)
			p := programs[vh]
			if p == nil {
				continue
			}
			have := []verdict{run(p, req), runBytes(p, req), run(p, req, n*len(req)/perConfig)}
			for i, v := range have {
				if v != want {
					small, input := match.Shrink(&mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{vh}}, req, differs)
					t.Fatalf("seed %d, way %d:\nhave %+v\nwant %+v\n%s\nhave %+v\nwant %+v", seed, i, v, want,
						match.Format(small, input), runOn(small, input), wanted(&explain.Matcher{}, small.VirtualHosts[0], input))
				}
			}
			if want.outcome == "route" {
				routed++
				if want.candidates != "[]" {
					matched++
				}
			}
		}
	}
	refusals.check(t)
	t.Logf("%d pairs, %d routed, %d with candidates", *pairs, routed, matched)
	if routed < *pairs/3 || matched < *pairs/6 {
		t.Errorf("the generator hardly meets a route")
	}
}

func runOn(cfg *mesh.HTTP, req []byte) verdict {
	p, err := automaton.Compile(cfg.VirtualHosts[0], automaton.Budget{})
	if err != nil {
		return verdict{outcome: err.Error()}
	}
	return run(p, req)
}

func differs(cfg *mesh.HTTP, req []byte) bool {
	if len(cfg.VirtualHosts) == 0 {
		return false
	}
	have := runOn(cfg, req)
	return !strings.Contains(have.outcome, "virtual host") && have != wanted(&explain.Matcher{}, cfg.VirtualHosts[0], req)
}
