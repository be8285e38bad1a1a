// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// to makes a route that goes to a cluster, if the conditions hold.
func to(cluster string, conditions ...any) *mesh.Route {
	r := &mesh.Route{Name: cluster, Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
	for _, c := range conditions {
		switch c := c.(type) {
		case string:
			r.Match.Path = mesh.PathMatch{Kind: mesh.PathPrefix, Value: c}
		case mesh.PathMatch:
			r.Match.Path = c
		case mesh.HeaderMatch:
			r.Match.Headers = append(r.Match.Headers, c)
		case mesh.QueryMatch:
			r.Match.Query = append(r.Match.Query, c)
		case mesh.Fraction:
			r.Match.Fraction = &c
		}
	}
	return r
}

func is(name, value string) mesh.HeaderMatch {
	return mesh.HeaderMatch{Name: name, Match: mesh.StringMatch{Value: value}}
}

func absent(name string) mesh.HeaderMatch {
	return mesh.HeaderMatch{Name: name, Kind: mesh.HeaderAbsent}
}

func regexPath(expr string) mesh.PathMatch {
	return mesh.PathMatch{Kind: mesh.PathRegex, Value: expr}
}

func with(r *mesh.Route, change func(*mesh.Route)) *mesh.Route {
	change(r)
	return r
}

// host makes the routing of one virtual host.
func host(routes ...*mesh.Route) *mesh.HTTP { return hosts([]string{"*"}, routes...) }

func hosts(domains []string, routes ...*mesh.Route) *mesh.HTTP {
	return &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: "v", Domains: domains, Routes: routes}}}
}

func (c *Change) String() string {
	return fmt.Sprintf("%v -> %v: %s", &c.Old, &c.New, strings.TrimSuffix(string(c.Witness.Raw()), "\r\n\r\n"))
}

