// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// folder is where the files are, in the state directory.
	folder    = "xds"
	suffix    = ".pb"
	temporary = ".tmp" // after the suffix, until it is whole
	// maxFile is more than ten times what a mesh of 100,000 endpoints needs.
	maxFile = 512 << 20
)

// names are those that a source may have: they are file names.
var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// read reads a file of bounded size, which must be one.
func read(path string, most int64) ([]byte, error) {
	// Neither a link, which may lead anywhere, nor a pipe, which would not be ready.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("it is a symbolic link")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	tooLarge := fmt.Errorf("it is larger than %d bytes", most)
	if info.Size() > most {
		return nil, tooLarge
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, err
	}
	return data, nil
}

// makeFolder makes the folder of the files.
func makeFolder(dir string) (string, error) {
	path := filepath.Join(dir, folder)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is no directory: remove it", path)
	}
	return path, nil
}

// write puts a file in the place of the last one: whoever reads it, whenever the machine
// stops, has one or the other. rename is os.Rename.
func write(path string, c content, rename func(from, to string) error) (size int64, err error) {
	dir, err := makeFolder(filepath.Dir(filepath.Dir(path)))
	if err != nil {
		return 0, err
	}
	temp := path + temporary
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
		}
	}()
	size, err = encode(f, c)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return 0, err
	}
	if err := rename(temp, path); err != nil {
		return 0, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return size, d.Sync()
}

// Sweep removes the files of sources that are not among keep, from a state directory.
func Sweep(dir string, keep []string) error {
	path := filepath.Join(dir, folder)
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("last good configurations: %w", err)
	}
	var failed []error
	for _, e := range entries {
		name, ours := strings.CutSuffix(strings.TrimSuffix(e.Name(), temporary), suffix)
		if !ours || e.IsDir() || slices.Contains(keep, name) {
			continue
		}
		if err := os.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("last good configurations of sources that are gone: %w", errors.Join(failed...))
	}
	return nil
}

// Uninstall removes all files from a state directory, and their folder if it is empty then.
func Uninstall(dir string) error {
	if err := Sweep(dir, nil); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(dir, folder))
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return fmt.Errorf("last good configurations: %w", err)
}
