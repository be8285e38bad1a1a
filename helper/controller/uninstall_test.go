// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Of what is on disk all that is ours goes, and nothing else.
func TestUninstallState(t *testing.T) {
	dir := t.TempDir()
	state, run := filepath.Join(dir, "state"), filepath.Join(dir, "run")
	files := []string{"optin.json", ".optin-1", "scopes.json", "scopes.json.123", "xds/default.pb", "xds/scope-a.pb.tmp", "xds/workloads.pb"}
	uninstall := func(others ...string) []string {
		t.Helper()
		for _, name := range slices.Concat(files, others) {
			path := filepath.Join(state, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Uninstall(t.Context(), filepath.Join(dir, "no-bpffs"), run, state); err != nil {
			t.Fatal(err)
		}
		var left []string
		_ = filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				name, _ := filepath.Rel(state, path)
				left = append(left, name)
			}
			return nil
		})
		return left
	}
	if left := uninstall(); left != nil {
		t.Errorf("%q are left", left)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
	others := []string{"own.json", "xds/lds.yaml"}
	if left := uninstall(others...); !slices.Equal(left, others) {
		t.Errorf("%q are left, want %q", left, others)
	}
}
