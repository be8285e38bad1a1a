// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"kmesh/netns/failpoint"
)

// lock takes the exclusive lock of a cgroup's directory. It is the kernel's queue, not a poll, so that many waiters are served in turn.
func lock(ctx context.Context, dir *os.File) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), err)
	}
	if err := failpoint.Here("lock"); err != nil {
		return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), err)
	}
	// A descriptor of its own: the lock belongs to the open file, and goes with it, whoever waits for it still.
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), err)
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { unix.Close(fd) }, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		unix.Close(fd)
		return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), err)
	}
	done := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), err)
		}
		return func() { unix.Close(fd) }, nil
	case <-ctx.Done():
		go func() { <-done; unix.Close(fd) }()
		return nil, fmt.Errorf("lock cgroup %s: %w", dir.Name(), ctx.Err())
	}
}

// fileidKernfs is the handle type of kernfs: the handle is the 64-bit inode, so a cgroup can be opened by the very number that identifies it.
const fileidKernfs = 0xfe

// openInode opens the cgroup with this inode. A removed one is unix.ESTALE.
func (f cgroupFinder) openInode(inode uint64) (*os.File, error) {
	root, err := f.openRoot()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, inode))
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %d: %w", inode, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("cgroup %d", inode)), nil
}

// lockInode locks the cgroup with this inode. When it is gone, nobody can attach to it any more, and no lock is needed; alive is nil then.
func (n *Node) lockInode(ctx context.Context, inode uint64) (alive *os.File, unlock func(), err error) {
	dir, err := n.finder.openInode(inode)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	release, err := lock(ctx, dir)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	return dir, func() { release(); dir.Close() }, nil
}
