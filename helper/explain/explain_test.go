// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"slices"
	"testing"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// parse makes a request of its lines.
func parse(t *testing.T, requestLine string, lines ...string) *head.Request {
	t.Helper()
	text := requestLine + " HTTP/1.1\r\nHost: A.b:80\r\n"
	for _, line := range lines {
		text += line + "\r\n"
	}
	r, out := head.ParseRequest([]byte(text + "\r\n"))
	if out.Kind != head.Route {
		t.Fatalf("%q: %v", text, out)
	}
	return &r
}

// holds says whether a route with this match takes the request.
func holds(match mesh.RouteMatch, r *head.Request) bool {
	vh := &mesh.VirtualHost{Routes: []*mesh.Route{{Match: match}}}
	i, _ := Match(vh, r, func(f mesh.Fraction) bool { return f.Numerator > 0 })
	return i == 0
}

func TestPath(t *testing.T) {
	tests := []struct {
		kind       mesh.PathKind
		value      string
		ignoreCase bool
		yes, no    []string // targets
	}{
		{mesh.PathPrefix, "", false, []string{"/", "/a", "*"}, nil},
		{mesh.PathPrefix, "/", false, []string{"/", "/a", "*"}, nil},
		{mesh.PathPrefix, "/a", false, []string{"/a", "/ab", "/a/b", "/a?b"}, []string{"/", "/A", "//a", "/?/a", "*"}},
		{mesh.PathPrefix, "/aB", true, []string{"/Ab", "/ABc"}, []string{"/a"}},
		{mesh.PathExact, "/a", false, []string{"/a", "/a?b", "/a?"}, []string{"/a/", "/", "/A", "/ab", "/%61"}},
		{mesh.PathExact, "/a", true, []string{"/A"}, []string{"/A/"}},
		{mesh.PathExact, "*", false, []string{"*"}, []string{"/*"}},
		{mesh.PathExact, "/\xc3\x84", true, []string{"/\xc3\x84"}, []string{"/\xc3\xa4"}}, // only ASCII is folded
		{mesh.PathSegmentPrefix, "/a", false, []string{"/a", "/a/", "/a/b", "/a?b"}, []string{"/ab", "/", "/A/"}},
		{mesh.PathSegmentPrefix, "/a", true, []string{"/A", "/A/b"}, []string{"/AB"}},
		{mesh.PathRegex, "/a|/b.", false, []string{"/a", "/bc"}, []string{"/b", "/ac", "/bcd", "//a"}},
		{mesh.PathRegex, "(?i)/a", false, []string{"/A"}, []string{"/b"}},
		{mesh.PathRegex, "/a", true, nil, []string{"/A"}},
		{mesh.PathRegex, "/.*", false, []string{"/", "/\xc3\xa4"}, []string{"/\xff", "/\xed\xa0\x80", "*"}},
		{mesh.PathRegex, "(", false, nil, []string{"/", "/("}},
	}
	for _, test := range tests {
		match := mesh.RouteMatch{Path: mesh.PathMatch{Kind: test.kind, Value: test.value, IgnoreCase: test.ignoreCase}}
		check := func(targets []string, want bool) {
			for _, target := range targets {
				if holds(match, parse(t, "OPTIONS "+target)) != want {
					t.Errorf("%s: %q: want %v", describePath(match.Path), target, want)
				}
			}
		}
		check(test.yes, true)
		check(test.no, false)
	}
}

