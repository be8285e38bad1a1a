// SPDX-License-Identifier: Apache-2.0

package live

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"kmesh/helper/head"
	"kmesh/test/node"
)

// servers are the listeners of one pod; each is of one cluster at a time.
type servers struct {
	pod *node.Pod

	mu    sync.Mutex
	idle  []*server
	count int
	conns map[net.Conn]bool
	dead  []uint16 // ports that refuse
}

// server answers whatever is sent to it, with its name and the sum of the bytes that it got.
type server struct {
	name string
	port uint16
}

func newServers(p *node.Pod) *servers { return &servers{pod: p, conns: map[net.Conn]bool{}} }

// open is the number of connections that servers have.
func (s *servers) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *servers) opened(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
}

func (s *servers) ended(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// take returns n servers that nobody uses.
func (s *servers) take(t testing.TB, n int) ([]*server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) < n {
		e, err := s.start(t)
		if err != nil {
			return nil, err
		}
		s.idle = append(s.idle, e)
	}
	out := s.idle[:n:n]
	s.idle = s.idle[n:]
	return out, nil
}

// give takes servers back that no connection leads to any more.
func (s *servers) give(back []*server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, back...)
}

func (s *servers) start(t testing.TB) (*server, error) {
	s.count++
	e := &server{name: "s" + strconv.Itoa(s.count)}
	var l net.Listener
	err := s.pod.Do(func() (err error) {
		l, err = net.Listen("tcp", ":0") // both families
		return err
	})
	if err != nil {
		return nil, err
	}
	e.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.opened(c)
			go func() {
				defer s.ended(c)
				e.serve(c)
			}()
		}
	}()
	return e, nil
}

// refusing is the port of a socket that is bound and does not listen.
func (s *servers) refusing(t testing.TB) (port uint16, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dead) == 16 { // enough: take the one that was taken first
		s.dead = append(s.dead[1:], s.dead[0])
		return s.dead[0], nil
	}
	err = s.pod.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err == nil {
			port = uint16(sa.(*unix.SockaddrInet6).Port)
		}
		return err
	})
	s.dead = append(s.dead, port)
	return port, err
}

func (s *servers) addr(port uint16, v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(s.pod.IP6, port)
	}
	return netip.AddrPortFrom(s.pod.IP4, port)
}

// sumOf tells apart what was received.
func sumOf(b []byte) string {
	h := fnv.New64a()
	h.Write(b)
	return fmt.Sprintf("%d-%x", len(b), h.Sum64())
}

// stream is a connection with all bytes of the message that is being read.
type stream struct {
	net.Conn
	b []byte
}

func (s *stream) more() error {
	buf := make([]byte, 16<<10)
	n, err := s.Read(buf)
	s.b = append(s.b, buf[:n]...)
	if n > 0 {
		return nil
	}
	return err
}

// until reads until there are n bytes.
func (s *stream) until(n int) error {
	for len(s.b) < n {
		if err := s.more(); err != nil {
			return err
		}
	}
	return nil
}

// serve answers the requests of a connection. What is not a request is read to the end of the stream first.
func (e *server) serve(c net.Conn) {
	s := &stream{Conn: c}
	for {
		r, out := head.ParseRequest(s.b)
		switch out.Kind {
		case head.Incomplete:
			if err := s.more(); err != nil {
				if len(s.b) > 0 && errors.Is(err, io.EOF) {
					fmt.Fprintf(c, "%s incomplete %s %s\n", notHTTP, e.name, sumOf(s.b))
				}
				return
			}
			continue
		case head.Reject: // nobody should see it here: say so at once
			fmt.Fprintf(c, "%s %q %s %s\n", notHTTP, out.String(), e.name, sumOf(s.b))
			return
		case head.Pin:
			for {
				if err := s.more(); err != nil {
					break
				}
			}
			fmt.Fprintf(c, "%s pin %s %s\n", notHTTP, e.name, sumOf(s.b))
			return
		}
		n, err := s.request(&r)
		if err != nil {
			return
		}
		got := s.b[:n]
		s.b = s.b[n:]
		last := !r.KeepAlive || r.ContentLength > longest
		if r.Expect100 && r.Proto == "HTTP/1.1" {
			if _, err := io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
				return
			}
		}
		if _, err := c.Write(response(e.name, &r, sumOf(got), last)); err != nil || last {
			return
		}
	}
}

// notHTTP begins what a server says of a stream that holds no request.
const notHTTP = "NOT-HTTP"

// A body that is announced to be longer than longest is not sent to its end, but cut off.
const (
	longest = 100_000
	cutOff  = 300
)

// request reads the body behind the head, and returns the length of both.
func (s *stream) request(r *head.Request) (int, error) {
	n := r.HeadLen
	if !r.Chunked {
		switch {
		case r.ContentLength > longest:
			n += cutOff
		case r.ContentLength > 0:
			n += int(r.ContentLength)
		}
		return n, s.until(n)
	}
	for {
		size, line, out := head.ParseChunkLine(s.b[n:])
		if out.Kind == head.Incomplete {
			if err := s.more(); err != nil {
				return 0, err
			}
			continue
		}
		if out.Kind != head.Route {
			return 0, errors.New("no chunk: " + out.String())
		}
		n += line
		if size == 0 {
			break
		}
		n += int(size) + 2
		if err := s.until(n); err != nil {
			return 0, err
		}
	}
	for { // the trailer, to its empty line
		i := bytes.Index(s.b[n:], []byte("\r\n"))
		if i < 0 {
			if err := s.more(); err != nil {
				return 0, err
			}
			continue
		}
		if n += i + 2; i == 0 {
			return n, nil
		}
	}
}

// reply is how a server answers, which follows from what it got.
type reply struct {
	status  int
	chunked bool
	body    string
}

func replyTo(method, proto, sum string) reply {
	h := fnv.New32a()
	io.WriteString(h, sum)
	n := h.Sum32()
	r := reply{status: []int{200, 200, 200, 201, 404, 500, 204, 304}[n%8]}
	r.chunked = n>>3&3 == 0 && proto == "HTTP/1.1"
	r.body = strings.Repeat(sum+" ", []int{0, 1, 1, 3, 200, 1}[n>>5%6])
	if r.status == 204 || r.status == 304 {
		r.chunked, r.body = false, ""
	}
	return r
}

// response is the answer's bytes.
func response(name string, q *head.Request, sum string, last bool) []byte {
	r := replyTo(q.Method, q.Proto, sum)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d Some Text\r\nX-Server: %s\r\nX-Got: %s\r\n", r.status, name, sum)
	switch {
	case last:
		b.WriteString("Connection: close\r\n")
	case q.Proto == "HTTP/1.0":
		b.WriteString("Connection: keep-alive\r\n")
	}
	switch {
	case r.chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
	case r.status == 204 || r.status == 304:
		b.WriteString("\r\n")
	default:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(r.body))
	}
	if q.Method == "HEAD" {
		return b.Bytes()
	}
	if !r.chunked {
		b.WriteString(r.body)
		return b.Bytes()
	}
	for rest := r.body; rest != ""; {
		n := min(len(rest), 700)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n\r\n")
	return b.Bytes()
}
