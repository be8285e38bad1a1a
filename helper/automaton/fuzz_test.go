// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

// FuzzRequest: any bytes are read as the reference reads them.
func FuzzRequest(f *testing.F) {
	for _, h := range append(corpus(f, heads), longHeads()...) {
		f.Add([]byte(h))
	}
	vh := everything()
	p, err := automaton.Compile(vh, automaton.Budget{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := wanted(&explain.Matcher{}, vh, b)
		for way, have := range []verdict{run(p, b), runBytes(p, b), run(p, b, len(b)/2)} {
			if have != want {
				t.Errorf("way %d:\nhave %+v\nwant %+v", way, have, want)
			}
		}
	})
}

// FuzzResponse: likewise.
func FuzzResponse(f *testing.F) {
	for _, h := range responses {
		f.Add([]byte(h))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := wantedAnswer(b)
		for way, have := range []answer{runResponse(b), runResponse(b, every(b)...), runResponse(b, len(b)/2)} {
			if have != want {
				t.Errorf("way %d:\nhave %+v\nwant %+v", way, have, want)
			}
		}
	})
}

// FuzzCompile: a pattern of any kind on a header's value is either refused, or
// matches what regexp and strings say.
func FuzzCompile(f *testing.F) {
	for kind := range uint8(5) {
		for _, p := range []string{"", "a", "a,b", "A-b", "ä", "(?i)k.", "[^a]*b", ".*a.*", ".{2}", `\bab\b`, "a|b*", "^a$", ".*a.{15}", "(", "\xff", "(a*)*", "a{1000}", `\pL+`, "[é-ü]"} {
			for _, v := range []string{"", "a", "ab", "a,b", "k\u212a", "ä", "\xff", "\xc3", "a b"} {
				f.Add(kind, p, v, "b")
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, pattern, a, b string) {
		m := mesh.StringMatch{Kind: mesh.StringKind(kind % 5), Value: pattern, IgnoreCase: kind >= 128}
		vh := &mesh.VirtualHost{Routes: []*mesh.Route{{Match: mesh.RouteMatch{
			Headers: []mesh.HeaderMatch{{Name: "x", Match: m}},
		}}}}
		p, err := automaton.Compile(vh, automaton.Budget{Work: 300_000})
		re, wrong := regexp.Compile(`\A(?:` + pattern + `)\z`)
		var over *automaton.BudgetError
		switch {
		case errors.As(err, &over):
			return
		case err != nil:
			if m.Kind != mesh.StringRegex || wrong == nil {
				t.Fatalf("%+v: %v, but it is a pattern", m, err)
			}
			return
		case m.Kind == mesh.StringRegex && wrong != nil:
			// What stands alone may be wrong in brackets, and the other way round.
			return
		}
		request := []byte(plain + "X: " + a + "\r\nX: " + b + "\r\n\r\n")
		r, out := head.ParseRequest(request)
		if out.Kind != head.Route || len(r.Fields) != 3 {
			return
		}
		value := r.Fields[1].Value + "," + r.Fields[2].Value
		want := m.Value
		if m.IgnoreCase && m.Kind != mesh.StringRegex {
			want, value = lowered(want), lowered(value)
		}
		holds := map[mesh.StringKind]func() bool{
			mesh.StringExact:    func() bool { return value == want },
			mesh.StringPrefix:   func() bool { return strings.HasPrefix(value, want) },
			mesh.StringSuffix:   func() bool { return strings.HasSuffix(value, want) },
			mesh.StringContains: func() bool { return strings.Contains(value, want) },
			mesh.StringRegex:    func() bool { return utf8.ValidString(value) && re.MatchString(value) },
		}[m.Kind]()
		if have := run(p, request); (have.candidates == "[0]") != holds {
			t.Errorf("%+v, value %q: have %+v, want %v", m, value, have, holds)
		}
	})
}

func lowered(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// FuzzPair: the pairs that a seed makes, in both readings.
func FuzzPair(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint64(0))
	}
	f.Fuzz(func(t *testing.T, seed, at uint64) {
		g := match.NewGenerator(seed)
		cfg := g.Config()
		vh := cfg.VirtualHosts[int(at%uint64(len(cfg.VirtualHosts)))]
		p, err := automaton.Compile(vh, automaton.Budget{})
		var over *automaton.BudgetError
		if errors.As(err, &over) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var matcher explain.Matcher
		for range 5 {
			req := g.Request(cfg)
			want := wanted(&matcher, vh, req)
			if have := run(p, req); have != want {
				t.Errorf("%s\nhave %+v\nwant %+v", match.Format(cfg, req), have, want)
			}
			if have := runBytes(p, req); have != want {
				t.Errorf("by bytes: %s\nhave %+v\nwant %+v", match.Format(cfg, req), have, want)
			}
		}
	})
}