func TestString(t *testing.T) {
	tests := []struct {
		match   mesh.StringMatch
		yes, no []string
	}{
		{mesh.StringMatch{Kind: mesh.StringExact, Value: "ab"}, []string{"ab"}, []string{"", "a", "abc", "Ab"}},
		{mesh.StringMatch{Kind: mesh.StringExact, Value: "aB", IgnoreCase: true}, []string{"Ab"}, []string{"a"}},
		{mesh.StringMatch{Kind: mesh.StringExact}, []string{""}, []string{"a"}},
		{mesh.StringMatch{Kind: mesh.StringPrefix, Value: "ab"}, []string{"ab", "abc"}, []string{"", "a", "cab", "AB"}},
		{mesh.StringMatch{Kind: mesh.StringPrefix, Value: "ab", IgnoreCase: true}, []string{"ABc"}, []string{"b"}},
		{mesh.StringMatch{Kind: mesh.StringSuffix, Value: "ab"}, []string{"ab", "cab", "abab"}, []string{"", "b", "abc", "AB"}},
		{mesh.StringMatch{Kind: mesh.StringSuffix, Value: "ab", IgnoreCase: true}, []string{"cAB"}, []string{"b"}},
		{mesh.StringMatch{Kind: mesh.StringContains, Value: "ab"}, []string{"ab", "cabc", "aab"}, []string{"", "acb", "AB"}},
		{mesh.StringMatch{Kind: mesh.StringContains, Value: "ab", IgnoreCase: true}, []string{"xAB"}, []string{"ba"}},
		{mesh.StringMatch{Kind: mesh.StringRegex, Value: "a+|b"}, []string{"a", "aa", "b"}, []string{"", "ab", "cb", "A"}},
		{mesh.StringMatch{Kind: mesh.StringRegex, Value: ".*"}, []string{"", "\xc3\xa4"}, []string{"\xff"}},
	}
	for _, test := range tests {
		check := func(values []string, want bool) {
			for _, value := range values {
				match := mesh.RouteMatch{Headers: []mesh.HeaderMatch{{Name: "x", Match: test.match}}}
				if holds(match, parse(t, "GET /", "X: "+value)) != want {
					t.Errorf("header: %s: %q: want %v", describeString(test.match), value, want)
				}
				match.Headers[0].Invert = true
				if holds(match, parse(t, "GET /", "X: "+value)) == want {
					t.Errorf("not: header: %s: %q: want %v", describeString(test.match), value, !want)
				}
				match = mesh.RouteMatch{Query: []mesh.QueryMatch{{Name: "x", Match: test.match}}}
				if holds(match, parse(t, "GET /?x="+value)) != want {
					t.Errorf("query: %s: %q: want %v", describeString(test.match), value, want)
				}
			}
		}
		check(test.yes, true)
		check(test.no, false)
	}
}

func TestHeader(t *testing.T) {
	exact := func(value string) mesh.StringMatch { return mesh.StringMatch{Value: value} }
	tests := []struct {
		match mesh.HeaderMatch
		lines []string
		want  bool
	}{
		{mesh.HeaderMatch{Name: "x", Match: exact("a")}, nil, false},
		{mesh.HeaderMatch{Name: "x", Match: exact("a"), Invert: true}, nil, false},
		{mesh.HeaderMatch{Name: "x", Match: exact("a"), MissingAsEmpty: true}, nil, false},
		{mesh.HeaderMatch{Name: "x", Match: exact("a"), MissingAsEmpty: true, Invert: true}, nil, true},
		{mesh.HeaderMatch{Name: "x", Match: exact(""), MissingAsEmpty: true}, nil, true},
		{mesh.HeaderMatch{Name: "x", Match: exact("")}, []string{"X:"}, true},
		{mesh.HeaderMatch{Name: "x", Match: exact("a")}, []string{"y: a"}, false},
		{mesh.HeaderMatch{Name: "x", Match: exact("a,b c,")}, []string{"X: a ", "y: z", "x:\tb c", "X: "}, true},
		{mesh.HeaderMatch{Name: "x", Match: exact("a")}, []string{"x: a", "x: b"}, false},

		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderPresent}, []string{"x:"}, true},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderPresent}, nil, false},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderPresent, Invert: true}, nil, true},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderPresent, Invert: true}, []string{"x:"}, false},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderAbsent}, nil, true},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderAbsent}, []string{"x: a"}, false},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderAbsent, Invert: true}, []string{"x: a"}, true},
		{mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderAbsent, Invert: true}, nil, false},

		{mesh.HeaderMatch{Name: ":method", Match: exact("GET")}, nil, true},
		{mesh.HeaderMatch{Name: ":method", Match: exact("get")}, nil, false},
		{mesh.HeaderMatch{Name: ":method", Match: exact("PUT"), Invert: true}, nil, true},
		{mesh.HeaderMatch{Name: ":authority", Match: exact("A.b:80")}, nil, true},
		{mesh.HeaderMatch{Name: ":authority", Match: exact("a.b:80")}, nil, false},
		{mesh.HeaderMatch{Name: ":authority", Kind: mesh.HeaderPresent}, nil, true},
		{mesh.HeaderMatch{Name: "host", Match: exact("A.b:80")}, nil, true},
	}
	for _, test := range tests {
		if holds(mesh.RouteMatch{Headers: []mesh.HeaderMatch{test.match}}, parse(t, "GET /", test.lines...)) != test.want {
			t.Errorf("%s: %q: want %v", describeHeader(test.match), test.lines, test.want)
		}
	}
	old, _ := head.ParseRequest([]byte("GET / HTTP/1.0\r\n\r\n"))
	if holds(mesh.RouteMatch{Headers: []mesh.HeaderMatch{{Name: ":authority", Kind: mesh.HeaderPresent}}}, &old) {
		t.Error("no Host: :authority is there")
	}
}

