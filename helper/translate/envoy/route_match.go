// SPDX-License-Identifier: Apache-2.0

package envoy

//lint:file-ignore SA1019 the older ways to match a header are what many configurations still use

import (
	"regexp/syntax"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"kmesh/helper/mesh"
)

// match translates the conditions of a route. It returns false when one of them
// is missing in out because it cannot be tested; the walk has reported those that
// the table knows.
func (r *report) match(m *routev3.RouteMatch, path string, out *mesh.RouteMatch) (complete bool) {
	complete = r.path(m, path, &out.Path)
	for i, h := range m.GetHeaders() {
		hm, ok := r.header(h, join(path, "headers["+strconv.Itoa(i)+"]"))
		if !ok {
			complete = false
			continue
		}
		out.Headers = append(out.Headers, hm)
	}
	for i, q := range m.GetQueryParameters() {
		qm, ok := r.query(q, join(path, "query_parameters["+strconv.Itoa(i)+"]"))
		if !ok {
			complete = false
			continue
		}
		out.Query = append(out.Query, qm)
	}
	if rf := m.GetRuntimeFraction(); rf != nil {
		f, ok := r.fraction(rf.GetDefaultValue(), join(path, "runtime_fraction.default_value"))
		if !ok {
			complete = false
		} else if f.Numerator < f.Denominator {
			out.Fraction = &f
		}
	}
	// What cannot be tested wholly is narrowed as far as it can.
	if m.GetConnectMatcher() != nil {
		out.Headers = append(out.Headers, mesh.HeaderMatch{Name: ":method", Match: mesh.StringMatch{Value: "CONNECT"}})
	}
	if m.GetGrpc() != nil {
		out.Headers = append(out.Headers, mesh.HeaderMatch{Name: "content-type", Match: mesh.StringMatch{Kind: mesh.StringPrefix, Value: "application/grpc"}})
	}
	return complete
}

// path translates the path's condition.
func (r *report) path(m *routev3.RouteMatch, path string, out *mesh.PathMatch) bool {
	out.IgnoreCase = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Kind, out.Value = mesh.PathPrefix, p.Prefix
	case *routev3.RouteMatch_Path:
		out.Kind, out.Value = mesh.PathExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.Kind, out.Value = mesh.PathSegmentPrefix, p.PathSeparatedPrefix
		if len(p.PathSeparatedPrefix) < 2 || strings.ContainsAny(p.PathSeparatedPrefix, "?#") || strings.HasSuffix(p.PathSeparatedPrefix, "/") {
			r.invalid(join(path, "path_separated_prefix"), "%q is empty, ends with / or has a ? or #: use prefix", p.PathSeparatedPrefix)
			return false
		}
	case *routev3.RouteMatch_SafeRegex:
		out.Kind, out.Value, out.IgnoreCase = mesh.PathRegex, p.SafeRegex.GetRegex(), false
		return r.regex(p.SafeRegex, join(path, "safe_regex"))
	case nil:
		if m != nil {
			r.invalid(path, "has no path: give prefix, path, path_separated_prefix or safe_regex")
		}
		return false
	default: // the table knows it as a condition; the rest of the match holds for every path
		out.IgnoreCase = false
		return false
	}
	return true
}

// regex validates a regular expression: Envoy's syntax is RE2's, and so is Go's.
func (r *report) regex(m *matcherv3.RegexMatcher, path string) bool {
	at := join(path, "regex")
	if m.GetRegex() == "" {
		r.invalid(at, "is empty")
		return false
	}
	if _, err := syntax.Parse(m.GetRegex(), syntax.Perl); err != nil {
		r.invalid(at, "%v", err)
		return false
	}
	return true
}

// stringMatch translates a string's condition.
func (r *report) stringMatch(m *matcherv3.StringMatcher, path string) (out mesh.StringMatch, ok bool) {
	out.IgnoreCase = m.GetIgnoreCase()
	field := ""
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.Kind, out.Value = mesh.StringExact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		out.Kind, out.Value, field = mesh.StringPrefix, p.Prefix, "prefix"
	case *matcherv3.StringMatcher_Suffix:
		out.Kind, out.Value, field = mesh.StringSuffix, p.Suffix, "suffix"
	case *matcherv3.StringMatcher_Contains:
		out.Kind, out.Value, field = mesh.StringContains, p.Contains, "contains"
	case *matcherv3.StringMatcher_SafeRegex:
		out.Kind, out.Value, out.IgnoreCase = mesh.StringRegex, p.SafeRegex.GetRegex(), false
		return out, r.regex(p.SafeRegex, join(path, "safe_regex"))
	case nil:
		r.invalid(path, "has no pattern: give exact, prefix, suffix, contains or safe_regex")
		return out, false
	default:
		return out, false
	}
	return out, r.notEmpty(out.Value, path, field)
}

