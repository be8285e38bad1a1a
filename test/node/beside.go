// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What follows is for those who run more on a node than this package does: a container runtime, the kubelet.

// Hierarchies are the mount points of all cgroup hierarchies, of both versions. What is made in one of them under the
// name of CgroupRoot is removed when the node is closed.
func (n *Node) Hierarchies() ([]string, error) { return hierarchies() }

// RecordPins remembers what is pinned now, so that Close looks for it.
func (n *Node) RecordPins() { n.record(n.BPFFS) }

// RemakeBPFFS gives the node an empty bpf file system, as a reboot does. Nobody may hold the old one.
func (n *Node) RemakeBPFFS() error {
	dir := filepath.Dir(n.BPFFS)
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmounting the bpf file system: %w", err)
	}
	return mountBPF(dir)
}

func mountBPF(dir string) error {
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a bpf file system on %s: %w", dir, err)
	}
	return nil
}
