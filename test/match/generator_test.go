// SPDX-License-Identifier: Apache-2.0

package match

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// conditions splits a route's match into matches of one condition each, with a name for
// its kind.
func conditions(m mesh.RouteMatch) map[string]mesh.RouteMatch {
	out := map[string]mesh.RouteMatch{
		fmt.Sprintf("path %d, ignore case %v", m.Path.Kind, m.Path.IgnoreCase): {Path: m.Path},
	}
	for _, h := range m.Headers {
		name := "header"
		if strings.HasPrefix(h.Name, ":") {
			name = h.Name
		}
		name = fmt.Sprintf("%s %d, string %d, invert %v", name, h.Kind, h.Match.Kind, h.Invert)
		alone := mesh.RouteMatch{Headers: []mesh.HeaderMatch{h}}
		out[name] = alone
		out[fmt.Sprintf("%s, ignore case %v, missing as empty %v", name, h.Match.IgnoreCase, h.MissingAsEmpty)] = alone
	}
	for _, q := range m.Query {
		out[fmt.Sprintf("query present %v, string %d, ignore case %v", q.Present, q.Match.Kind, q.Match.IgnoreCase)] =
			mesh.RouteMatch{Query: []mesh.QueryMatch{q}}
	}
	if m.Fraction != nil {
		out["fraction"] = mesh.RouteMatch{Fraction: m.Fraction}
	}
	return out
}

// TestCoverage: the pairs have every kind of condition, met and not met, in
// combinations; every outcome of a head; and virtual hosts of every kind.
func TestCoverage(t *testing.T) {
	met, failed, outcomes, odd := map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	const configs, requests = 6000, 10
	for seed := range uint64(configs) {
		g := NewGenerator(seed)
		cfg := g.Config()
		for range requests {
			req := g.Request(cfg)
			r, out := head.ParseRequest(req)
			outcomes[fmt.Sprint(out.Kind, " ", out.Rule)]++
			outcomes[out.Kind.String()]++
			if out.Kind != head.Route {
				continue
			}
			vh := explain.FindVirtualHost(cfg, r.Authority)
			if vh == nil {
				odd["no virtual host"]++
				continue
			}
			draw := func(mesh.Fraction) bool { return g.oneIn(2) }
			took, _ := explain.Match(vh, &r, draw)
			switch {
			case took < 0:
				odd["no route"]++
			case took >= 64:
				odd["route above 64"]++
			default:
				odd[fmt.Sprint("route of conditions ", len(conditions(vh.Routes[took].Match)))]++
			}
			seen := map[string]bool{}
			for _, f := range r.Fields {
				if seen[strings.ToLower(f.Name)] {
					odd["repeated header"]++
				}
				seen[strings.ToLower(f.Name)] = true
			}
			for _, route := range vh.Routes[:min(len(vh.Routes), 8)] {
				for name, match := range conditions(route.Match) {
					if i, _ := explain.Match(&mesh.VirtualHost{Routes: []*mesh.Route{{Match: match}}}, &r, draw); i == 0 {
						met[name]++
					} else {
						failed[name]++
					}
				}
			}
		}
	}

	// Every kind that the model has, both ways.
	var want []string
	for _, ignore := range []bool{false, true} {
		for kind := mesh.PathPrefix; kind < mesh.PathRegex; kind++ {
			want = append(want, fmt.Sprintf("path %d, ignore case %v", kind, ignore))
		}
		for kind := mesh.StringExact; kind < mesh.StringRegex; kind++ {
			want = append(want, fmt.Sprintf("query present false, string %d, ignore case %v", kind, ignore))
			for _, invert := range []bool{false, true} {
				want = append(want, fmt.Sprintf(":authority 0, string %d, invert %v", kind, invert), fmt.Sprintf(":method 0, string %d, invert %v", kind, invert))
				for _, missing := range []bool{false, true} {
					want = append(want, fmt.Sprintf("header 0, string %d, invert %v, ignore case %v, missing as empty %v", kind, invert, ignore, missing))
				}
			}
		}
		want = append(want, fmt.Sprintf(":authority 0, string %d, invert %v", mesh.StringRegex, ignore), fmt.Sprintf(":method 0, string %d, invert %v", mesh.StringRegex, ignore),
			fmt.Sprintf("header %d, string 0, invert %v", mesh.HeaderPresent, ignore), fmt.Sprintf("header %d, string 0, invert %v", mesh.HeaderAbsent, ignore))
		for _, missing := range []bool{false, true} {
			want = append(want, fmt.Sprintf("header 0, string %d, invert %v, ignore case false, missing as empty %v", mesh.StringRegex, ignore, missing),
				fmt.Sprintf("header %d, string 0, invert %v, ignore case false, missing as empty %v", mesh.HeaderRange, ignore, missing))
		}
	}
	want = append(want, fmt.Sprintf("path %d, ignore case false", mesh.PathRegex), "query present true, string 0, ignore case false",
		fmt.Sprintf("query present false, string %d, ignore case false", mesh.StringRegex), "fraction")
	for _, name := range want {
		if met[name] < 10 || failed[name] < 10 {
			t.Errorf("%s: met %d times, failed %d times", name, met[name], failed[name])
		}
	}
	for _, name := range []string{"no virtual host", "no route", "route above 64", "repeated header", "route of conditions 1", "route of conditions 4", "route of conditions 6"} {
		if odd[name] < 20 {
			t.Errorf("%s: %d times", name, odd[name])
		}
	}
	if outcomes["route"] < configs*requests/2 {
		t.Errorf("only %d of %d heads are routed", outcomes["route"], configs*requests)
	}
	for _, name := range []string{"incomplete", "pin", "reject"} {
		if outcomes[name] < configs*requests/100 {
			t.Errorf("only %d heads are decided %s", outcomes[name], name)
		}
	}
	for _, rule := range head.Rules {
		if rule.Part == head.PartRequest && rule.Action != head.Route && outcomes[fmt.Sprint(rule.Action, " ", rule.ID)] == 0 {
			t.Errorf("rule %s never fired", rule.ID)
		}
	}
	t.Logf("%v, %v", outcomes, odd)
}

