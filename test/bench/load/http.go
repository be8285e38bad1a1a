// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxHead is the longest head that the server reads; a longer one ends its connection.
const maxHead = 4096

var (
	body     = strings.Repeat("kmesh ", 16) + "\n"
	kept     = response("keep-alive")
	last     = response("close")
	headEnd  = []byte("\r\n\r\n")
	closeAsk = []byte("connection: close")
)

func response(connection string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s", len(body), connection, body)
}

// httpConn is a connection's bytes that are not a whole head yet.
type httpConn struct {
	n   int
	buf [maxHead]byte
}

// serveHTTP answers requests without a body, all connections on one thread by epoll: what it costs is little beside
// the kernel's work, and does not hide it. It closes first when asked to, in the packet of its response: the port
// that waits out a connection is then the server's, and clients do not run out of theirs.
func serveHTTP(listeners ...int) error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	for _, l := range listeners {
		if err := unix.SetNonblock(l, true); err != nil {
			return err
		}
		if err := watch(ep, l); err != nil {
			return err
		}
	}
	conns := map[int]*httpConn{}
	var spare []*httpConn
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := wait(ep, events)
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			fd := int(e.Fd)
			if slices.Contains(listeners, fd) {
				if err := accept(ep, fd, conns, &spare); err != nil {
					return err
				}
				continue
			}
			if c := conns[fd]; !c.serve(fd) {
				unix.Close(fd) // which also takes it out of ep
				delete(conns, fd)
				spare = append(spare, c)
			}
		}
	}
}

func watch(ep, fd int) error {
	return unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

func accept(ep, l int, conns map[int]*httpConn, spare *[]*httpConn) error {
	for {
		fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch err {
		case nil:
		case unix.EAGAIN:
			return nil
		case unix.EINTR, unix.ECONNABORTED:
			continue
		default:
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			unix.Close(fd)
			continue
		}
		c := new(httpConn)
		if i := len(*spare) - 1; i >= 0 {
			c, *spare = (*spare)[i], (*spare)[:i]
			c.n = 0
		}
		if err := watch(ep, fd); err != nil {
			return err
		}
		conns[fd] = c
	}
}

// serve reads once and answers every whole head. False: the connection is over.
func (c *httpConn) serve(fd int) bool {
	n, err := unix.Read(fd, c.buf[c.n:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	c.n += n
	heads := c.buf[:c.n]
	for {
		end := bytes.Index(heads, headEnd)
		if end < 0 {
			c.n = copy(c.buf[:], heads)
			return c.n < maxHead
		}
		head := heads[:end]
		heads = heads[end+len(headEnd):]
		if asksClose(head) {
			// With more to come, says the flag; what comes is the close.
			_ = unix.Send(fd, last, unix.MSG_MORE|unix.MSG_NOSIGNAL)
			return false
		}
		// Small beside the socket's buffer: what does not fit is a client that does not read.
		if unix.Send(fd, kept, unix.MSG_NOSIGNAL) != nil {
			return false
		}
	}
}

// asksClose: Connection: close, in any case.
func asksClose(head []byte) bool {
	for {
		_, rest, more := bytes.Cut(head, []byte("\r\n"))
		if !more {
			return false
		}
		if len(rest) >= len(closeAsk) && bytes.EqualFold(rest[:len(closeAsk)], closeAsk) {
			return true
		}
		head = rest
	}
}
