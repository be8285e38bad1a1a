// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// searchDepth: kind nests kubelet's root once; nobody is known to nest it deeper than twice.
	searchDepth = 3
	// searchLimit bounds the directories looked at, for nodes that run much besides Kubernetes.
	searchLimit = 20000
)

// search lists the cgroups that kubelet may have made for uid: every root x every QoS class, in the spelling of the root's driver. It only asks
// whether directories exist; the validator judges what it finds.
func search(root *os.File, uid string) ([]string, error) {
	roots, err := kubeRoots(root)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, r := range roots {
		for _, candidate := range candidates(r, uid) {
			var st unix.Stat_t
			err := unix.Fstatat(int(root.Fd()), strings.TrimPrefix(candidate, "/"), &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				found = append(found, candidate)
			}
		}
	}
	return found, nil
}

// candidates are the places of a pod's cgroup below one of kubelet's roots. A guaranteed pod has no QoS level.
func candidates(root, uid string) []string {
	var out []string
	if stem, systemd := strings.CutSuffix(path.Base(root), ".slice"); systemd {
		pod := "pod" + systemdName(uid) + ".slice"
		out = append(out, root+"/"+stem+"-"+pod)
		for _, qos := range []string{"burstable", "besteffort"} {
			out = append(out, root+"/"+stem+"-"+qos+".slice/"+stem+"-"+qos+"-"+pod)
		}
		return out
	}
	for _, qos := range []string{"", "/burstable", "/besteffort"} {
		out = append(out, root+qos+"/pod"+uid)
	}
	return out
}

func isKubeRoot(name string) bool {
	return name == "kubepods" || name == "kubepods.slice" || strings.HasSuffix(name, "-kubepods.slice")
}

// kubeRoots walks the top of the hierarchy for kubelet's roots.
func kubeRoots(root *os.File) ([]string, error) {
	var roots []string
	level := []string{""}
	seen := 0
	for depth := 1; depth <= searchDepth && len(level) > 0; depth++ {
		var next []string
		for _, dir := range level {
			names, err := subdirs(root, dir)
			if err != nil {
				return nil, fmt.Errorf("search for kubelet's cgroups: %w", err)
			}
			for _, name := range names {
				if seen++; seen > searchLimit {
					return nil, fail(CodeCgroup, nil, "more than %d cgroups near the root: use a runtime that passes cgroupPath", searchLimit)
				}
				if isKubeRoot(name) {
					roots = append(roots, dir+"/"+name)
				} else {
					next = append(next, dir+"/"+name)
				}
			}
		}
		level = next
	}
	return roots, nil
}

func subdirs(root *os.File, dir string) ([]string, error) {
	fd, err := unix.Openat(int(root.Fd()), "."+dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return nil, nil // went away while we walked
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && len(entries) == 0 {
		return nil, nil // removed while it was read
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
