// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"kmesh/install/place"
)

// writeReady makes the ready file say how it stands.
func writeReady(path string, s Status) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	old, _, err := place.Read(path, maxState)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return place.Disk{}.Create(path, data, 0o644)
	case err != nil:
		return err
	case bytes.Equal(old, data):
		return nil
	}
	return place.Disk{}.Replace(path, old, data)
}

// removeReady takes the ready file away.
func removeReady(path string) {
	if path != "" {
		_ = os.Remove(path) // not there, nearly always
	}
}

// CheckReady is what an exec probe asks.
func CheckReady(path string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("not ready: %w: see the log of kmesh-install run", err)
	}
	return nil
}

// Handler serves /healthz (the process runs), /readyz (the plugin is installed and, as far as the runtime tells, loaded) and /metrics.
func (in *Installer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		s := in.Status()
		w.Header().Set("Content-Type", "application/json")
		if !s.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(s) // the client's loss
	})
	mux.Handle("GET /metrics", in.metrics())
	return mux
}
