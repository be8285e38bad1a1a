// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"kmesh/helper/mesh"
)

var update = flag.Bool("update", false, "write the files that are made from the code")

// TestTable: the table names real fields, all of them, and walks only into messages that
// it has.
func TestTable(t *testing.T) {
	for name, rules := range table {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fields := mt.Descriptor().Fields()
		for field, rl := range rules {
			fd := fields.ByName(field)
			if fd == nil {
				t.Errorf("%s has no field %q", name, field)
				continue
			}
			if !rl.walk {
				continue
			}
			to := fd.Message()
			if fd.IsMap() {
				to = fd.MapValue().Message()
			}
			if to == nil || table[to.FullName()] == nil {
				t.Errorf("%s.%s cannot be walked", name, field)
			}
		}
		for i := range fields.Len() {
			if _, ok := rules[fields.Get(i).Name()]; !ok {
				t.Errorf("%s.%s is not in the table", name, fields.Get(i).Name())
			}
		}
	}
}

// special is what the translation itself says about fields.
var special = map[protoreflect.FullName]string{
	"istio.workload.Service.waypoint":           "enforced, if it takes plain connections; not-enforced, if it takes HBONE only; default beside weighted_waypoints",
	"istio.workload.Service.weighted_waypoints": "as waypoint, each of them",
	"istio.workload.Workload.hostname":          "default beside addresses; not-enforced without: " + msgNoName,
}

func render() string {
	var b strings.Builder
	b.WriteString(`# What becomes of a field

Made from the table in rules.go by ` + "`go test ./helper/translate/workload -run Verdicts -update`" + `; do not edit.

What the verdicts mean, helper/translate/envoy/VERDICTS.md says. Beside them there is one for
each authorization policy that selects a workload of this node: NOT ENFORCED.

`)
	for _, name := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprintf(&b, "## %s\n\n| field | verdict | why |\n|---|---|---|\n", name)
		for _, field := range slices.Sorted(maps.Keys(table[name])) {
			rl := table[name][field]
			class, why := rl.class.String(), rl.msg
			switch {
			case rl.walk:
				class = "by its fields"
			case rl.skip:
				class, why = "by its content", special[name.Append(field)]
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", field, class, why)
		}
		fmt.Fprintf(&b, "| any other | %s | newer than this build |\n\n", mesh.UnsupportedAction)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// TestVerdicts: the tables for people are those of the code.
func TestVerdicts(t *testing.T) {
	const path = "VERDICTS.md"
	want := render()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the table says: run this test with -update", path)
	}
	for name, rules := range table {
		for field, rl := range rules {
			if rl.skip != (special[name.Append(field)] != "") {
				t.Errorf("%s.%s: the document and the table do not agree on who gives the verdict", name, field)
			}
		}
	}
}
