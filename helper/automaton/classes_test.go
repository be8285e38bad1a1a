// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"kmesh/helper/mesh"
)

// matches is what a pattern means, said plainly.
func matches(m mesh.StringMatch, s string) bool {
	want := m.Value
	if m.IgnoreCase {
		want, s = strings.ToLower(want), strings.ToLower(s)
	}
	switch m.Kind {
	case mesh.StringPrefix:
		return strings.HasPrefix(s, want)
	case mesh.StringSuffix:
		return strings.HasSuffix(s, want)
	case mesh.StringContains:
		return strings.Contains(s, want)
	case mesh.StringRegex:
		return utf8.ValidString(s) && regexp.MustCompile(`\A(?:`+want+`)\z`).MatchString(s)
	}
	return s == want
}

// TestClasses: every string is in one class, and every class has a string.
func TestClasses(t *testing.T) {
	match := func(kind mesh.StringKind, value string) mesh.StringMatch {
		return mesh.StringMatch{Kind: kind, Value: value}
	}
	fold := mesh.StringMatch{Value: "aB", IgnoreCase: true}
	strs := []string{""}
	for i := 0; i < len(strs); i++ {
		if n := len(strs[i]); n < 4 {
			for _, c := range []string{"a", "b", "/", "B", " ", ",", "\xc3", "\xa4", "\xff"} {
				strs = append(strs, strs[i]+c)
			}
		}
	}
	tests := []struct {
		within   string
		prefer   []string
		patterns []mesh.StringMatch
	}{
		{`.*`, nil, nil},
		{`/[^ ]*`, []string{"/", "nowhere"}, []mesh.StringMatch{match(mesh.StringPrefix, "/a"), match(mesh.StringExact, "/ab"), match(mesh.StringRegex, "/[^/]+")}},
		{`([^ ](.*[^ ])?)?`, []string{"b"}, []mesh.StringMatch{fold, match(mesh.StringContains, "a"), match(mesh.StringContains, " "), match(mesh.StringSuffix, "b"), match(mesh.StringPrefix, "")}},
		{`.*`, nil, []mesh.StringMatch{match(mesh.StringRegex, ".*"), match(mesh.StringRegex, `.`), match(mesh.StringExact, "\xff"), match(mesh.StringRegex, "\u00e4+"), match(mesh.StringRegex, `[^a]*`)}},
		{`.*`, nil, []mesh.StringMatch{match(mesh.StringRegex, `.*\ba\b.*`), match(mesh.StringRegex, `.*\Bb`), match(mesh.StringRegex, "^a?$"), match(mesh.StringRegex, "(?i)ab?"), match(mesh.StringRegex, `(a|b){2}`)}},
		{`[ab]+`, nil, []mesh.StringMatch{match(mesh.StringRegex, ".*a,.*"), match(mesh.StringExact, ""), match(mesh.StringPrefix, "b")}},
	}
	for i, tt := range tests {
		classes, err := Classes(tt.within, tt.patterns, tt.prefer, DefaultBudget)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		holds := func(s string) string {
			var out []int
			for k, p := range tt.patterns {
				if matches(p, s) {
					out = append(out, k)
				}
			}
			return fmt.Sprint(out)
		}
		byHolds := map[string]Class{}
		// In within, a byte above 0x7f is any character.
		within := regexp.MustCompile(`\A(?:` + tt.within + `)\z`)
		latin := toRunes
		for _, c := range classes {
			key := fmt.Sprint(c.Holds)
			if _, twice := byHolds[key]; twice {
				t.Errorf("%d: two classes hold %s", i, key)
			}
			byHolds[key] = c
			if got := holds(c.Witness); got != key || !within.MatchString(latin(c.Witness)) {
				t.Errorf("%d: %q is the witness of %s, but holds %s", i, c.Witness, key, got)
			}
		}
		for _, s := range strs {
			if !within.MatchString(latin(s)) {
				continue
			}
			c, ok := byHolds[holds(s)]
			if !ok {
				t.Errorf("%d: %q holds %s: there is no such class", i, s, holds(s))
			}
			if slices.Contains(tt.prefer, s) && c.Witness != s {
				t.Errorf("%d: the witness is %q, where %q is preferred", i, c.Witness, s)
			}
		}
	}
}

// toRunes makes a character of each byte.
func toRunes(s string) string {
	var out []rune
	for i := range len(s) {
		out = append(out, rune(s[i]))
	}
	return string(out)
}

// TestClassesBudget: what needs too much is refused.
func TestClassesBudget(t *testing.T) {
	var many []mesh.StringMatch
	for i := range 20 {
		many = append(many, mesh.StringMatch{Kind: mesh.StringContains, Value: fmt.Sprintf("x%02d", i)})
	}
	for _, b := range []Budget{
		{States: 1000, Nodes: DefaultBudget.Nodes, Time: DefaultBudget.Time},
		{States: 1 << 20, Nodes: 10, Time: DefaultBudget.Time},
	} {
		if _, err := Classes(".*", many, nil, b); err == nil {
			t.Errorf("%+v is enough", b)
		}
	}
	if _, err := Classes(".*", []mesh.StringMatch{{Kind: mesh.StringRegex, Value: "("}}, nil, DefaultBudget); err == nil {
		t.Error("an expression that is none has classes")
	}
}
