// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeNetns makes a network namespace that the file at path keeps alive.
func (n *Node) makeNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	f.Close()
	done := make(chan error, 1)
	go func() { done <- newNetns(path) }()
	if err := <-done; err != nil {
		return fmt.Errorf("making network namespace %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("making network namespace %s: %w", path, err)
	}
	cookie, err := cookieOf(path)
	if err != nil {
		return fmt.Errorf("making network namespace %s: %w", path, err)
	}
	n.seen.netns(nsID{st.Dev, st.Ino}, space{filepath.Base(path), cookie})
	return inNetns(path, loopbackUp)
}

// cookieOf is the number that a network namespace alone has, and no other before or after it.
func cookieOf(path string) (cookie uint64, err error) {
	err = inNetns(path, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie, err
}

// newNetns takes its thread to a new namespace, mounts that on path, and comes back. Coming back matters: the process's
// first thread cannot end and would hold the namespace for ever.
func newNetns(path string) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
		err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // still locked: nothing else runs on this thread
	}
	runtime.UnlockOSThread()
	return err
}

func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing network namespace: %w", err)
	}
	return nil
}

// inNetns runs f on a thread in the namespace. A process that f starts begins there too, since a fork takes its
// thread's namespaces.
func inNetns(path string, f func() error) error {
	var ferr error
	err := ns.WithNetNSPath(path, func(ns.NetNS) error {
		ferr = f()
		return nil
	})
	if ferr != nil {
		return ferr // as it is, for the caller's errors.Is
	}
	return err
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// setUpNode makes the node's namespace behave as a node: addresses usable at once, and an answer for what it has no
// route to, so that a program that nobody governs learns soon that there is nothing at a service's address.
func setUpNode() error {
	for _, s := range []struct{ path, value string }{
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv4/ip_forward", "1"},
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv4/icmp_ratelimit", "0"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// strayLinks are the links of the node's namespace that should not outlive its pods.
func (n *Node) strayLinks() ([]string, error) {
	var stray []string
	err := n.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != bridgeName && l.Type() == "veth" {
				stray = append(stray, name)
			}
		}
		return err
	})
	return stray, err
}

// mountsBelow lists the mount points at or below dir, the deepest first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 5 {
			continue
		}
		if p := unescapeMount(fields[4]); p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, p)
		}
	}
	slices.Reverse(points)
	return points, sc.Err()
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescapeMount(s string) string { return mountEscapes.Replace(s) }