func TestRange(t *testing.T) {
	values := map[string]bool{ // in [-5, 10)
		"-5": true, "0": true, "9": true, "+9": true, "-0": true, "009": true, "-0000000000000000000000005": true,
		"-6": false, "10": false, "": false, "-": false, "+": false, "1.0": false, "1 1": false, "0x1": false, "1_0": false,
		"9a": false, "9223372036854775808": false, "18446744073709551617": false, "--1": false,
	}
	for value, want := range values {
		for _, invert := range []bool{false, true} {
			h := mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderRange, Start: -5, End: 10, Invert: invert}
			if holds(mesh.RouteMatch{Headers: []mesh.HeaderMatch{h}}, parse(t, "GET /", "x: "+value)) != (want != invert) {
				t.Errorf("%s: %q: want %v", describeHeader(h), value, want != invert)
			}
		}
	}
	missing := mesh.HeaderMatch{Name: "x", Kind: mesh.HeaderRange, Start: 0, End: 1, Invert: true}
	for _, missing.MissingAsEmpty = range []bool{false, true} {
		if holds(mesh.RouteMatch{Headers: []mesh.HeaderMatch{missing}}, parse(t, "GET /")) != missing.MissingAsEmpty {
			t.Errorf("%s: missing", describeHeader(missing))
		}
	}
}

func TestQuery(t *testing.T) {
	tests := []struct {
		match  mesh.QueryMatch
		target string
		want   bool
	}{
		{mesh.QueryMatch{Name: "a", Present: true}, "/", false},
		{mesh.QueryMatch{Name: "a", Present: true}, "/a", false},
		{mesh.QueryMatch{Name: "a", Present: true}, "/?", false},
		{mesh.QueryMatch{Name: "a", Present: true}, "/?a", true},
		{mesh.QueryMatch{Name: "a", Present: true}, "/?b&a=", true},
		{mesh.QueryMatch{Name: "a", Present: true}, "/?A", false},
		{mesh.QueryMatch{Name: "a", Present: true}, "/?ab&ba&b=a&%61", false},
		{mesh.QueryMatch{Name: "a", Match: mesh.StringMatch{Value: ""}}, "/?b&a&a=b", true},
		{mesh.QueryMatch{Name: "a", Match: mesh.StringMatch{Value: "b"}}, "/?a&a=b", false},
		{mesh.QueryMatch{Name: "a", Match: mesh.StringMatch{Value: "b=c?d"}}, "/?&a=b=c?d&", true},
		{mesh.QueryMatch{Name: "a", Match: mesh.StringMatch{Value: ""}}, "/", false},
	}
	for _, test := range tests {
		if holds(mesh.RouteMatch{Query: []mesh.QueryMatch{test.match}}, parse(t, "GET "+test.target)) != test.want {
			t.Errorf("%s: %q: want %v", describeQuery(test.match), test.target, test.want)
		}
	}
}

// TestMatch: the first route wins, and the others say why they do not.
func TestMatch(t *testing.T) {
	vh := &mesh.VirtualHost{Routes: []*mesh.Route{
		{Name: "path", Match: mesh.RouteMatch{Path: mesh.PathMatch{Value: "/b"}}},
		{Name: "header", Match: mesh.RouteMatch{Headers: []mesh.HeaderMatch{
			{Name: ":method", Match: mesh.StringMatch{Value: "GET"}},
			{Name: "x", Match: mesh.StringMatch{Kind: mesh.StringPrefix, Value: "y", IgnoreCase: true}},
		}}},
		{Name: "query", Match: mesh.RouteMatch{Query: []mesh.QueryMatch{{Name: "q", Match: mesh.StringMatch{Value: "1"}}}}},
		{Name: "out", Match: mesh.RouteMatch{Fraction: &mesh.Fraction{Numerator: 1, Denominator: 100}}},
		{Name: "in", Match: mesh.RouteMatch{Fraction: &mesh.Fraction{Numerator: 2, Denominator: 100}}},
		{Name: "rest"},
	}}
	var drawn []uint32
	got, why := Match(vh, parse(t, "GET /a?q=2"), func(f mesh.Fraction) bool {
		drawn = append(drawn, f.Numerator)
		return f.Numerator == 2
	})
	want := []string{
		`route 0 "path": path begins with "/b", got "/a"`,
		`route 1 "header": header x begins with "y" in any case, got none`,
		`route 2 "query": parameter "q" is "1", got "2"`,
		`route 3 "out": fraction 1/100, got a draw outside it`,
	}
	var said []string
	for _, failure := range why {
		said = append(said, failure.String())
	}
	if got != 4 || !slices.Equal(said, want) || !slices.Equal(drawn, []uint32{1, 2}) {
		t.Errorf("got route %d, %q, drew %v; want route 4, %q", got, said, drawn, want)
	}
	if got, why := Match(&mesh.VirtualHost{Routes: vh.Routes[:2]}, parse(t, "GET /a"), nil); got != -1 || len(why) != 2 {
		t.Errorf("got route %d, %v; want none and two reasons", got, why)
	}
}

