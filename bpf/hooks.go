// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DefaultBPFFS is where Kmesh pins unless it is told otherwise.
const DefaultBPFFS = "/sys/fs/bpf/kmesh"

// Hook is a place where a program of ours is attached in a pod. Its name is that
// of the program and of the pin.
type Hook struct {
	Name   string
	Attach ebpf.AttachType
}

// CgroupHooks are attached to the pod's cgroup. Those that mark sockets come first.
var CgroupHooks = []Hook{
	{"connect4", ebpf.AttachCGroupInet4Connect},
	{"connect6", ebpf.AttachCGroupInet6Connect},
	{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
	{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
	{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
	{"getpeername4", ebpf.AttachCgroupInet4GetPeername},
	{"getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"sock_ops", ebpf.AttachCGroupSockOps},
}

// TCHooks are attached to the pod's interface, inside its network namespace.
var TCHooks = []Hook{
	{"tc_ingress", ebpf.AttachTCXIngress},
	{"tc_egress", ebpf.AttachTCXEgress},
}

// Dir is the directory of this ABI below a bpffs directory.
func Dir(bpffs string) string {
	return filepath.Join(bpffs, "v"+strconv.FormatUint(uint64(ABI), 10))
}

// ProgPath is where the program of a hook is pinned.
func ProgPath(bpffs, hook string) string {
	return filepath.Join(Dir(bpffs), "progs", hook)
}

// MapPath is where a map is pinned.
func MapPath(bpffs, name string) string {
	return filepath.Join(Dir(bpffs), "maps", name)
}

// bpffsMagic is BPF_FS_MAGIC of linux/magic.h.
const bpffsMagic = 0xcafe4a11

// CheckBPFFS tells whether dir, or the nearest of its parents that exists, is on a
// bpf filesystem. Pins elsewhere are impossible, and a bpffs that only a container
// sees would vanish with it.
func CheckBPFFS(dir string) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bpffs %s: %w", dir, err)
		}
		if st.Type != bpffsMagic {
			return fmt.Errorf("bpffs %s: %s is not on a bpf filesystem: run 'mount -t bpf bpf /sys/fs/bpf' on the node, or set bpffs to a directory below one", dir, at)
		}
		return nil
	}
}
