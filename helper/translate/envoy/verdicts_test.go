// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

var update = flag.Bool("update", false, "write the files that are made from the code")

// render writes the tables for people.
func render() string {
	var b strings.Builder
	b.WriteString(`# What becomes of a field

Made from the tables in rules*.go by ` + "`go test ./helper/translate/envoy -run Verdicts -update`" + `; do not edit.

Every populated field of a resource gets a verdict:

| verdict | means |
|---|---|
| enforced | the data path does what the field says |
| default | it asks for what happens anyway, or for nothing that a client could notice |
| unsupported-condition | it narrows what applies and cannot be tested: what it guards is not served (HTTP: 503), never widened |
| not-enforced | traffic is served, but without what the field asks for |
| invalid | Envoy would refuse it too, or it exceeds a stated limit: the last good version stays |

A value that is not valid (an empty name, a port above 65535, a regular expression with a mistake) makes any field invalid.
What becomes of one request by the routes that are made of it, ` + "`kmeshctl explain --offline`" + ` says.

`)
	for _, part := range []struct {
		title string
		table map[protoreflect.FullName]rules
	}{{"Listener", listenerTable}, {"HTTP connection manager", httpTable}, {"RouteConfiguration", routeTable}, {"Cluster and ClusterLoadAssignment", clusterTable}} {
		fmt.Fprintf(&b, "## %s\n\n", part.title)
		for _, name := range slices.Sorted(maps.Keys(part.table)) {
			rs := part.table[name]
			fmt.Fprintf(&b, "### %s\n\n| field | verdict | why |\n|---|---|---|\n", name)
			for _, field := range slices.Sorted(maps.Keys(rs.fields)) {
				renderRule(&b, string(field), rs.fields[field])
			}
			fmt.Fprintf(&b, "| any other | %s | not supported |\n\n", rs.other)
		}
	}
	b.WriteString("## Extensions\n\n| type | verdict | why |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		renderRule(&b, string(name), extensions[name])
	}
	fmt.Fprintf(&b, "| any other | %s | not supported |\n", mesh.UnsupportedAction)
	return b.String()
}

func renderRule(b *strings.Builder, field string, rl rule) {
	row := func(when string, class, msg string) {
		if when != "" {
			class = when + ": " + class
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", field, class, strings.ReplaceAll(msg, "|", "\\|"))
		field = ""
	}
	switch {
	case rl.walk:
		row("", "by its fields", "")
	case rl.skip && rl.doc == "":
		row("", "by its content", "")
	case rl.skip:
		row("", "by its content", rl.doc)
	case rl.eval != nil:
		for _, c := range rl.cases {
			row(c.when, c.rule.class.String(), c.rule.msg)
		}
	default:
		row("", rl.class.String(), rl.msg)
	}
}

// TestVerdictsDocument: the document says what the tables say.
func TestVerdictsDocument(t *testing.T) {
	const file = "VERDICTS.md"
	want := render()
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
		t.Errorf("%s is stale: run go test ./helper/translate/envoy -run Verdicts -update", file)
	}
	for name, rs := range table {
		for field, rl := range rs.fields {
			if rl.eval != nil && len(rl.cases) < 2 {
				t.Errorf("%s.%s depends on its value, and the document cannot say how", name, field)
			}
		}
	}
}
