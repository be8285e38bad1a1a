// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"

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
	h, err := getNS(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	p := &podNetns{NetNS: h}
	if err := p.Do(func(ns.NetNS) error { p.cookie, err = netnsCookie(); return err }); err != nil {
		h.Close()
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return p, nil
}

// getNS opens a network namespace. One that is not there is fs.ErrNotExist.
func getNS(path string) (ns.NetNS, error) {
	h, err := ns.GetNS(path)
	var gone ns.NSPathNotExistErr
	if errors.As(err, &gone) {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return h, err
}

// Do runs f on a thread inside the namespace. It stands in for the library's, because of CAP_SYS_ADMIN: that is in effect for the way in and the way
// back, and not for f.
func (p *podNetns) Do(f func(ns.NetNS) error) error { return within(p.NetNS, f) }

func within(target ns.NetNS, f func(host ns.NetNS) error) error {
	done := make(chan error, 1)
	go func() { done <- enter(target, f) }()
	return <-done
}

// enter is run by a goroutine of its own: when the thread cannot come back, it stays locked and ends with it.
func enter(target ns.NetNS, f func(host ns.NetNS) error) error {
	runtime.LockOSThread()
	host, err := ns.GetCurrentNS()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the current network namespace: %w", err)
	}
	defer host.Close()
	if err := asAdmin(target.Set); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f(host)
	if back := asAdmin(host.Set); back != nil {
		return errors.Join(err, fmt.Errorf("come back from network namespace %s: %w", target.Path(), back))
	}
	runtime.UnlockOSThread()
	return err
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
