// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"kmesh/bpf"
	"kmesh/netns"
)

// Uninstall removes everything that outlives the helper, on purpose: the links of
// all pods, which are ungoverned from then on, maps and programs, records and state.
// It refuses while a helper runs.
func Uninstall(ctx context.Context, bpffs, runDir, stateDir string) error {
	unlock, err := Lock(runDir)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	defer unlock()
	// A bpffs that is not there holds nothing of ours.
	if bpf.CheckBPFFS(bpffs) == nil {
		if err := netns.New(netns.Options{BPFFS: bpffs, RunDir: runDir}).Uninstall(ctx); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		if err := bpf.Unpin(bpffs); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		if err := os.Remove(bpffs); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("uninstall: %s holds something that is not ours: %w", bpffs, err)
		}
	}
	for _, dir := range []string{stateDir, runDir} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	return nil
}
