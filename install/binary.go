// SPDX-License-Identifier: Apache-2.0

package install

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"kmesh/cni/entry"
	"kmesh/install/place"
)

// StubName is the program that takes the plugin's place until nothing names it any more.
const StubName = "kmesh-cni-stub"

// sums remembers the digests of files as long as they do not change: the programs are looked at with each event.
type sums map[string]summed

type summed struct {
	id  fileID
	sum [sha256.Size]byte
}

// fileID changes with every change of a file.
type fileID struct {
	dev, ino       uint64
	size           int64
	changed, nanos int64
}

func (s sums) of(path string) ([sha256.Size]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	if !info.Mode().IsRegular() {
		return [sha256.Size]byte{}, fmt.Errorf("%s is no regular file", path)
	}
	st := info.Sys().(*syscall.Stat_t)
	id := fileID{st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec}
	if known, ok := s[path]; ok && known.id == id {
		return known.sum, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return [sha256.Size]byte{}, err
	}
	known := summed{id: id}
	h.Sum(known.sum[:0])
	s[path] = known
	return known.sum, nil
}

// same says whether two files hold the same, and the second may be run.
func (s sums) same(from, to string) (bool, error) {
	a, err := s.of(from)
	if err != nil {
		return false, err
	}
	b, err := s.of(to)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := os.Stat(to)
	return err == nil && a == b && info.Mode().Perm()&0o111 == 0o111, err
}

// binaryPlace is where the plugin is, or is to be: the first folder that the runtime looks into that has one, else the first.
func binaryPlace(bins []string) string {
	for _, dir := range bins {
		if path := filepath.Join(dir, entry.Type); exists(path) {
			return path
		}
	}
	return filepath.Join(bins[0], entry.Type)
}

// putBinary makes the program in place the one of that name in the source. A folder that cannot be written to is no error when the right one is there
// already (it is in the image of some distributions).
func putBinary(disk place.Disk, s sums, from, to string) (written bool, err error) {
	same, err := s.same(from, to)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("source: %w: set source to the folder of the programs to install", err)
		}
		return false, err
	}
	if same {
		return false, nil
	}
	if err := disk.Copy(from, to, 0o755); err != nil {
		switch {
		case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
			return false, fmt.Errorf("bin-dir: %w: make the folder writable, or put this version's %s there by other means", err, filepath.Base(to))
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return false, fmt.Errorf("bin-dir: %w: make room", err)
		}
		return false, fmt.Errorf("bin-dir: %w", err)
	}
	return true, nil
}