func TestFindVirtualHost(t *testing.T) {
	h := &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{
		{Name: "any", Domains: []string{"*"}},
		{Name: "prefix", Domains: []string{"a.*"}},
		{Name: "longer prefix", Domains: []string{"a.b.*"}},
		{Name: "suffix", Domains: []string{"*.c"}},
		{Name: "longer suffix", Domains: []string{"*.b.c", "*-x.b.c"}},
		{Name: "exact", Domains: []string{"z", "a.b.c", "[::1]"}},
		{Name: "port", Domains: []string{"a.b.c:80", "[::1]:80"}},
	}}
	tests := []struct{ authority, want, ignoring string }{
		{"a.b.c", "exact", "exact"},
		{"A.B.c", "exact", "exact"},
		{"a.b.c:80", "port", "exact"},
		{"a.b.c:81", "longer prefix", "exact"},
		{"x.b.c", "longer suffix", "longer suffix"},
		{".b.c", "suffix", "suffix"}, // a wildcard is not empty
		{"x.b.c:80", "any", "longer suffix"},
		{"y-x.b.c", "longer suffix", "longer suffix"},
		{"a.b.d", "longer prefix", "longer prefix"},
		{"a.b.", "prefix", "prefix"},
		{"a.", "any", "any"},
		{"b.c", "suffix", "suffix"},
		{"c", "any", "any"},
		{"z", "exact", "exact"},
		{"zz", "any", "any"},
		{"[::1]", "exact", "exact"},
		{"[::1]:80", "port", "exact"},
		{"", "any", "any"},
	}
	for _, test := range tests {
		for ignore, want := range map[bool]string{false: test.want, true: test.ignoring} {
			h.IgnorePort = ignore
			if got := FindVirtualHost(h, test.authority); got == nil || got.Name != want {
				t.Errorf("%q, ignoring the port %v: got %v, want %s", test.authority, ignore, got, want)
			}
		}
	}
	h.VirtualHosts = h.VirtualHosts[1:]
	if got := FindVirtualHost(h, ""); got != nil {
		t.Errorf("no authority: got %s", got.Name)
	}
}

func TestLocation(t *testing.T) {
	prefix := &mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: "/a"}
	regex := &mesh.PathMatch{Kind: mesh.PathRegex, Value: "/a.*"}
	tests := []struct {
		rd    mesh.Redirect
		match *mesh.PathMatch
		want  string // of /a/b?c
	}{
		{mesh.Redirect{}, prefix, "http://A.b:80/a/b?c"},
		{mesh.Redirect{Scheme: "https"}, prefix, "https://A.b/a/b?c"},
		{mesh.Redirect{Scheme: "https", Port: 8443}, prefix, "https://A.b:8443/a/b?c"},
		{mesh.Redirect{Host: "x.y"}, prefix, "http://x.y/a/b?c"},
		{mesh.Redirect{Port: 81}, prefix, "http://A.b:81/a/b?c"},
		{mesh.Redirect{StripQuery: true}, prefix, "http://A.b:80/a/b"},
		{mesh.Redirect{Path: "/z"}, prefix, "http://A.b:80/z?c"},
		{mesh.Redirect{Path: "/z", StripQuery: true}, prefix, "http://A.b:80/z"},
		{mesh.Redirect{Path: "/z?d"}, prefix, "http://A.b:80/z?d"},
		{mesh.Redirect{Path: "/z?d", StripQuery: true}, prefix, "http://A.b:80/z?d"},
		{mesh.Redirect{Prefix: "/z"}, prefix, "http://A.b:80/z/b?c"},
		{mesh.Redirect{Prefix: "/z"}, regex, "http://A.b:80/z?c"},
		{mesh.Redirect{Path: "z"}, regex, "http://A.b:80/z?c"},
	}
	for _, test := range tests {
		if got := Location(&test.rd, test.match, parse(t, "GET /a/b?c")); got != test.want {
			t.Errorf("%+v: got %s, want %s", test.rd, got, test.want)
		}
	}
	other := parse(t, "GET /")
	other.Authority = "a:8080"
	if got := Location(&mesh.Redirect{Scheme: "https"}, prefix, other); got != "https://a:8080/" {
		t.Errorf("a port that is no default: got %s", got)
	}
}