// notEmpty refuses an empty part of a string; field is empty where it may be.
func (r *report) notEmpty(value, path, field string) bool {
	if field == "" || value != "" {
		return true
	}
	r.invalid(join(path, field), "is empty")
	return false
}

// header translates a header's condition.
func (r *report) header(m *routev3.HeaderMatcher, path string) (mesh.HeaderMatch, bool) {
	out := mesh.HeaderMatch{
		Name:           strings.ToLower(m.GetName()),
		Invert:         m.GetInvertMatch(),
		MissingAsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if out.MissingAsEmpty {
		at := join(path, "treat_missing_header_as_empty")
		_, present := m.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch)
		if present || m.GetHeaderMatchSpecifier() == nil {
			r.add(at, mesh.UnsupportedCondition, "a header that is missing is not present: use string_match")
		} else {
			r.add(at, mesh.Enforced, "")
		}
	}
	switch {
	case out.Name == "":
		r.invalid(join(path, "name"), "is empty")
		return out, false
	case strings.ContainsAny(out.Name, "\x00\r\n"):
		r.invalid(join(path, "name"), "%q cannot be a header", m.GetName())
		return out, false
	case out.Name == "host":
		out.Name = ":authority" // what it is to Envoy, too
	case strings.HasPrefix(out.Name, ":") && out.Name != ":method" && out.Name != ":authority":
		return out, false
	}
	ok := true
	str := func(kind mesh.StringKind, value, field string) {
		out.Match = mesh.StringMatch{Kind: kind, Value: value}
		ok = r.notEmpty(value, path, field)
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		out.Match, ok = r.stringMatch(s.StringMatch, join(path, "string_match"))
	case *routev3.HeaderMatcher_ExactMatch:
		str(mesh.StringExact, s.ExactMatch, "")
	case *routev3.HeaderMatcher_PrefixMatch:
		str(mesh.StringPrefix, s.PrefixMatch, "prefix_match")
	case *routev3.HeaderMatcher_SuffixMatch:
		str(mesh.StringSuffix, s.SuffixMatch, "suffix_match")
	case *routev3.HeaderMatcher_ContainsMatch:
		str(mesh.StringContains, s.ContainsMatch, "contains_match")
	case *routev3.HeaderMatcher_SafeRegexMatch:
		out.Match = mesh.StringMatch{Kind: mesh.StringRegex, Value: s.SafeRegexMatch.GetRegex()}
		ok = r.regex(s.SafeRegexMatch, join(path, "safe_regex_match"))
	case *routev3.HeaderMatcher_RangeMatch:
		out.Kind, out.Start, out.End = mesh.HeaderRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_PresentMatch:
		return present(out, s.PresentMatch)
	case nil:
		return present(out, true)
	default:
		ok = false
	}
	return out, ok
}

// present translates a test of presence: what is inverted is written straight.
func present(out mesh.HeaderMatch, want bool) (mesh.HeaderMatch, bool) {
	out.Kind = mesh.HeaderPresent
	if want == out.Invert {
		out.Kind = mesh.HeaderAbsent
	}
	out.Invert = false
	return out, !out.MissingAsEmpty
}

// query translates a query parameter's condition.
func (r *report) query(m *routev3.QueryParameterMatcher, path string) (mesh.QueryMatch, bool) {
	out := mesh.QueryMatch{Name: m.GetName()}
	if out.Name == "" {
		r.invalid(join(path, "name"), "is empty")
		return out, false
	}
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		var ok bool
		out.Match, ok = r.stringMatch(s.StringMatch, join(path, "string_match"))
		return out, ok
	case *routev3.QueryParameterMatcher_PresentMatch:
		out.Present = true
		return out, s.PresentMatch
	case nil:
		out.Present = true
		return out, true
	default:
		return out, false
	}
}

// fraction translates a probability; more than all is all.
func (r *report) fraction(p *typev3.FractionalPercent, path string) (mesh.Fraction, bool) {
	f := mesh.Fraction{Numerator: p.GetNumerator()}
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		f.Denominator = 100
	case typev3.FractionalPercent_TEN_THOUSAND:
		f.Denominator = 10_000
	case typev3.FractionalPercent_MILLION:
		f.Denominator = 1_000_000
	default:
		r.invalid(join(path, "denominator"), "%d is not a denominator", p.GetDenominator())
		return f, false
	}
	f.Numerator = min(f.Numerator, f.Denominator)
	return f, true
}
