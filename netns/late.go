// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoNetns: no process leads to the pod's network namespace.
var ErrNoNetns = errors.New("the pod's network namespace was not found")

// pinnedNetns is where container runtimes keep the network namespaces of sandboxes.
var pinnedNetns = []string{"/run/netns", "/var/run/docker/netns"}

// procDir is where processes are looked up; they are seen only in the node's own process namespace.
const procDir = "/proc"

// FindNetns finds a running pod's network namespace, and the interface in it that has one of the pod's addresses, by the processes in the pod's cgroup.
// A process may have gone to another namespace: the pod's address is the proof. The error wraps ErrNoNetns when there is none to be seen.
func (n *Node) FindNetns(uid string, addrs []netip.Addr) (path, ifName string, err error) {
	dir, err := n.finder.find("", uid)
	if err != nil {
		return "", "", err
	}
	defer dir.Close()
	pids, err := pidsBelow(dir.File)
	if err != nil {
		return "", "", fmt.Errorf("find network namespace: %w", err)
	}
	var own, st unix.Stat_t
	if err := unix.Stat(filepath.Join(procDir, "self/ns/net"), &own); err != nil {
		return "", "", fmt.Errorf("find network namespace: %w", err)
	}
	seen := map[uint64]bool{own.Ino: true} // the node's own is nobody's
	for _, pid := range pids {
		at := filepath.Join(procDir, strconv.Itoa(pid), "ns/net")
		if err := unix.Stat(at, &st); err != nil || seen[st.Ino] {
			continue // it ended, or may not be looked at
		}
		seen[st.Ino] = true
		err := Do(at, func() (err error) { ifName, err = interfaceOf(addrs); return err })
		if err == nil && ifName != "" {
			return pinnedAt(st, at), ifName, nil
		}
	}
	return "", "", fmt.Errorf("%w: none of %d processes in its cgroup leads to one with its address", ErrNoNetns, len(pids))
}

// pidsBelow lists the processes in a cgroup and below. Those of another process namespace than ours show as 0 and are left out.
func pidsBelow(dir *os.File) ([]int, error) {
	var pids []int
	procs, err := openAt(dir, "cgroup.procs")
	if err != nil {
		return nil, ignoreGone(err)
	}
	lines := bufio.NewScanner(procs)
	for lines.Scan() {
		if pid, err := strconv.Atoi(strings.TrimSpace(lines.Text())); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	err = lines.Err()
	procs.Close()
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil && len(entries) == 0 {
		return pids, nil // removed while it was read
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		sub, err := openAt(dir, e.Name())
		if err != nil {
			continue
		}
		below, err := pidsBelow(sub)
		sub.Close()
		if err != nil {
			return nil, err
		}
		pids = append(pids, below...)
	}
	return pids, nil
}

func openAt(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// interfaceOf names the interface of the calling thread's namespace that has one of the addresses; "" when none has.
func interfaceOf(addrs []netip.Addr) (string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, i := range all {
		has, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range has {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && slices.Contains(addrs, p.Addr().Unmap()) {
				return i.Name, nil
			}
		}
	}
	return "", nil
}

// pinnedAt is the file that keeps a namespace, which stays as long as the sandbox; else the process's, which ends with it.
func pinnedAt(ns unix.Stat_t, process string) string {
	for _, dir := range pinnedNetns {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, e := range entries {
			var st unix.Stat_t
			path := filepath.Join(dir, e.Name())
			if unix.Stat(path, &st) == nil && st.Ino == ns.Ino && st.Dev == ns.Dev {
				return path
			}
		}
	}
	return process
}