func TestCompare(t *testing.T) {
	redirectTo := func(prefix, by string) *mesh.Route {
		return with(to("", prefix), func(r *mesh.Route) { r.Clusters, r.Redirect = nil, &mesh.Redirect{Status: 301, Prefix: by} })
	}
	split := func(a, b uint32) *mesh.Route {
		return with(to("a"), func(r *mesh.Route) {
			r.Clusters = []mesh.WeightedCluster{{Cluster: "a", Weight: a}, {Cluster: "b", Weight: b}}
		})
	}
	tests := []struct {
		name   string
		before *mesh.HTTP
		after  *mesh.HTTP
		want   []string
	}{
		{"equal", host(to("a", "/a"), to("b")), host(to("a", "/a"), to("b")), nil},
		{"other names, same order of what matters",
			host(to("a", "/a"), to("b", "/b"), to("c")), host(to("b", "/b"), to("a", "/a"), to("c")), nil},
		{"order matters where both match",
			host(to("a", "/a"), to("b", is("x", "1"))), host(to("b", is("x", "1")), to("a", "/a")),
			[]string{"cluster a -> cluster b: GET /a HTTP/1.1\r\nHost: example.com\r\nx: 1"}},
		{"a condition more, as a regex that is narrower by one path",
			host(to("a", regexPath("/v[0-9]+/.*"))), host(to("a", regexPath("/v[0-8]+/.*"))),
			[]string{"cluster a -> 404: GET /v9/ HTTP/1.1\r\nHost: example.com"}},
		{"the same language",
			host(to("a", regexPath("/(a|b)*c?"))), host(to("a", regexPath("/(b|a)*(c|)"))), nil},
		{"prefix and its regex", host(to("a", "/a")), host(to("a", regexPath("/a.*"))),
			// Not quite: an expression matches only UTF-8.
			[]string{"cluster a -> 404: GET /a\x80 HTTP/1.1\r\nHost: example.com"}},
		{"canary",
			host(to("v1")), host(to("v2", is("x-canary", "yes")), to("v1")),
			[]string{"cluster v1 -> cluster v2: GET / HTTP/1.1\r\nHost: example.com\r\nx-canary: yes"}},
		{"weights", host(split(50, 50)), host(split(90, 10)),
			[]string{"50% cluster a, 50% cluster b -> 90% cluster a, 10% cluster b: GET / HTTP/1.1\r\nHost: example.com"}},
		{"the same shares", host(split(50, 50)), host(split(1, 1)), nil},
		{"the same shares by a fraction", host(split(1, 3)),
			host(to("a", mesh.Fraction{Numerator: 25, Denominator: 100}), to("b")), nil},
		{"fraction", host(to("b")), host(to("a", mesh.Fraction{Numerator: 1, Denominator: 10000}), to("b")),
			[]string{"cluster b -> 99.99% cluster b, 0.01% cluster a: GET / HTTP/1.1\r\nHost: example.com"}},
		{"abort", host(to("a")), host(with(to("a"), func(r *mesh.Route) {
			r.Abort = &mesh.Abort{Status: 503, Fraction: mesh.Fraction{Numerator: 1, Denominator: 3 * 100}}
		})), []string{"cluster a -> ~99.6667% cluster a, ~0.3333% abort 503: GET / HTTP/1.1\r\nHost: example.com"}},
		{"query", host(to("a")), host(to("a", mesh.QueryMatch{Name: "q", Match: mesh.StringMatch{Kind: mesh.StringSuffix, Value: "z"}})),
			[]string{"cluster a -> 404: GET / HTTP/1.1\r\nHost: example.com"}},
		{"method", host(to("a", "/a")), host(to("a", "/a", is(":method", "POST"))),
			[]string{"cluster a -> 404: GET /a HTTP/1.1\r\nHost: example.com"}},
		{"CONNECT is never matched", host(), host(to("a", is(":method", "CONNECT"))), nil},
		{"range", host(to("a", mesh.HeaderMatch{Name: "n", Kind: mesh.HeaderRange, Start: 10, End: 20})),
			host(to("a", mesh.HeaderMatch{Name: "n", Kind: mesh.HeaderRange, Start: 10, End: 21})),
			[]string{"404 -> cluster a: GET / HTTP/1.1\r\nHost: example.com\r\nn: 20"}},
		{"no host and no route are the same", hosts([]string{"a"}), hosts([]string{"b"}), nil},
		{"domain", hosts([]string{"a"}, to("a")), hosts([]string{"b"}, to("a")), []string{
			"cluster a -> 404: GET / HTTP/1.1\r\nHost: a", "404 -> cluster a: GET / HTTP/1.1\r\nHost: b"}},
		{"port", hosts([]string{"a"}, to("a")), with2(hosts([]string{"a"}, to("a")), func(h *mesh.HTTP) { h.IgnorePort = true }),
			[]string{"404 -> cluster a: GET / HTTP/1.1\r\nHost: a:0"}},
		{"only without Host", host(to("a")), hosts([]string{"*"}, to("a", mesh.HeaderMatch{Name: ":authority", Kind: mesh.HeaderPresent})),
			[]string{"cluster a -> 404: GET / HTTP/1.0"}},
		{"the same Location", host(redirectTo("/a/c", "/b/c")), host(redirectTo("/a/c", "/b/c"), redirectTo("/a", "/b")),
			[]string{`404 -> redirect 301 path="/b"+path[2:]: GET /a HTTP/1.1` + "\r\nHost: example.com"}},
		{"unsupported", host(to("a")), host(&mesh.Route{Unsupported: true}),
			[]string{"cluster a -> 503 (a condition that cannot be tested): GET / HTTP/1.1\r\nHost: example.com"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Compare(tt.before, tt.after, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for i := range got.Changes {
				lines = append(lines, got.Changes[i].String())
			}
			slices.Sort(lines)
			slices.Sort(tt.want)
			if !slices.Equal(lines, tt.want) {
				t.Errorf("got  %q\nwant %q", lines, tt.want)
			}
		})
	}
}

func with2(h *mesh.HTTP, change func(*mesh.HTTP)) *mesh.HTTP {
	change(h)
	return h
}

func TestNever(t *testing.T) {
	tests := []struct {
		name string
		cfg  *mesh.HTTP
		want []string
	}{
		{"all are reached", host(to("a", "/a", is("x", "1"), is(":method", "GET")), to("b", "/a"), to("c", "/")), nil},
		{"shadowed", host(to("a", "/a"), to("b", "/ab"), to("c")),
			[]string{"v[1] b: earlier route v[0] a takes all that it would match"}},
		{"shadowed by two together, the third is not needed",
			host(to("a", is("x", "1")), to("other", "/z"), to("b", absent("x")), to("c", is("x", "1"), "/a"), to("d", mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderPresent}), to("e")),
			[]string{"v[3] c: earlier route v[0] a takes all that it would match",
				"v[5] e: earlier routes take all that it would match: v[2] b, v[4] d"}},
		{"a fraction shadows nothing", host(to("a", mesh.Fraction{Numerator: 99, Denominator: 100}), to("b")), nil},
		{"all of a fraction does", host(to("a", mesh.Fraction{Numerator: 100, Denominator: 100}), to("b")),
			[]string{"v[1] b: earlier route v[0] a takes all that it would match"}},
		{"none of a fraction", host(to("a", mesh.Fraction{Denominator: 100}), to("b")),
			[]string{"v[0] a: it takes a fraction of 0"}},
		{"contradiction", host(to("a", is("x", "1"), is("x", "2"))),
			[]string{`v[0] a: nothing meets header "x" is "1" and header "x" is "2"`}},
		{"a range without numbers", host(to("a", mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderRange, Start: 3, End: 3})),
			[]string{`v[0] a: nothing meets header "x" in [3, 3)`}},
		{"what no head has", host(to("a", is("content-length", "x")), to("b", is("x", " y")), to("c", is("a b", ""))),
			[]string{`v[0] a: nothing meets header "content-length" is "x"`, `v[1] b: nothing meets header "x" is " y"`, `v[2] c: nothing meets header "a b" is ""`}},
		{"what no head has together", host(to("a", mesh.PathMatch{Kind: mesh.PathExact, Value: "*"}, is(":method", "GET"))),
			[]string{`v[0] a: its conditions exclude each other: path is "*" and method is "GET"`}},
		{"nor these", host(to("a", is("content-length", "1"), is("transfer-encoding", "chunked")),
			to("b", absent(":authority"), is("transfer-encoding", "chunked")),
			to("c", mesh.PathMatch{Kind: mesh.PathExact, Value: "*"}, mesh.QueryMatch{Name: "q", Present: true})),
			[]string{`v[0] a: its conditions exclude each other: header "content-length" is "1" and header "transfer-encoding" is "chunked"`,
				`v[1] b: its conditions exclude each other: host is not there and header "transfer-encoding" is "chunked"`,
				`v[2] c: its conditions exclude each other: path is "*" and query parameter "q" is there`}},
		{"no host", hosts([]string{"a b"}, to("a")), []string{"v[0] a: no host leads to its virtual host"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Compare(nil, tt.cfg, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, n := range got.NeverNew {
				lines = append(lines, n.Route.String()+": "+n.Reason)
			}
			if !slices.Equal(lines, tt.want) {
				t.Errorf("got  %q\nwant %q", lines, tt.want)
			}
		})
	}
}

