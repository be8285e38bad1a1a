// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupDir is a validated pod cgroup. The open descriptor is what programs are attached to, so nothing can be swapped in between; the inode is its
// identity, which the kernel never uses twice.
type cgroupDir struct {
	*os.File
	inode uint64
	path  string // below the cgroup2 mount, absolute; for people
}

// cgroupFinder finds and validates pod cgroups. Its fields are the seams of its tests.
type cgroupFinder struct {
	root      string // cgroup2 directory; "" = found by type in mountinfo
	mountinfo string // default /proc/self/mountinfo
	self      string // default /proc/self/cgroup
}

func (f cgroupFinder) openRoot() (*os.File, error) {
	root := f.root
	if root == "" {
		file, err := os.Open(orDefault(f.mountinfo, "/proc/self/mountinfo"))
		if err != nil {
			return nil, fmt.Errorf("find the cgroup2 mount: %w", err)
		}
		defer file.Close()
		if root, err = cgroup2Mount(file); err != nil {
			return nil, err
		}
	}
	dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fail(CodeUnsupported, err, "cgroup2 root %s cannot be opened: mount cgroup2 there", short(root))
	}
	return dir, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// cgroup2Mount picks the cgroup2 mount out of a mountinfo table: a mount of the whole hierarchy before a mount of a part of it, then the first.
func cgroup2Mount(r io.Reader) (string, error) {
	part := ""
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// id parent major:minor root mountpoint options [optional]... - type source superoptions
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if fsType, _, _ := strings.Cut(after, " "); !ok || fsType != "cgroup2" || len(fields) < 5 {
			continue
		}
		point := unescapeMount(fields[4])
		if fields[3] == "/" {
			return point, nil
		}
		if part == "" {
			part = point
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read mountinfo: %w", err)
	}
	if part == "" {
		return "", fail(CodeUnsupported, nil, "cgroup2 is not mounted on this node: boot with the unified cgroup hierarchy")
	}
	return part, nil
}

// unescapeMount reverses the kernel's octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// find opens the cgroup of the pod uid: the runtime's own word (capability) if it gave one, else a search by UID.
func (f cgroupFinder) find(capability, uid string) (*cgroupDir, error) {
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	root, err := f.openRoot()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if capability != "" {
		return f.open(root, capability, uid)
	}
	found, err := search(root, uid)
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 1:
		return f.open(root, found[0], uid)
	case 0:
		return nil, fail(CodeCgroup, nil, "no cgroup2 directory for pod UID %s: use kubelet with cgroupsPerQOS on cgroup v2 and a runtime that passes cgroupPath", short(uid))
	default:
		return nil, fail(CodeAmbiguous, nil, "pod UID %s has %d cgroups, such as %s: remove the stale one or use a runtime that passes cgroupPath", short(uid), len(found), short(found[0]))
	}
}

func (f cgroupFinder) open(root *os.File, capability, uid string) (*cgroupDir, error) {
	full, parts, err := podCgroupPath(capability)
	if err != nil {
		return nil, err
	}
	if leaf := parts[len(parts)-1]; !leafNames(leaf, uid) {
		return nil, fail(CodeCgroup, nil, "cgroupPath %s does not name pod UID %s: check the container runtime's cgroup driver", short(full), short(uid))
	}
	if err := f.notOurs(full); err != nil {
		return nil, err
	}
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimPrefix(full, "/"), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fail(CodeCgroup, err, "cgroup %s is not in the cgroup2 hierarchy: use cgroup v2 (hybrid nodes: the systemd driver) and kubelet's cgroupsPerQOS", short(full))
	case errors.Is(err, unix.ELOOP):
		return nil, fail(CodeCgroup, err, "cgroup %s goes through a symbolic link: give the real path", short(full))
	case errors.Is(err, unix.EXDEV):
		return nil, fail(CodeCgroup, err, "cgroup %s leaves the cgroup2 mount: give a path inside it", short(full))
	case errors.Is(err, unix.ENOSYS):
		return nil, fail(CodeUnsupported, err, "the kernel lacks openat2: use Linux 6.1 or newer, or a seccomp profile that allows it")
	case err != nil:
		return nil, fail(CodeCgroup, err, "cgroup %s cannot be opened (%v): give a cgroup2 directory", short(full), err)
	}
	dir := &cgroupDir{File: os.NewFile(uintptr(fd), full), path: full}
	if err := dir.check(root); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// check judges the opened directory, not its name.
