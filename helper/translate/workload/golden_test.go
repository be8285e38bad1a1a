// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
)

// golden is one file of testdata/golden: resources by hand, and what becomes of them.
type golden struct {
	About     string            `json:"about"`
	Here      Here              `json:"here"`
	Resources []json.RawMessage `json:"resources"`
	// Announced: "name frontends -> cluster*weight[endpoints]", a line per service, port
	// and family.
	Announced []string `json:"announced"`
	// Verdicts of the resources that are neither enforced nor default, and of the node.
	Verdicts   []string `json:"verdicts"`
	Unenforced []string `json:"unenforced"`
}

// resources reads the resources of a golden file: in Any, as on the wire.
func (g *golden) resources(t testing.TB) []proto.Message {
	t.Helper()
	var out []proto.Message
	for _, raw := range g.Resources {
		packed := &anypb.Any{}
		if err := protojson.Unmarshal(raw, packed); err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
		m, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func readGolden(t testing.TB) map[string]*golden {
	t.Helper()
	paths, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files: %v", len(paths), err)
	}
	out := map[string]*golden{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{}
		if err := yaml.UnmarshalStrict(text, g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out[strings.TrimSuffix(filepath.Base(path), ".yaml")] = g
	}
	return out
}

// feed gives a resource to an index, and returns its verdicts.
func feed(x *Index, m proto.Message) []mesh.Verdict {
	switch m := m.(type) {
	case *address.Address:
		a := TranslateAddress(m, "server")
		x.Put(a)
		return a.Verdicts
	case *policy.Authorization:
		a := TranslateAuthorization(m, "server")
		x.PutAuthorization(a, "server")
		return a.Verdicts
	}
	panic(fmt.Sprintf("%T", m))
}

// text writes what is announced.
func text(x *Index) []string {
	var out []string
	for a := range x.All() {
		line := a.Service.Name
		for _, f := range a.Service.Frontends {
			line += fmt.Sprintf(" %s:%d", f.Prefix, f.Port)
		}
		line += " ->"
		for i, w := range a.Service.Clusters {
			c := a.Clusters[i]
			line += fmt.Sprintf(" %s*%d", strings.TrimPrefix(w.Cluster, a.Service.Name), w.Weight)
			if c.Kind != mesh.Endpoints {
				line += " " + c.Kind.String()
			}
			line += "["
			first := true
			for _, l := range c.Localities {
				for _, e := range l.Endpoints {
					if !first {
						line += " "
					}
					first = false
					line += fmt.Sprintf("%s*%d", e.Addr, e.Weight)
					if l.Priority > 0 {
						line += fmt.Sprintf("@%d", l.Priority)
					}
					if e.Health != mesh.Healthy {
						line += "/" + strings.ToLower(e.Health.String())
					}
				}
			}
			line += "]"
		}
		out = append(out, line)
	}
	return out
}

func compareLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n  got\n    %s\n  want\n    %s", what, strings.Join(got, "\n    "), strings.Join(want, "\n    "))
	}
}

func TestGolden(t *testing.T) {
	for name, g := range readGolden(t) {
		t.Run(name, func(t *testing.T) {
			x := NewIndex(g.Here)
			var verdicts []string
			for _, m := range g.resources(t) {
				for _, v := range feed(x, m) {
					if v.Class != mesh.Enforced && v.Class != mesh.Default {
						verdicts = append(verdicts, fmt.Sprintf("%s %s %s %s", v.Type, v.Resource, v.Field, v.Class))
					}
				}
			}
			x.Flush()
			compareLines(t, "announced", text(x), g.Announced)
			compareLines(t, "verdicts", verdicts, g.Verdicts)
			var unenforced []string
			for _, v := range x.Unenforced(nil) {
				unenforced = append(unenforced, fmt.Sprintf("%s %s %s: %s", v.Type, v.Resource, v.Class, v.Message))
			}
			compareLines(t, "unenforced", unenforced, g.Unenforced)
		})
	}
}
