// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls, without what package net puts around them. Go's scheduler sends signals: EINTR is tried again.

// limit ends what hangs: a benchmark that waits for ever leaves no message.
var limit = unix.Timeval{Sec: 10}

func dial(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit) },
		func() error { return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit) },
		func() error { return connect(fd, sockaddr(to)) },
	} {
		if err := set(); err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("connecting to %s: %w", to, err)
		}
	}
	return fd, nil
}

// connect goes on when a signal interrupts it: the second call joins the attempt that is under way.
func connect(fd int, to unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, to)
		if err == unix.EISCONN {
			return nil
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func listen(at netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err == nil {
		// Of accept: a connection that does not come is an error, not a wait.
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("listening at %s: %w", at, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// The calls that the work is made of go round Go's scheduler (unix.RawSyscall): told of a system call, it takes the
// processor away after 20 us and its monitor wakes all the time to do so, which costs more than the call. The thread
// keeps its place instead, so there must be more of those than threads that wait (alone).

// alone makes the process ready for such calls: places enough, and no garbage collection, which would wait for them.
func alone() {
	runtime.GOMAXPROCS(64)
	debug.SetGCPercent(-1)
}

func send(fd int, b []byte) error {
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			b = b[n:]
		case unix.EINTR:
		default:
			return fmt.Errorf("write: %w", errno)
		}
	}
	return nil
}

func receive(fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("read: %w", errno)
		}
	}
}

// wait is epoll_wait without a limit.
func wait(ep int, events []unix.EpollEvent) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), ^uintptr(0), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("epoll_wait: %w", errno)
		}
	}
}

// What the sink says at the end.
func sendCount(fd int, n uint64) error { return send(fd, binary.BigEndian.AppendUint64(nil, n)) }

func receiveCount(fd int) (uint64, error) {
	b := make([]byte, 8)
	for got := 0; got < len(b); {
		n, err := receive(fd, b[got:])
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		got += n
	}
	return binary.BigEndian.Uint64(b), nil
}