func (d *cgroupDir) check(root *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &fs); err != nil {
		return fmt.Errorf("cgroup %s: %w", short(d.path), err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fail(CodeCgroup, nil, "cgroup %s is not on a cgroup2 filesystem: use cgroup v2", short(d.path))
	}
	var st, rootStat unix.Stat_t
	if err := errors.Join(unix.Fstat(int(d.Fd()), &st), unix.Fstat(int(root.Fd()), &rootStat)); err != nil {
		return fmt.Errorf("cgroup %s: %w", short(d.path), err)
	}
	if st.Ino == rootStat.Ino {
		return fail(CodeCgroup, nil, "cgroup %s is the hierarchy's root, which governs every process: give the pod's own cgroup", short(d.path))
	}
	d.inode = st.Ino
	return nil
}

// podCgroupPath splits a runtime's cgroupPath. CRI-O with the systemd driver passes only the base name, which spells out its parents.
func podCgroupPath(capability string) (full string, parts []string, err error) {
	full = capability
	switch {
	case full == "":
		return "", nil, fail(CodeCgroup, nil, "cgroupPath is empty: use a runtime that passes the pod's cgroup")
	case strings.ContainsRune(full, 0):
		return "", nil, fail(CodeCgroup, nil, "cgroupPath %s holds a NUL byte: give a clean path", short(full))
	case !strings.Contains(full, "/"):
		if full, err = expandSlice(full); err != nil {
			return "", nil, err
		}
	case !strings.HasPrefix(full, "/"):
		return "", nil, fail(CodeCgroup, nil, "cgroupPath %s is relative: give it from the root of the cgroup hierarchy", short(full))
	}
	full = "/" + strings.Trim(full, "/")
	if full == "/" {
		return "", nil, fail(CodeCgroup, nil, "cgroupPath is the root cgroup, which governs every process of the node: give the pod's own cgroup")
	}
	parts = strings.Split(full[1:], "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return "", nil, fail(CodeCgroup, nil, "cgroupPath %s has an empty, \".\" or \"..\" part: give it without", short(full))
		}
	}
	if len(parts) < 2 {
		return "", nil, fail(CodeCgroup, nil, "cgroupPath %s is at the top of the hierarchy: a pod's cgroup lies at least two levels deep", short(full))
	}
	return full, parts, nil
}

// expandSlice turns a-b-c.slice into /a.slice/a-b.slice/a-b-c.slice, as systemd nests slices.
func expandSlice(name string) (string, error) {
	stem, ok := strings.CutSuffix(name, ".slice")
	if !ok || stem == "" || strings.HasPrefix(stem, "-") || strings.HasSuffix(stem, "-") || strings.Contains(stem, "--") {
		return "", fail(CodeCgroup, nil, "cgroupPath %s is neither absolute nor the name of a systemd slice: give the pod's full cgroup path", short(name))
	}
	full := ""
	for i := range len(stem) {
		if stem[i] == '-' {
			full += "/" + stem[:i] + ".slice"
		}
	}
	return full + "/" + name, nil
}

// checkUID asks only what safety needs: static pods have 32 hex digits, and some tools set UIDs of their own.
func checkUID(uid string) error {
	if uid == "" {
		return fail(CodeCgroup, nil, "the pod's UID is unknown: use a runtime that passes K8S_POD_UID in CNI_ARGS")
	}
	for i := range len(uid) {
		if c := uid[i]; c <= ' ' || c == '/' || c >= 0x7f {
			return fail(CodeCgroup, nil, "pod UID %s holds a character that no cgroup name has: use letters, digits and dashes", short(uid))
		}
	}
	if len(uid) > 200 {
		return fail(CodeCgroup, nil, "pod UID of %d bytes is too long for a cgroup name: use at most 200", len(uid))
	}
	return nil
}

// leafNames says whether a cgroup's name is the one kubelet gives to the pod: pod<uid> with cgroupfs, <parents>-pod<uid_>.slice with systemd. The UID
// must be a whole component, so that one pod's UID being the beginning or end of another's does not matter.
func leafNames(leaf, uid string) bool {
	if uid == "" {
		return false
	}
	if leaf == "pod"+uid {
		return true
	}
	stem, ok := strings.CutSuffix(leaf, ".slice")
	if !ok {
		return false
	}
	return stem[strings.LastIndexByte(stem, '-')+1:] == "pod"+systemdName(uid)
}

// systemdName is a name as one component of a slice: the dash separates components.
func systemdName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// notOurs refuses our own cgroup and those above it: programs there would govern the node's own processes.
func (f cgroupFinder) notOurs(full string) error {
	data, err := os.ReadFile(orDefault(f.self, "/proc/self/cgroup"))
	if err != nil {
		return fmt.Errorf("read our own cgroup: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		own, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "0::")
		if !ok {
			continue
		}
		own = path.Clean(own)
		if own == full || strings.HasPrefix(own, full+"/") {
			return fail(CodeCgroup, nil, "cgroup %s holds this very process: give the pod's own cgroup", short(full))
		}
	}
	return nil
}
