// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// podNetns is an open network namespace and what identifies it: the cookie is never used twice.
type podNetns struct {
	ns.NetNS
	cookie uint64
}

func openNetns(path string) (*podNetns, error) {
	if path == "" {
		return nil, fmt.Errorf("network namespace path is empty: set CNI_NETNS")
	}
	h, err := ns.GetNS(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	p := &podNetns{NetNS: h}
	if err := h.Do(func(ns.NetNS) error { p.cookie, err = netnsCookie(); return err }); err != nil {
		h.Close()
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return p, nil
}

// netnsCookie is the cookie of the calling thread's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fail(CodeUnsupported, err, "the kernel lacks SO_NETNS_COOKIE: use Linux 6.1 or newer")
	}
	return cookie, nil
}

// ifindex finds an interface in the calling thread's network namespace.
func ifindex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("interface %q in the pod's network namespace: %w", name, err)
	}
	return int(req.Uint32()), nil
}
