// SPDX-License-Identifier: Apache-2.0

// Package explain is the reference for routing: which virtual host and which route a
// request has, and why it has none of the earlier ones. It follows the model's own
// words one by one, without any cleverness: the byte tables are held against it, and
// people read its reasons.
//
// An expression (RE2) matches whole strings only, and only those that are valid UTF-8:
// bytes that are not are no character, so that not even "." matches them.
package explain

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// Failure says why a route was not taken.
type Failure struct {
	Route int // its index
	Name  string
	// Condition is the first condition of it that failed, Got what the request has.
	Condition, Got string
}

func (f Failure) String() string {
	return fmt.Sprintf("route %d %q: %s, got %s", f.Route, f.Name, f.Condition, f.Got)
}

// Matcher matches requests. It keeps the expressions that it has compiled: one for many
// requests of the same routes. It must not be used by two goroutines at once.
type Matcher struct{ regexps map[string]*regexp.Regexp }

// Match returns the first of the virtual host's routes that the request matches, or -1,
// and for each route before it the first condition that failed. draw decides whether a
// request that matches the rest of a route is in its fraction.
func Match(vh *mesh.VirtualHost, r *head.Request, draw func(mesh.Fraction) bool) (int, []Failure) {
	return new(Matcher).Match(vh, r, draw)
}

// Match is the function Match.
func (m *Matcher) Match(vh *mesh.VirtualHost, r *head.Request, draw func(mesh.Fraction) bool) (int, []Failure) {
	var why []Failure
	for i, route := range vh.Routes {
		condition, got, ok := m.matchRoute(&route.Match, r, draw)
		if ok {
			return i, why
		}
		why = append(why, Failure{Route: i, Name: route.Name, Condition: condition, Got: got})
	}
	return -1, why
}

// matchRoute returns the first condition that fails, unless all hold.
func (m *Matcher) matchRoute(match *mesh.RouteMatch, r *head.Request, draw func(mesh.Fraction) bool) (condition, got string, ok bool) {
	if !m.matchPath(match.Path, r.Path) {
		return describePath(match.Path), quote(r.Path, true), false
	}
	for _, h := range match.Headers {
		value, present := header(r, h.Name)
		if !m.matchHeader(h, value, present) {
			return describeHeader(h), quote(value, present), false
		}
	}
	for _, q := range match.Query {
		value, present := parameter(r, q.Name)
		if !present || !q.Present && !m.matchString(q.Match, value) {
			return describeQuery(q), quote(value, present), false
		}
	}
	if f := match.Fraction; f != nil && !draw(*f) {
		return fmt.Sprintf("fraction %d/%d", f.Numerator, f.Denominator), "a draw outside it", false
	}
	return "", "", true
}

func (m *Matcher) matchPath(p mesh.PathMatch, path string) bool {
	want := p.Value
	if p.IgnoreCase && p.Kind != mesh.PathRegex {
		want, path = fold(want), fold(path)
	}
	switch p.Kind {
	case mesh.PathPrefix:
		return want == "" || want == "/" || strings.HasPrefix(path, want)
	case mesh.PathExact:
		return path == want
	case mesh.PathSegmentPrefix:
		return path == want || strings.HasPrefix(path, want+"/")
	case mesh.PathRegex:
		return m.matchRegex(want, path)
	default:
		return false
	}
}

func (m *Matcher) matchHeader(h mesh.HeaderMatch, value string, present bool) bool {
	switch h.Kind {
	case mesh.HeaderPresent:
		return present != h.Invert
	case mesh.HeaderAbsent:
		return present == h.Invert
	}
	if !present && !h.MissingAsEmpty {
		return false
	}
	var ok bool
	switch h.Kind {
	case mesh.HeaderString:
		ok = m.matchString(h.Match, value)
	case mesh.HeaderRange:
		n, err := strconv.ParseInt(value, 10, 64)
		ok = err == nil && h.Start <= n && n < h.End
	}
	return ok != h.Invert
}

func (m *Matcher) matchString(s mesh.StringMatch, value string) bool {
	want := s.Value
	if s.IgnoreCase && s.Kind != mesh.StringRegex {
		want, value = fold(want), fold(value)
	}
	switch s.Kind {
	case mesh.StringExact:
		return value == want
	case mesh.StringPrefix:
		return strings.HasPrefix(value, want)
	case mesh.StringSuffix:
		return strings.HasSuffix(value, want)
	case mesh.StringContains:
		return strings.Contains(value, want)
	case mesh.StringRegex:
		return m.matchRegex(want, value)
	default:
		return false
	}
}

// matchRegex: an expression that is none matches nothing.
func (m *Matcher) matchRegex(expr, value string) bool {
	re, ok := m.regexps[expr]
	if !ok {
		re, _ = regexp.Compile(`\A(?:` + expr + `)\z`)
		if m.regexps == nil {
			m.regexps = map[string]*regexp.Regexp{}
		}
		m.regexps[expr] = re
	}
	return re != nil && utf8.ValidString(value) && re.MatchString(value)
}

// header returns the value of a header, all its fields joined, and whether there is any.
func header(r *head.Request, name string) (string, bool) {
	switch name {
	case ":method":
		return r.Method, true
	case ":authority":
		return r.Authority, r.Authority != ""
	}
	var values []string
	for _, f := range r.Fields {
		if fold(f.Name) == name {
			values = append(values, f.Value)
		}
	}
	return strings.Join(values, ","), values != nil
}

// parameter returns the first parameter of the query that has this name.
func parameter(r *head.Request, name string) (string, bool) {
	if !r.HasQuery {
		return "", false
	}
	for _, pair := range strings.Split(r.Query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if key == name {
			return value, true
		}
	}
	return "", false
}

// fold maps A-Z to a-z, and nothing else.
func fold(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
