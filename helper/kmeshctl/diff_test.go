// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmesh/helper/routediff"
)

// meshWith copies the directory of the tests with some files replaced in part: what is
// replaced must be there, and a file that is replaced by nothing is left out.
func meshWith(t *testing.T, changes map[string][]string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(meshDir + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, text := filepath.Base(f), string(data)
		change, ok := changes[name]
		if ok && change == nil {
			continue
		}
		for i := 0; i < len(change); i += 2 {
			if !strings.Contains(text, change[i]) {
				t.Fatalf("%s has no %q", name, change[i])
			}
			text = strings.ReplaceAll(text, change[i], change[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// changedMesh is the new directory of the tests.
func changedMesh(t *testing.T) string {
	return meshWith(t, map[string][]string{
		"routes.yaml": {
			"weight: 90", "weight: 80", "weight: 10}", "weight: 20}",
			"match: {path: /healthz}", "match: {prefix: /healthz}",
			"match: {path: /fault}", "match: {path: /healthz/fault}",
		},
		"listeners.yaml": {"        cluster: PassthroughCluster", "        cluster: mysql"},
		"catalog2.yaml":  nil,
	})
}

// TestDiff compares what is printed with testdata/diff.txt, which the README shows.
func TestDiff(t *testing.T) {
	code, out, errs := kmeshctl(t, "diff", meshDir, changedMesh(t))
	if code != exitDiffers || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	const file = "testdata/diff.txt"
	if *update {
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out != string(want) {
		t.Errorf("got (go test -update writes it)\n%swant\n%s", out, want)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if !strings.Contains(string(readme), "    "+line) {
			t.Errorf("README.md lacks the line\n    %s", line)
		}
	}
}

func TestDiffJSON(t *testing.T) {
	code, out, errs := kmeshctl(t, "diff", meshDir, changedMesh(t), "-o", "json")
	if code != exitDiffers || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	var report struct {
		Added, Removed []string
		Services       []struct {
			Name        string
			Connections *routediff.Turn
			Changes     []struct {
				Old, New struct{ Outcomes []routediff.Outcome }
				Witness  struct{ Method, Host, Target, Raw, Curl string }
			}
			NeverNew []routediff.Never
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(report.Removed, []string{"10.96.0.22_8080"}) || report.Added == nil || len(report.Services) != 1 {
		t.Fatalf("%s", out)
	}
	s := report.Services[0]
	if len(s.Changes) != 3 || len(s.NeverNew) != 1 || s.Connections == nil || s.Connections.New != "cluster mysql" {
		t.Errorf("%s", out)
	}
	for _, c := range s.Changes {
		if c.Witness.Host != "reviews" || !strings.HasPrefix(c.Witness.Raw, `"GET /`) || len(c.Old.Outcomes) == 0 {
			t.Errorf("%+v", c)
		}
	}
}

// TestDiffExitCodes: no trouble is taken for "the same" or for "different".
func TestDiffExitCodes(t *testing.T) {
	broken := meshWith(t, map[string][]string{"routes.yaml": {"/api/v[0-9]+/", "/api/v[0-9+/"}})
	dangling := meshWith(t, map[string][]string{"catalog1.yaml": {"cluster: catalog", "cluster: missing"}})
	names := meshWith(t, map[string][]string{"routes.yaml": {"name: main", "name: other"}})
	var infixes strings.Builder
	for i := range 26 {
		infixes.WriteString("    - match: {safe_regex: {regex: \".*/x" + string(rune('a'+i)) + "/.*\"}}\n      route: {cluster: mysql}\n")
	}
	costly := meshWith(t, map[string][]string{"routes.yaml": {"    - name: api\n", infixes.String() + "    - name: api\n"}})
	tests := map[string]struct {
		args []string
		code int
		text string // in stderr, or in stdout where that is empty
	}{
		"same":         {[]string{meshDir, meshDir}, exitOK, "every request is decided as before"},
		"only names":   {[]string{meshDir, names}, exitOK, "every request is decided as before"},
		"one":          {[]string{meshDir}, exitUsage, "two directories"},
		"no directory": {[]string{meshDir, "testdata/none"}, exitUsage, "no such file"},
		"output":       {[]string{meshDir, meshDir, "-o", "xml"}, exitUsage, "unknown output"},
		"broken":       {[]string{meshDir, broken}, exitUsage, "to repair"},
		"dangling":     {[]string{dangling, meshDir}, exitUsage, `cluster "missing"`},
		"costly":       {[]string{meshDir, costly}, exitUsage, "too complex to compare"},
	}
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		tt := tests[name]
		t.Run(name, func(t *testing.T) {
			code, out, errs := kmeshctl(t, append([]string{"diff"}, tt.args...)...)
			text := errs
			if tt.code == exitOK {
				text = out
			}
			if code != tt.code || !strings.Contains(text, tt.text) {
				t.Errorf("exit %d, want %d with %q\n%s%s", code, tt.code, tt.text, out, errs)
			}
		})
	}
}
