// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reboot takes away what a machine's restart takes: the helper, pods without any DEL, the bpf file system and the run
// directory. What is on disk stays: the network's configuration, the state directory, what host-local and libcni keep.
func (n *Node) Reboot() error { return n.Restart(n.Pods()...) }

// Restart is Reboot of which only these pods notice: the others play what is on other nodes. They must not be enrolled.
func (n *Node) Restart(pods ...*Pod) error {
	if h := n.currentHelper(); h != nil {
		h.Kill9()
	}
	n.record(n.BPFFS)
	var errs []error
	for _, p := range pods {
		errs = append(errs, n.LosePod(p))
	}
	errs = append(errs, n.RemakeBPFFS(), os.RemoveAll(n.RunDir), os.MkdirAll(n.RunDir, 0o700))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("restarting the node: %w", err)
	}
	return nil
}

// UnmountBPFFS takes away the node's bpf file system, with all that is pinned there: an empty folder is left.
func (n *Node) UnmountBPFFS() error {
	n.record(n.BPFFS)
	if err := unix.Unmount(filepath.Dir(n.BPFFS), 0); err != nil {
		return fmt.Errorf("unmounting the bpf file system: %w", err)
	}
	return nil
}

// MountBPFFS mounts a file system of a kind where the node's bpf file system belongs.
func (n *Node) MountBPFFS(kind string) error {
	at := filepath.Dir(n.BPFFS)
	if kind == "bpf" {
		return mountBPF(at)
	}
	if err := unix.Mount(kind, at, kind, 0, ""); err != nil {
		return fmt.Errorf("mounting a %s file system on %s: %w", kind, at, err)
	}
	return nil
}
