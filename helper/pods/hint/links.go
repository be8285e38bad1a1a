// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen opens a socket that hears of links, qdiscs and filters in all network namespaces
// that have an id in ours. It takes CAP_NET_BROADCAST.
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("give CAP_NET_BROADCAST: %w", err)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_TC-1)})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// readLinks reads until the socket is closed.
func (w *Watcher) readLinks() {
	conn, err := w.links.SyscallConn()
	if err != nil {
		return
	}
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		var n, oobn int
		var recvErr error
		err := conn.Read(func(fd uintptr) bool {
			n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(recvErr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return // closed
		case errors.Is(recvErr, unix.EINTR):
		case recvErr != nil:
			// The queue was full: something was missed, in whatever namespace.
			w.mu.Lock()
			for _, cookie := range w.cookies {
				w.give(Hint{Netns: cookie})
			}
			w.mu.Unlock()
		default:
			w.heard(buf[:n], oob[:oobn])
		}
	}
}

// heard gives a hint for a message that tells of a removal in a pod.
func (w *Watcher) heard(messages, control []byte) {
	if !removes(messages) {
		return
	}
	id, ok := nsid(control)
	if !ok {
		return // of our own namespace: the node's
	}
	w.mu.Lock()
	cookie, ok := w.cookies[id]
	w.mu.Unlock()
	if ok {
		w.give(Hint{Netns: cookie})
	}
}

// removes says whether one of the messages tells that a link, qdisc or filter was removed.
// A link that is made may be one that comes back.
func removes(messages []byte) bool {
	all, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return false
	}
	for _, m := range all {
		switch m.Header.Type {
		case unix.RTM_DELLINK, unix.RTM_DELQDISC, unix.RTM_DELTFILTER, unix.RTM_NEWLINK:
			return true
		}
	}
	return false
}

// nsid is the id of the namespace that a message is from; false: it is ours.
func nsid(control []byte) (int32, bool) {
	all, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, false
	}
	for _, m := range all {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			id := int32(binary.NativeEndian.Uint32(m.Data))
			return id, id >= 0
		}
	}
	return 0, false
}
