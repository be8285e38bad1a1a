// SPDX-License-Identifier: Apache-2.0

// Package place puts whole files into directories that others read and write at the same time.
//
// Invariant: a reader sees the old file or the new one, both of them whole and on the disk. What is replaced or removed is exactly what the caller has
// read: what somebody else has written in between is put back, and the caller told. When a step fails, everything is as it was before, and no temporary
// file is left.
package place

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrChanged: somebody else has changed the file since it was read. Read it again.
var ErrChanged = errors.New("the file has been changed since it was read")

// Names of temporary files. They have to be beside the file itself (a runtime that watches the directory sees the rename of a sibling, and not that of a
// file from elsewhere), and must not end as a configuration does.
const (
	tempPrefix = ".kmesh-"
	tempSuffix = ".tmp"
)

// Step is one thing that can go wrong.
type Step string

// The steps, as Disk.Fail is asked about them.
const (
	StepCreate  Step = "create"
	StepWrite   Step = "write"
	StepMode    Step = "mode"
	StepSync    Step = "sync"
	StepRename  Step = "rename"
	StepVerify  Step = "verify"
	StepSyncDir Step = "sync of the directory"
	StepUnlink  Step = "unlink"
)

// maxExchanges bounds how often a file is given back to somebody who writes it at the same time.
const maxExchanges = 8

// Disk is where files are put. The zero value is the real one.
type Disk struct {
	// Fail is asked before each step; its error is taken for that of the step. Tests set it.
	Fail func(step Step, path string) error
}

func (d Disk) step(s Step, path string, f func() error) error {
	if d.Fail != nil {
		if err := d.Fail(s, path); err != nil {
			return fmt.Errorf("%s of %s: %w", s, path, err)
		}
	}
	return f()
}

// Read reads a regular file of at most limit bytes, and never follows a symbolic link.
func Read(path string, limit int64) ([]byte, fs.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		target, _ := os.Readlink(path)
		return nil, nil, fmt.Errorf("%s is a symbolic link, to %s", path, target)
	case err != nil:
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is no regular file (%s)", path, info.Mode().Type())
	case info.Size() > limit:
		return nil, nil, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, info, err
}

// Create puts a file where there is none.
func (d Disk) Create(path string, data []byte, mode fs.FileMode) error {
	tmp, err := d.temp(filepath.Dir(path), bytes.NewReader(data), func(f *os.File) error { return f.Chmod(mode) })
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	err = d.step(StepRename, path, func() error { return renameNew(tmp, path) })
	if err == nil {
		if err = d.syncDir(path); err == nil {
			return nil
		}
		tmp = path
	}
	if errors.Is(err, fs.ErrExist) {
		err = ErrChanged
	}
	return fmt.Errorf("creating %s: %w", path, errors.Join(err, discard(tmp)))
}

// Replace puts fresh in the place of old, which the caller has read. Mode, owner and extended attributes stay.
func (d Disk) Replace(path string, old, fresh []byte) error {
	err := d.replace(path, old, fresh)
	if err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return nil
}

func (d Disk) replace(path string, old, fresh []byte) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrChanged
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("it is no regular file (%s)", info.Mode().Type())
	}
	tmp, err := d.temp(filepath.Dir(path), bytes.NewReader(fresh), func(f *os.File) error { return alike(f, path, info) })
	if err != nil {
		return err
	}
	err = d.step(StepRename, path, func() error { return rename(tmp, path, unix.RENAME_EXCHANGE) })
	switch {
	case unsupported(err):
		return d.renameOver(tmp, path, old)
	case errors.Is(err, fs.ErrNotExist):
		return errors.Join(ErrChanged, discard(tmp))
	case err != nil:
		return errors.Join(err, discard(tmp))
	}
	// What was in place is in tmp now, whoever wrote it.
	err = d.step(StepVerify, path, func() error { return compare(tmp, old) })
	if err == nil {
		err = d.syncDir(path)
	}
	if err != nil {
		return errors.Join(err, putBack(tmp, path, fresh), discard(tmp))
	}
	if err := d.step(StepUnlink, tmp, func() error { return os.Remove(tmp) }); err != nil {
		// It is the old file, under a name that nobody reads: the new one is in place.
		return discard(tmp)
	}
	return nil
}

// renameOver is for file systems that cannot exchange: between the comparison and the rename there is a moment.
func (d Disk) renameOver(tmp, path string, old []byte) error {
	if err := compare(path, old); err != nil {
		return errors.Join(err, discard(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, discard(tmp))
	}
	return d.syncDir(path)
}

// putBack exchanges until the newest file that is not ours is in place: what comes out must be what was put in by the exchange before, or else somebody
// has written once more.
func putBack(tmp, path string, placed []byte) error {
	for range maxExchanges {
		next, err := os.ReadFile(tmp)
		if err != nil {
			return err
		}
		if err := rename(tmp, path, unix.RENAME_EXCHANGE); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // somebody has taken ours away: there is nothing to give back to
			}
			return err
		}
		if compare(tmp, placed) == nil {
			return nil
		}
		placed = next
	}
	return fmt.Errorf("%s is written without pause", path)
}

// Remove takes away the file that the caller has read as old.
func (d Disk) Remove(path string, old []byte) error {
	tmp := tempName(filepath.Dir(path))
	err := d.step(StepRename, path, func() error { return renameNew(path, tmp) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.step(StepVerify, path, func() error { return compare(tmp, old) })
		if err == nil {
			err = d.syncDir(path)
		}
		if err == nil {
			err = d.step(StepUnlink, tmp, func() error { return os.Remove(tmp) })
		}
		if err != nil {
			back := renameNew(tmp, path)
			if errors.Is(back, fs.ErrExist) { // a newer one is there already
				back = discard(tmp)
			}
			err = errors.Join(err, back)
		}
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// Copy puts a program in place: a copy of from, executable. A process that runs the old one is not disturbed.
func (d Disk) Copy(from, to string, mode fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp, err := d.temp(filepath.Dir(to), src, func(f *os.File) error { return f.Chmod(mode) })
	if err != nil {
		return fmt.Errorf("copying %s to %s: %w", from, to, err)
	}
	if err := d.step(StepRename, to, func() error { return os.Rename(tmp, to) }); err != nil {
		return fmt.Errorf("copying %s to %s: %w", from, to, errors.Join(err, discard(tmp)))
	}
	return d.syncDir(to)
}

// IsTemp says whether a path is that of a temporary file of ours.
func IsTemp(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Sweep removes temporary files of ours that a killed process has left.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if IsTemp(e.Name()) && e.Type().IsRegular() {
			errs = append(errs, discard(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
