// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchies lists the mount points of all cgroup hierarchies, of both versions.
func hierarchies() ([]string, error) {
	return mountedAs(func(fstype string) bool { return fstype == "cgroup" || fstype == "cgroup2" })
}

// cgroup2Mount finds where cgroup v2 is mounted, by its type: on machines of both versions it is not /sys/fs/cgroup.
func cgroup2Mount() (string, error) {
	points, err := mountedAs(func(fstype string) bool { return fstype == "cgroup2" })
	if err == nil && len(points) == 0 {
		err = errors.New("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	if err != nil {
		return "", err
	}
	return points[0], nil
}

func mountedAs(is func(fstype string) bool) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// id parent dev root MOUNTPOINT options [optional...] - TYPE source options
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if ok && len(l) > 4 && len(r) > 0 && is(r[0]) {
			points = append(points, unescapeMount(l[4]))
		}
	}
	return points, sc.Err()
}

// removeCgroups removes a top-level cgroup by name: from v2, and from the v1 hierarchies, where a container runtime
// makes directories too.
func removeCgroups(name string) error {
	points, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		errs = append(errs, removeCgroup(filepath.Join(p, name)))
	}
	return errors.Join(errs...)
}

// makeCgroup makes a directory and all above it, and remembers its inode.
func (n *Node) makeCgroup(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("making a cgroup: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("making a cgroup: %w", err)
	}
	n.seen.cgroup(st.Ino, path)
	return nil
}

// killCgroup ends every process in a cgroup and below.
func killCgroup(path string) error {
	f, err := os.OpenFile(filepath.Join(path, "cgroup.kill"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of version 1, which has no such file, or not there at all
	}
	if err == nil {
		_, err = f.WriteString("1")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("killing what runs in a cgroup: %w", err)
	}
	return nil
}

// removeCgroup kills what runs in a cgroup and removes it with all below.
func removeCgroup(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := killCgroup(path); err != nil {
		return err
	}
	var last error
	gone := poll(context.Background(), 5*time.Second, func() bool {
		last = removeTree(path)
		return last == nil
	})
	if !gone {
		return fmt.Errorf("removing a cgroup: %w", last)
	}
	return nil
}

func removeTree(path string) error {
	dirs, err := cgroupTree(path)
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	return nil
}

// cgroupTree is a cgroup and all below it, parents first; nothing when it does not exist.
func cgroupTree(path string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	return dirs, err
}

// processes lists who runs in a cgroup and below.
func processes(path string) ([]int, error) {
	dirs, err := cgroupTree(path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}