// TestLimits: what is too complex is refused, and says where.
func TestLimits(t *testing.T) {
	var infixes, bits []*mesh.Route
	for i := range 24 {
		infixes = append(infixes, to("a", regexPath(fmt.Sprintf(".*/admin%02d/.*", i))))
		bits = append(bits, to("a", is(fmt.Sprint("x", i), "1"), is(fmt.Sprint("y", i), "1")))
	}
	for _, tt := range []struct {
		name   string
		cfg    *mesh.HTTP
		limits Limits
		want   []string
	}{
		{"states", host(infixes...), Limits{States: 10_000}, []string{"virtual host v", "route v[", "path", "states"}},
		{"steps", host(append(bits, to("b"))...), Limits{Steps: 20}, []string{"virtual host v", "header", "more than 20 combinations"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compare(tt.cfg, host(), tt.limits)
			var limit *LimitError
			if !errors.As(err, &limit) {
				t.Fatalf("error is %v, want a LimitError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %q in it", err, want)
				}
			}
		})
	}
	// A hundred headers need no more steps than there are.
	if got, err := Compare(host(append(slices.Clone(bits), to("b"))...), host(append(slices.Clone(bits), to("c"))...), Limits{Steps: 100}); err != nil || len(got.Changes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Compare(host(to("a", regexPath("("))), host(), Limits{}); err == nil {
		t.Error("an expression that is none is compared")
	}
}

