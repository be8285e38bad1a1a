// SPDX-License-Identifier: Apache-2.0

package load

import (
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// Serve runs all servers at an address, until the process ends.
func Serve(at netip.Addr) error {
	errs := make(chan error)
	start := func(serve func(listeners ...int) error, ports ...uint16) error {
		var listeners []int
		for _, port := range ports {
			l, err := listen(netip.AddrPortFrom(at, port))
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
		}
		go func() {
			runtime.LockOSThread()
			errs <- serve(listeners...)
		}()
		return nil
	}
	for _, err := range []error{
		start(serveHTTP, append([]uint16{HTTPPort, SwitchPort}, SwitchPorts[:]...)...),
		start(one(each(echo)), EchoPort),
		start(one(each(sink)), SinkPort),
		start(one(each(pages)), PagePort),
	} {
		if err != nil {
			return err
		}
	}
	return <-errs
}

// one makes a server of one listener look like one of many.
func one(serve func(int) error) func(...int) error {
	return func(listeners ...int) error { return serve(listeners[0]) }
}

// each serves every connection on a thread of its own, with blocking calls.
func each(talk func(fd int)) func(int) error {
	return func(l int) error {
		for {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			switch err {
			case nil:
				go func() {
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					defer unix.Close(fd)
					talk(fd)
				}()
			case unix.EINTR, unix.EAGAIN, unix.ECONNABORTED:
			default:
				return err
			}
		}
	}
}

func echo(fd int) {
	if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) != nil {
		return
	}
	b := make([]byte, 64)
	for {
		n, err := receive(fd, b)
		if err != nil || n == 0 || send(fd, b[:n]) != nil {
			return
		}
	}
}

func sink(fd int) {
	b := make([]byte, 256<<10)
	var total uint64
	for {
		n, err := receive(fd, b)
		if err != nil {
			return
		}
		if n == 0 {
			_ = sendCount(fd, total) // the client counts what it gets, and misses it
			return
		}
		total += uint64(n)
	}
}
