// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// TestRememberUntilHeard: after a reboot there are no pods until the API server has spoken, and what is on disk of their
// scopes is what they will be served. What none of them needs goes when it has.
func TestRememberUntilHeard(t *testing.T) {
	dir := t.TempDir()
	web := mesh.ScopeKey{Namespace: "shop", ServiceAccount: "web"}
	if err := saveKeys(dir, []mesh.ScopeKey{web}); err != nil {
		t.Fatal(err)
	}
	heard := false
	m := New(Options{
		Open: func(k mesh.ScopeKey) (xds.Source, error) {
			t.Errorf("scope %v is opened", k)
			return nil, errors.ErrUnsupported
		},
		Pods:  func(context.Context) ([]Pod, bool) { return nil, true },
		Heard: func() bool { return heard }, Installed: func() map[string]uint32 { return nil },
		Name:    func(k mesh.ScopeKey) string { return k.Namespace + "/" + k.ServiceAccount },
		Resolve: func([]mesh.Lookup) {}, StateDir: dir, KeepLastGood: true, Log: slog.New(slog.DiscardHandler),
	})
	file := filepath.Join(dir, "xds", m.fileOf(web)+".pb")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("last good"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.load()

	m.round(t.Context())
	if _, err := os.Stat(file); err != nil {
		t.Errorf("before the API server has spoken: %v", err)
	}
	if keys, err := loadKeys(dir); err != nil || len(keys) != 1 || keys[0] != web {
		t.Errorf("before the API server has spoken the scopes on disk are %v (%v)", keys, err)
	}

	heard = true
	m.round(t.Context())
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("no pod has the scope, and its file is there: %v", err)
	}
}
