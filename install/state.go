// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/install/place"
)

// stateName is the record of the installation, in the state directory.
const stateName = "install.json"

// maxState bounds the record.
const maxState = 64 << 10

// record is what is installed. It is also the claim: of several processes on a node (an update with surge, an uninstall beside a running one) only the
// one that claimed last may write.
type record struct {
	Owner     string `json:"owner"`
	Claim     string `json:"claim"`
	Installer string `json:"installer"`
	// Uninstalling: nobody may put anything back.
	Uninstalling bool `json:"uninstalling,omitempty"`

	// What was written to, also in times before. It is noted before it is done: whatever kills this process, an uninstall finds all of it.
	ConfDirs []string `json:"confDirs,omitempty"`
	Binaries []string `json:"binaries,omitempty"`
	Made     []string `json:"made,omitempty"` // directories that were not there before, the outermost first

	// How it is at the moment, for those who read it.
	Mode    Mode   `json:"mode,omitempty"`
	Network string `json:"network,omitempty"`
	File    string `json:"file,omitempty"`
}

func statePath(dir string) string { return filepath.Join(dir, stateName) }

func readRecord(dir string) (*record, []byte, error) {
	data, _, err := place.Read(statePath(dir), maxState)
	if err != nil {
		return nil, nil, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return nil, data, fmt.Errorf("%s: %w: remove it if nothing else helps", statePath(dir), err)
	}
	return r, data, nil
}

// parseRecord reads a record; what it names is removed one day, so it has to be a path.
func parseRecord(data []byte) (*record, error) {
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	for _, path := range slices.Concat(r.ConfDirs, r.Binaries, r.Made) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			return nil, fmt.Errorf("%q is not an absolute path below /", path)
		}
	}
	return r, nil
}

// note adds to a list what is not in it.
func note(list *[]string, s string) {
	if !slices.Contains(*list, s) {
		*list = append(*list, s)
	}
}

// write puts the record in the place of the one that was read as old; nil when there was none. It returns what is there then.
func (r *record) write(disk place.Disk, dir string, old []byte) ([]byte, error) {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return old, err
	}
	data = append(data, '\n')
	switch {
	case old == nil:
		err = disk.Create(statePath(dir), data, 0o600)
	case string(old) != string(data):
		err = disk.Replace(statePath(dir), old, data)
	}
	if err != nil {
		return old, fmt.Errorf("state-dir: %w", err)
	}
	return data, nil
}

func newClaim() string { return rand.Text() }

// makeDir makes a directory and those above it, and returns the ones that were not there.
func makeDir(dir string, mode fs.FileMode) ([]string, error) {
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append([]string{d}, made...)
	}
	return made, os.MkdirAll(dir, mode)
}

// lockDir holds a directory against others that do the same, until it is called back. It is a lock on the directory itself, so that nothing is left of it.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	for {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			mine, err1 := f.Stat()
			now, err2 := os.Stat(dir)
			if err1 == nil && err2 == nil && os.SameFile(mine, now) {
				return func() { f.Close() }, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("another kmesh-install holds %s: %w", dir, err)
		}
	}
}

// wait ends early with the context's error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
