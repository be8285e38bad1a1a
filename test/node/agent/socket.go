// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"kmesh/test/node/wire"
)

const defaultTimeout = 3 * time.Second

// socket is one client socket, used by blocking system calls.
type socket struct {
	fd          int
	stream      bool
	unconnected bool
	mapped      bool
	v6          bool
	to          netip.AddrPort
}

func (s *socket) close() { unix.Close(s.fd) }

// open does a dial: the socket (nil if a call failed) and what it saw. An error is a request that makes no sense.
func open(d wire.Dial) (*socket, *wire.Result, error) {
	to, err := netip.ParseAddrPort(d.Addr)
	if err != nil {
		return nil, nil, fmt.Errorf("dial: addr %q: %w", d.Addr, err)
	}
	s := &socket{to: to, unconnected: d.Unconnected, v6: to.Addr().Is6()}
	kind, proto := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch d.Network {
	case wire.TCP:
	case wire.TCPMapped:
		s.mapped = true
	case wire.MPTCP:
		proto = unix.IPPROTO_MPTCP
	case wire.UDP:
		kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case wire.UDPMapped:
		kind, proto = unix.SOCK_DGRAM, unix.IPPROTO_UDP
		s.mapped = true
	default:
		return nil, nil, fmt.Errorf("dial: unknown network %q", d.Network)
	}
	s.stream = kind == unix.SOCK_STREAM
	if s.mapped && s.v6 {
		return nil, nil, fmt.Errorf("dial: network %s needs an IPv4 address, got %s", d.Network, to)
	}
	if s.stream && s.unconnected {
		return nil, nil, fmt.Errorf("dial: unconnected is for UDP")
	}
	if d.HandOver && (!s.stream || !d.Silent) {
		return nil, nil, fmt.Errorf("dial: handOver is for TCP, and needs silent")
	}
	family := unix.AF_INET
	if s.v6 || s.mapped {
		family = unix.AF_INET6
	}
	res := &wire.Result{}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fail(res, "socket", err), nil
	}
	s.fd = fd
	if !s.run(d, res) {
		s.close()
		return nil, res, nil
	}
	return s, res, nil
}

// run takes the fresh socket through bind, connect and the first exchange.
func (s *socket) run(d wire.Dial, res *wire.Result) bool {
	s.timeout(d.Timeout)
	if d.Bind != "" {
		at, err := netip.ParseAddrPort(d.Bind)
		if err == nil {
			// Several sockets may share a port of ours, towards different destinations.
			err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		if err == nil {
			err = unix.Bind(s.fd, s.sockaddr(at))
		}
		if err != nil {
			fail(res, "bind", err)
			return false
		}
	}
	if !s.unconnected {
		connect := s.connect
		if d.FastOpen {
			connect = s.fastOpen
		}
		if err := connect(); err != nil {
			fail(res, "connect", err)
			return false
		}
		sa, err := unix.Getpeername(s.fd)
		if err != nil {
			fail(res, "getpeername", err)
			return false
		}
		res.Peer = format(sa)
	}
	ok := true
	switch {
	case d.Silent:
	case s.stream:
		ok = s.hear(res) // the server speaks first
	default:
		ok = s.say(s.to, "hello", res) && s.hear(res)
	}
	if sa, err := unix.Getsockname(s.fd); err == nil {
		res.Local = format(sa)
	}
	return ok
}

// connect waits on when a signal of Go's scheduler interrupts it: the second call joins the attempt that is under way.
func (s *socket) connect() error {
	for {
		err := unix.Connect(s.fd, s.sockaddr(s.to))
		if err == unix.EISCONN {
			return nil
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// fastOpen sends the first line with the SYN, where the kernel has a cookie of the server. The socket does not block meanwhile: who waits can be interrupted,
// and is not told whether the SYN has the line already.
func (s *socket) fastOpen() error {
	hello := []byte("hello\n")
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	sent := unix.Sendto(s.fd, hello, unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, s.sockaddr(s.to))
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return err
	}
	if sent != nil && sent != unix.EINPROGRESS {
		return sent
	}
	if err := s.connect(); err != nil || sent == nil {
		return err
	}
	_, err := unix.Write(s.fd, hello)
	return err
}

// handOver passes the socket to the test's process.
func (s *socket) handOver(handle uint64) error {
	if err := unix.Sendmsg(wire.Handed, binary.BigEndian.AppendUint64(nil, handle), unix.UnixRights(s.fd), nil, 0); err != nil {
		return fmt.Errorf("handing over a socket: %w", err)
	}
	return nil
}

// reconnect connects elsewhere, or nowhere.
func (s *socket) reconnect(c wire.Connect) (*wire.Result, error) {
	res := &wire.Result{}
	var err error
	if c.To == "" {
		// Package unix has no address of family AF_UNSPEC.
		var unspec unix.RawSockaddrAny
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&unspec)), unix.SizeofSockaddrInet4)
		if errno != 0 {
			err = errno
		}
	} else {
		to, perr := netip.ParseAddrPort(c.To)
		if perr != nil {
			return nil, fmt.Errorf("connect: to %q: %w", c.To, perr)
		}
		err = unix.Connect(s.fd, s.sockaddr(to))
	}
	if err != nil {
		fail(res, "connect", err)
	}
	if sa, err := unix.Getpeername(s.fd); err == nil {
		res.Peer = format(sa)
	}
	return res, nil
}

