// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"log/slog"
	"os"
	"path/filepath"
)

// maxLog bounds the log file; one older file of that size is kept beside it.
const maxLog = 1 << 20

// openLog opens the plugin's log in the run directory. stdout is the result's and stderr is the runtime's, so where the file cannot be had there is no
// log: a pod never fails for it. The process ends right after the verb, and the file with it.
func openLog(runDir string) *slog.Logger {
	path := filepath.Join(runDir, "cni.log")
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		_ = os.Rename(path, path+".1")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil && os.MkdirAll(runDir, 0o700) == nil {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	}
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewJSONHandler(f, nil))
}
