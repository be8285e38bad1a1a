// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/helper/lastgood"
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
		release, err := lockMaps(bpffs)
		if err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		defer release()
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
	if err := lastgood.Uninstall(stateDir); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	// By name: the directories are the administrator's choice and may hold other things.
	for dir, ours := range map[string][]string{
		stateDir: {"optin.json", ".optin-*", "scopes.json", "scopes.json.*"},
		runDir:   {"helper.lock", "helper.sock", "helper.sock.lock", "cni.log", "cni.log.1", "pods"},
	} {
		for _, pattern := range ours {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			for _, path := range found {
				if err := os.RemoveAll(path); err != nil {
					return fmt.Errorf("uninstall: %w", err)
				}
			}
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
			!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EROFS) { // a mount point, in a container whose root is read-only
			return fmt.Errorf("uninstall: %w", err)
		}
	}
	return nil
}
