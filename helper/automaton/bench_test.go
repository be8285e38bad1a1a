// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/helper/automaton"
	"kmesh/helper/mesh"
)

// routesOf makes a virtual host of n routes, whose paths are those of path.
func routesOf(n int, path func(i int) mesh.PathMatch) *mesh.VirtualHost {
	vh := &mesh.VirtualHost{Name: "bench", Domains: []string{"*"}}
	for i := range n {
		vh.Routes = append(vh.Routes, &mesh.Route{
			Name:  fmt.Sprint("r", i),
			Match: mesh.RouteMatch{Path: path(i)},
		})
	}
	return vh
}

func exact(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathExact, Value: fmt.Sprintf("/api/v%d/svc%d/res", i%3, i)}
}

func prefix(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathPrefix, Value: fmt.Sprintf("/api/v%d/svc%d/res", i%3, i)}
}

func segment(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: fmt.Sprintf("/svc%d", i)}
}

func template(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf("/v[0-9]+/svc%d/[^/]+/res(/[^/]+)?", i)}
}

func infix(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf(".*/admin%d/.*", i)}
}

func suffix(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf(`.*\.e%d`, i)}
}

func mixed(i int) mesh.PathMatch {
	switch i % 5 {
	case 0, 1:
		return exact(i)
	case 2, 3:
		return prefix(i)
	}
	if i%100 == 4 {
		return suffix(i)
	}
	return template(i)
}

func uuid(i int) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathRegex,
		Value: fmt.Sprintf("/r%d/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", i)}
}

func BenchmarkCompile(b *testing.B) {
	for _, bench := range []struct {
		name string
		path func(int) mesh.PathMatch
		n    int
	}{
		{"none", exact, 0},
		{"exact", exact, 100}, {"exact", exact, 1000},
		{"prefix", prefix, 1000}, {"segment", segment, 1000},
		{"template", template, 100}, {"template", template, 1000},
		{"infix", infix, 12}, {"infix", infix, 1000},
		{"suffix", suffix, 100}, {"mixed", mixed, 500}, {"uuid", uuid, 20},
	} {
		b.Run(fmt.Sprintf("%s/%d", bench.name, bench.n), func(b *testing.B) {
			vh := routesOf(bench.n, bench.path)
			var p *automaton.Program
			for b.Loop() {
				var err error
				if p, err = automaton.Compile(vh, automaton.Budget{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms")
			b.ReportMetric(float64(p.Stats.States), "states")
			b.ReportMetric(float64(p.Stats.TableBytes)/1024, "table-KiB")
			b.ReportMetric(float64(p.Stats.Bytes)/1024, "KiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is that of the process, for the machine may have other things to do.
func cpuTime(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano())
}

// TestBudget: what costs too much is refused within the time, with the culprit's name.
func TestBudget(t *testing.T) {
	harmless := func(vh *mesh.VirtualHost, at int, bad ...string) *mesh.VirtualHost {
		var routes []*mesh.Route
		for i, r := range vh.Routes {
			if i == at {
				for k, b := range bad {
					routes = append(routes, &mesh.Route{
						Name:  fmt.Sprint("bad", k),
						Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathRegex, Value: b}},
					})
				}
			}
			routes = append(routes, r)
		}
		vh.Routes = routes
		return vh
	}
	var infixes []string
	for i := range 30 {
		infixes = append(infixes, fmt.Sprintf("/.*/admin%d/x.*", i))
	}
	for _, tc := range []struct {
		name, route, what string
		vh                *mesh.VirtualHost
	}{
		{"counted gap", "bad0", "", harmless(routesOf(50, exact), 20, ".*a.{15}")},
		{"counted gap among templates", "bad0", "", harmless(routesOf(300, template), 200, ".*a.{18}b")},
		{"many infixes that are not plain", "", "", harmless(routesOf(20, exact), 10, infixes...)},
		{"repeats", "bad0", "", harmless(routesOf(20, exact), 10, "(?:(?:a{1,100}b){1,9}c?.*){1}(?:x{1,300}y?z){3}.*a.{200}")},
		{"too many infixes", "r1024", "infix patterns", routesOf(1100, infix)},
		{"long repeats", "", "", routesOf(600, func(i int) mesh.PathMatch {
			return mesh.PathMatch{Kind: mesh.PathRegex, Value: fmt.Sprintf("/x%d(ab?){900}", i)}
		})},
		{"too many routes", "r4096", "routes", routesOf(4097, segment)},
		{"too many states", "", "", routesOf(4000, template)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := cpuTime(t)
			_, err := automaton.Compile(tc.vh, automaton.Budget{})
			took := cpuTime(t) - start
			var over *automaton.BudgetError
			if !errors.As(err, &over) {
				t.Fatalf("error %v, want a BudgetError", err)
			}
			t.Logf("%v, after %v", err, took)
			if tc.route != "" && over.Route != tc.route || over.Route == "" {
				t.Errorf("culprit %q, want %q", over.Route, tc.route)
			}
			if tc.what != "" && over.What != tc.what {
				t.Errorf("what %q, want %q", over.What, tc.what)
			}
		})
	}
}
