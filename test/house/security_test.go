// SPDX-License-Identifier: Apache-2.0

package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// proof is a test as the threat model names it: a folder, a function, perhaps a case.
var proof = regexp.MustCompile("`([a-z0-9/]+) ((?:Test|Fuzz)[A-Za-z0-9]+)(?:/([^`]+))?`")

// unproven says which claims of a threat model name no test, and which tests that are named do not exist.
func unproven(text string, exists func(dir, function, name string) bool) []string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		row := strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|---") && !strings.HasSuffix(line, "shown by |")
		found := proof.FindAllStringSubmatch(line, -1)
		if row && len(found) == 0 {
			out = append(out, "no test is named in: "+line)
		}
		for _, m := range found {
			if !exists(m[1], m[2], m[3]) {
				out = append(out, "there is no test "+m[0])
			}
		}
	}
	return out
}

// testExists looks for a test's function in the files of a folder, and for the name of a case among its strings.
func testExists(dir, function, name string) bool {
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		return false
	}
	isFunction, isCase := false, name == ""
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return false
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				isFunction = isFunction || n.Recv == nil && n.Name.Name == function
			case *ast.BasicLit:
				if s, err := strconv.Unquote(n.Value); err == nil && s == name {
					isCase = true
				}
			}
			return true
		})
	}
	return isFunction && isCase
}

// TestThreatModel: each claim of the threat model names the tests that show it, and they exist.
func TestThreatModel(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, ".github/SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range unproven(string(text), testExists) {
		t.Error(fault)
	}
	if n := len(proof.FindAllString(string(text), -1)); n < 30 {
		t.Errorf("the threat model names %d tests only", n)
	}
}

func TestUnproven(t *testing.T) {
	const head = "| it can | it cannot | shown by |\n|---|---|---|\n"
	for text, want := range map[string]int{
		head + "| a | b | `test/house TestThreatModel` |\n":                               0,
		head + "| a | b | `test/house TestThreatModel/no such case` |\n":                  1,
		head + "| a | b | `test/house TestNoSuchThing`, `test/house TestThreatModel` |\n": 1,
		head + "| a | b | `test/nowhere TestThreatModel` |\n":                             1,
		head + "| a | b | |\n":                                                                1,
		head + "| a | b | it is obvious |\n":                                                  1,
		"In words (`test/house TestNoSuchThing`).\n":                                          1,
		"In words (`test/house TestFaults/licence below`).\n":                                 0,
		"`test/house` is no test, nor is `kmesh.net/enroll`.\n" + "| a | `x FuzzNothing` |\n": 1,
	} {
		if got := unproven(text, testExists); len(got) != want {
			t.Errorf("%q: faults %q, want %d", text, got, want)
		}
	}
}
