// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kmesh/helper/mesh"
)

// stateFile says, after a restart, what the scopes are that pods have: the maps know their
// names only, and the API server may be away.
const stateFile = "scopes.json"

// maxState bounds the file.
const maxState = 16 << 20

type savedScope struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	Labels         string `json:"labels,omitempty"`
}

// loadKeys reads the scopes that were open. None is no error.
func loadKeys(dir string) ([]mesh.ScopeKey, error) {
	path := filepath.Join(dir, stateFile)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxState:
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxState)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var saved []savedScope
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var keys []mesh.ScopeKey
	for _, s := range saved {
		if s.Namespace != "" {
			keys = append(keys, mesh.ScopeKey{Namespace: s.Namespace, ServiceAccount: s.ServiceAccount, Labels: s.Labels})
		}
	}
	return keys, nil
}

// saveKeys writes them so that there is always the old file or the new one.
func saveKeys(dir string, keys []mesh.ScopeKey) error {
	saved := make([]savedScope, 0, len(keys))
	for _, k := range keys {
		saved = append(saved, savedScope{k.Namespace, k.ServiceAccount, k.Labels})
	}
	data, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, stateFile+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, stateFile))
}
