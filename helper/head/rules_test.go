// SPDX-License-Identifier: Apache-2.0

package head

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write RULES.md anew")

// TestRulesDocument: RULES.md says what the table says.
func TestRulesDocument(t *testing.T) {
	const file = "RULES.md"
	want := document()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is stale: go test ./helper/head -run TestRulesDocument -update", file)
	}
}

func document() string {
	var b strings.Builder
	b.WriteString("<!-- Made from the table in rules.go: go test ./helper/head -run TestRulesDocument -update -->\n\n" +
		"# What is done with a message head\n\n" +
		"The client's bytes go on unchanged, so what two parsers could read differently is refused, never guessed.\n" +
		"The byte at which each rule fires is in the package's comment. Numbers are those of RFCs and their sections.\n" +
		"A rule that rejects a request pins a response.\n\n" +
		"| rule | decided by | input | action | why |\n|---|---|---|---|---|\n")
	for _, r := range Rules {
		action := r.Action.String()
		switch r.Action {
		case Reject:
			action = fmt.Sprintf("reject %d", r.Status)
		case Pin:
			action = "pin: " + r.Reason.String()
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.ID, r.Part, strings.ReplaceAll(r.Input, "|", "\\|"), action, r.Why)
	}
	return b.String()
}

func TestRulesTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules {
		switch {
		case seen[r.ID]:
			t.Errorf("%s is there twice", r.ID)
		case r.Input == "" || r.Why == "":
			t.Errorf("%s says too little", r.ID)
		case (r.Action == Reject) != (r.Status >= 400), (r.Action == Pin) != (r.Reason != NoReason), r.Action == Incomplete:
			t.Errorf("%s: action %v, status %d, reason %v", r.ID, r.Action, r.Status, r.Reason)
		}
		seen[r.ID] = true
	}
}

// governance are the inputs for which the design asks for a decision, and the rules that
// make it.
var governance = map[string][]string{
	"continuation line":                    {"obs-fold"},
	"blank before the colon, bad name":     {"blank-before-colon", "field-name"},
	"NUL, bare CR, other CTL":              {"field-value-byte", "bare-cr", "target-byte"},
	"bare LF":                              {"bare-lf"},
	"Content-Length":                       {"repeated-content-length", "content-length"},
	"Transfer-Encoding and Content-Length": {"te-with-content-length"},
	"Transfer-Encoding":                    {"transfer-encoding", "repeated-transfer-encoding", "te-in-1.0"},
	"chunk size and extension":             {"chunk-size", "chunk-extension"},
	"Host":                                 {"host-missing", "repeated-host", "host", "host-differs"},
	"absolute form":                        {"absolute-form", "target-authority", "target-form"},
	"CONNECT, *":                           {"connect", "options-star", "star-target"},
	"HTTP/2 preface":                       {"h2"},
	"Upgrade, 101":                         {"upgrade", "switching"},
	"Expect, 1xx, 204, 304":                {"expect-continue", "interim", "no-body"},
	"response with neither length":         {"until-close"},
	"pipelined":                            {"pipelined"},
	"size and time":                        {"head-too-long", "too-many-fields", "slow-head"},
	"order of segments":                    {"segment-order"},
	"path confusion":                       {"path-not-canonical", "fragment"},
	"underscore":                           {"underscore"},
	"URG":                                  {"urg"},
	"what is not HTTP/1":                   {"tls", "opaque"},
}

// TestGovernance: every one of them is in the table, and has a named sample unless the
// packets decide it.
func TestGovernance(t *testing.T) {
	samples := map[string]bool{}
	for _, list := range [][]sample{requests, responses, chunkLines} {
		for _, s := range list {
			samples[s.id()] = true
		}
	}
	for input, ids := range governance {
		for _, id := range ids {
			rule, ok := ruleByID[id]
			if !ok {
				t.Errorf("%s: no rule %s", input, id)
			}
			if rule.Part != PartFlow && !samples[id] {
				t.Errorf("%s: rule %s has no sample", input, id)
			}
		}
	}
}
