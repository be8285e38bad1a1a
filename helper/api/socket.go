// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what sockaddr_un holds, less its closing zero.
const maxSocketPath = 107

// listen takes the socket at path, and the lock beside it that says that somebody
// serves there. The lock outlives a crash only as a file that nobody holds.
func listen(path string) (lock *os.File, listener net.Listener, err error) {
	if len(path) > maxSocketPath {
		return nil, nil, fmt.Errorf("%s is %d bytes long, a unix socket's path has at most %d: choose a shorter run-dir", path, len(path), maxSocketPath)
	}
	if err := ownFolder(filepath.Dir(path), filepath.Base(path)); err != nil {
		return nil, nil, err
	}
	lock, err = os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("another helper serves %s: stop it, or give this one a run-dir of its own", path)
		}
		return nil, nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if err := removeStale(path); err != nil {
		return nil, nil, err
	}
	listener, err = net.Listen("unix", path)
	if err != nil {
		return nil, nil, err
	}
	// The folder is closed to others, so nobody could get in between.
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, nil, err
	}
	return lock, listener, nil
}

// removeStale removes a socket that nobody listens on; anything else at path is an
// error.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket: move it away", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("something listens on %s already: stop it, or give this helper a run-dir of its own", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether %s is in use: %w", path, err)
	}
	return os.Remove(path)
}

// ours are the beginnings of the names in a run directory that the helper, the plugin
// and the installer make.
var ours = []string{"helper.", "pods", "cni.log", "install.", ".kmesh-"}

// ownFolder makes dir, closed to others, or closes one that is there, provided
// that nothing is in it that is not Kmesh's. A folder that
// others use is left as it is, with an error.
func ownFolder(dir, socket string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d, not to the helper's %d: choose another run-dir", dir, owner, os.Geteuid())
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, socket) && !slices.ContainsFunc(ours, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			return fmt.Errorf("%s is open to others (mode %#o) and holds %s: choose a run-dir of the helper's own, or chmod 0700 it", dir, info.Mode().Perm(), name)
		}
	}
	return os.Chmod(dir, 0o700)
}