// again makes another exchange.
func (s *socket) again(e wire.Exchange) (*wire.Result, error) {
	res := &wire.Result{}
	to := s.to
	if e.To != "" {
		var err error
		if to, err = netip.ParseAddrPort(e.To); err != nil {
			return nil, fmt.Errorf("exchange: to %q: %w", e.To, err)
		}
		if !s.unconnected {
			return nil, fmt.Errorf("exchange: to is for unconnected UDP sockets")
		}
	}
	s.timeout(e.Timeout)
	if s.say(to, "again", res) {
		s.hear(res)
	}
	if !s.unconnected {
		if sa, err := unix.Getpeername(s.fd); err == nil {
			res.Peer = format(sa)
		} else if res.Errno == "" {
			fail(res, "getpeername", err)
		}
	}
	if sa, err := unix.Getsockname(s.fd); err == nil {
		res.Local = format(sa)
	}
	return res, nil
}

func (s *socket) say(to netip.AddrPort, line string, res *wire.Result) bool {
	var err error
	call := "send"
	if s.unconnected {
		call, err = "sendto", unix.Sendto(s.fd, []byte(line+"\n"), unix.MSG_NOSIGNAL, s.sockaddr(to))
	} else {
		err = unix.Send(s.fd, []byte(line+"\n"), unix.MSG_NOSIGNAL)
	}
	if err != nil {
		fail(res, call, err)
	}
	return err == nil
}

// hear reads one line "NAME WORD": a stream's up to its newline, a datagram whole.
func (s *socket) hear(res *wire.Result) bool {
	var line []byte
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			fail(res, "recv", err)
			return false
		}
		if n == 0 && s.stream {
			res.Call, res.Errno = "recv", "EOF"
			return false
		}
		if s.unconnected {
			res.Peer = format(from)
		}
		line = append(line, buf[:n]...)
		if !s.stream || line[len(line)-1] == '\n' {
			break
		}
	}
	res.Server, res.Seen, _ = strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	return true
}

func (s *socket) timeout(d time.Duration) {
	if d <= 0 {
		d = defaultTimeout
	}
	tv := unix.NsecToTimeval(d.Nanoseconds())
	// connect(2) waits no longer than the send timeout either; it then says EINPROGRESS.
	_ = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	_ = unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (s *socket) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if s.v6 || s.mapped {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// format keeps a v4-mapped address as it is (::ffff:10.0.0.1): the program saw it so.
func format(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return ""
}

func fail(res *wire.Result, call string, err error) *wire.Result {
	res.Call, res.Errno = call, err.Error()
	if e, ok := err.(unix.Errno); ok {
		res.Errno = unix.ErrnoName(e)
	}
	return res
}

func pause(d time.Duration) {
	if d > 0 {
		time.Sleep(d)
	}
}