func TestCurl(t *testing.T) {
	accept, agent := field("accept", ""), field("user-agent", "a\tb\\")
	for _, tt := range []struct {
		w    Witness
		want string
	}{
		{Witness{Method: "GET", Host: "a.b", Target: "/a?b=c"}, "curl 'http://a.b/a?b=c'"},
		{Witness{Method: "P'", Host: "a", Target: "/../[", Connect: ":9080"}, `curl -X 'P'\''' --connect-to :::9080 -g --path-as-is 'http://a/../['`},
		{Witness{Method: "OPTIONS", Target: "*"}, "curl --http1.0 -H Host: -X OPTIONS --request-target '*' http://localhost"},
		{Witness{Method: "HEAD", Host: "a", Target: "/\xff", Fields: []head.Field{accept, agent}, Connect: "10.0.0.1:80"},
			`curl -I -H 'accept;' -H $'user-agent: a\x09b\\' --connect-to ::10.0.0.1:80 $'http://a/\xff'`},
	} {
		if got := tt.w.Curl(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	got, err := Compare(host(to("a")), host(to("b", absent("accept")), to("a")), Limits{})
	if err != nil || len(got.Changes) != 1 || got.Changes[0].Witness.Curl() != "curl -H accept: http://example.com/" {
		t.Errorf("curl would send a header that must not be there: %+v, %v", got, err)
	}
}

func TestServices(t *testing.T) {
	tcp := func(name, cluster string) *mesh.Service {
		return &mesh.Service{Name: name, Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
	}
	web := func(name string, h *mesh.HTTP) *mesh.Service { return &mesh.Service{Name: name, HTTP: h} }
	before := []*mesh.Service{tcp("gone", "a"), tcp("db", "a"), tcp("turns", "a"), web("web", host(to("a"))), web("same", host(to("a")))}
	after := []*mesh.Service{tcp("came", "a"), tcp("db", "b"), web("turns", host(to("a"), to("b"))), web("web", host(to("b"))), web("same", host(to("a")))}
	got, err := Services(before, after, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.Different() {
		t.Error("there is no difference")
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"added":["came"],"removed":["gone"]`,
		`{"name":"db","connections":{"old":"cluster a","new":"cluster b"},"changes":[],"neverOld":[],"neverNew":[]}`,
		`{"name":"turns","requests":{"old":"not routed","new":"routed"},"connections":{"old":"cluster a","new":"refused"},"changes":[],"neverOld":[],"neverNew":[{"route":{"virtualHost":"v","index":1,"name":"b"}`,
		`"outcomes":[{"action":"cluster b","share":"1"}]},"witness":{"curl":"curl `,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("not in the report: %s\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "same") {
		t.Errorf("what is the same is in the report: %s", text)
	}
	same, err := Services(before, before, Limits{})
	if err != nil || same.Different() {
		t.Errorf("a configuration differs from itself: %+v, %v", same, err)
	}
}
