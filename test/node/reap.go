// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const lockName = "lock"

// claim makes the node's folder and locks it for as long as the node lives. Removing the dead and claiming happen
// under one lock of the whole of Base, so that nobody takes a folder that is being made for a dead one's.
func (n *Node) claim() error {
	if err := os.MkdirAll(Base, 0o700); err != nil {
		return err
	}
	base, err := lockFile(filepath.Join(Base, lockName), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer base.Close()
	if err := reap(n.cgMnt); err != nil {
		return fmt.Errorf("removing what a killed test left behind: %w", err)
	}
	if err := os.Mkdir(n.Dir, 0o700); err != nil {
		return err
	}
	n.lock, err = lockFile(filepath.Join(n.Dir, lockName), unix.LOCK_EX|unix.LOCK_NB)
	return err
}

// reap removes the nodes whose makers are dead: nobody holds the lock in their folder. A maker's death ends the lock,
// whatever way it died; the processes of its pods go with their cgroup.
func reap(cgMnt string) error {
	dirs, err := os.ReadDir(Base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		dir := filepath.Join(Base, d.Name())
		if !d.IsDir() {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			dead := &Node{Dir: dir, CgroupRoot: filepath.Join(cgMnt, cgroupPrefix+d.Name())}
			if err := dead.remove(); err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", d.Name(), err))
			}
		}
		f.Close()
	}
	return errors.Join(errs...)
}

// lockFile opens (makes) a file and locks it until it is closed.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}