// TestSeed: a seed makes the same pairs again.
func TestSeed(t *testing.T) {
	a, b := NewGenerator(7), NewGenerator(7)
	for range 100 {
		ca, cb := a.Config(), b.Config()
		if ra, rb := a.Request(ca), b.Request(cb); !reflect.DeepEqual(ca, cb) || !bytes.Equal(ra, rb) {
			t.Fatalf("one seed, two pairs:\n%s\n%s", Format(ca, ra), Format(cb, rb))
		}
	}
}

// TestShrink: what is left is only what makes it fail.
func TestShrink(t *testing.T) {
	g := NewGenerator(3)
	bad := func(cfg *mesh.HTTP, req []byte) bool {
		for _, vh := range cfg.VirtualHosts {
			for _, route := range vh.Routes {
				for _, h := range route.Match.Headers {
					if h.Kind == mesh.HeaderPresent && bytes.Contains(req, []byte("HTTP")) {
						return true
					}
				}
			}
		}
		return false
	}
	shrunk := 0
	for range 200 {
		cfg := g.Config()
		req := g.Request(cfg)
		if !bad(cfg, req) {
			continue
		}
		before := Format(cfg, req)
		small, short := Shrink(cfg, req, bad)
		if string(short) != "HTTP" || len(small.VirtualHosts) != 1 || len(small.VirtualHosts[0].Routes) != 1 {
			t.Fatalf("not shrunk:\n%s", Format(small, short))
		}
		m := small.VirtualHosts[0].Routes[0].Match
		if m.Path != (mesh.PathMatch{}) || len(m.Headers) != 1 || m.Headers[0].Invert || len(m.Query) > 0 || m.Fraction != nil {
			t.Fatalf("not shrunk:\n%s", Format(small, short))
		}
		if Format(cfg, req) != before {
			t.Fatal("Shrink has changed the pair that it was given")
		}
		shrunk++
	}
	if shrunk == 0 {
		t.Fatal("no pair to shrink")
	}
}
