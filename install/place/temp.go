// SPDX-License-Identifier: Apache-2.0

package place

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func tempName(dir string) string { return filepath.Join(dir, tempPrefix+rand.Text()[:10]+tempSuffix) }

// temp writes a whole file beside where it is to be, and on the disk. Nothing is left of it when that fails.
//
// This process starts no child while the file is open: a child has it open for writing, too, until its own exec, and whoever runs a plugin in that moment
// gets "text file busy" (which libcni means to retry, and cannot: a command runs once).
func (d Disk) temp(dir string, data io.Reader, finish func(*os.File) error) (string, error) {
	path := tempName(dir)
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	var f *os.File
	err := d.step(StepCreate, path, func() (err error) {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return "", err
	}
	for _, s := range []struct {
		step Step
		do   func() error
	}{
		{StepWrite, func() error { _, err := io.Copy(f, data); return err }},
		{StepMode, func() error { return finish(f) }},
		{StepSync, f.Sync},
	} {
		if err = d.step(s.step, path, s.do); err != nil {
			break
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, discard(path))
	}
	return path, nil
}

// alike gives a file the mode, the owner and the extended attributes of another.
func alike(f *os.File, path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("no owner to be seen")
	}
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		// Without the capability to give files away it still works where the file is ours anyway.
		if own, statErr := f.Stat(); statErr != nil || own.Sys().(*syscall.Stat_t).Uid != st.Uid {
			return fmt.Errorf("giving it to the owner of %s: %w", path, err)
		}
	}
	if err := f.Chmod(info.Mode().Perm()); err != nil {
		return err
	}
	copyAttributes(f, path)
	return nil
}

// copyAttributes copies what it may, SELinux's label above all. A new file has the label of its directory, which is the right one nearly always: what
// cannot be copied is no reason to stop.
func copyAttributes(f *os.File, path string) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n <= 0 {
		return
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			_ = unix.Fsetxattr(int(f.Fd()), name, value[:n], 0)
		}
	}
}

func rename(from, to string, flags uint) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// unsupported says whether a file system knows no flags of a rename.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// renameNew renames to a name that nothing has.
func renameNew(from, to string) error {
	err := rename(from, to, unix.RENAME_NOREPLACE)
	if !unsupported(err) {
		return err
	}
	if err := os.Link(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// compare says whether a file holds what is expected; ErrChanged if it does not.
func compare(path string, want []byte) error {
	got, _, err := Read(path, int64(len(want)))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrChanged
	}
	if err != nil || !bytes.Equal(got, want) {
		return errors.Join(ErrChanged, err)
	}
	return nil
}

func (d Disk) syncDir(path string) error {
	dir := filepath.Dir(path)
	return d.step(StepSyncDir, dir, func() error {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
