// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/test/node/wire"
)

// patience is how long a step of a connection may take.
const patience = 10 * time.Second

// conn is a client's connection, scripted step by step. A step that fails ends the test.
type conn struct {
	s *scene
	*net.TCPConn
	r *bufio.Reader
}

// reply is a response that was read to its end.
type reply struct {
	*http.Response
	body []byte
}

func (r *reply) server() string { return r.Header.Get("X-Server") }

// how says how to connect; the zero value: from the first client, any port.
type how struct {
	client   int
	bind     uint16 // the port
	timeout  time.Duration
	network  string // default wire.TCP
	fastOpen bool   // the line "hello" goes with the SYN
}

func tcpTo(to netip.AddrPort) wire.Dial {
	return wire.Dial{Network: wire.TCP, Addr: to.String(), Timeout: patience}
}

// try connects, or tells the error of the system call that failed.
func (s *scene) try(to netip.AddrPort, h how) (*conn, string) {
	s.Helper()
	if h.timeout == 0 {
		h.timeout = patience
	}
	d := tcpTo(to)
	d.Timeout, d.FastOpen = h.timeout, h.fastOpen
	if h.network != "" {
		d.Network = h.network
	}
	p := s.clients[h.client]
	if h.bind != 0 {
		d.Bind = netip.AddrPortFrom(addrOf(p, s.v6), h.bind).String()
	}
	c, res, err := p.Conn(s.ctx, d)
	if err != nil {
		s.Fatal(err)
	}
	if c == nil {
		return nil, res.Errno
	}
	want := to.String()
	if h.network == wire.TCPMapped {
		want = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port()).String()
	}
	if res.Peer != want && h.network != wire.MPTCP { // for which the kernel runs no hook
		s.Errorf("getpeername says %s, want %s", res.Peer, want)
	}
	s.Cleanup(func() { c.Close() })
	return &conn{s, c, bufio.NewReader(c)}, ""
}

// dial connects.
func (s *scene) dial(to netip.AddrPort) *conn {
	s.Helper()
	return s.dialAs(to, how{})
}

func (s *scene) dialAs(to netip.AddrPort, h how) *conn {
	s.Helper()
	c, errno := s.try(to, h)
	if c == nil {
		s.Fatalf("connect to %s: %s", to, errno)
	}
	return c
}

// write makes one write(2) of each part, and thereby a segment.
func (c *conn) write(parts ...string) {
	c.s.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	for _, p := range parts {
		if _, err := io.WriteString(c.TCPConn, p); err != nil {
			c.s.Fatalf("write: %v", err)
		}
	}
}

// read reads the response to a request with this method, interim ones too.
func (c *conn) read(method string) *reply {
	c.s.Helper()
	r, err := c.tryRead(method)
	if err != nil {
		c.s.Fatalf("reading the response to %s: %v", method, err)
	}
	return r
}

func (c *conn) tryRead(method string) (*reply, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return readReply(c.r, method)
}

func readReply(r *bufio.Reader, method string) (*reply, error) {
	for {
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			if res.StatusCode == http.StatusSwitchingProtocols || method == http.MethodConnect && res.StatusCode == http.StatusOK {
				return &reply{Response: res}, nil // a tunnel follows
			}
			body, err := io.ReadAll(res.Body)
			return &reply{res, body}, err
		}
	}
}

// expect reads exactly these bytes.
func (c *conn) expect(want string) {
	c.s.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		c.s.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

// expectEnd reads the peer's FIN, with nothing before it.
func (c *conn) expectEnd() {
	c.s.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if b, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
		c.s.Fatalf("read %q (%v), want the end", b, err)
	}
}

// expectBroken reads the peer's RST, with nothing before it.
func (c *conn) expectBroken() {
	c.s.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if b, err := c.r.ReadByte(); !errors.Is(err, unix.ECONNRESET) {
		c.s.Fatalf("read %q (%v), want ECONNRESET", b, err)
	}
}

// expectQuiet fails if anything comes in the time.
func (c *conn) expectQuiet(d time.Duration) {
	c.s.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	b, err := c.r.ReadByte()
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		c.s.Fatalf("read %q (%v), want nothing yet", b, err)
	}
}

// reset ends the connection with a RST.
func (c *conn) reset() {
	_ = c.SetLinger(0)
	c.Close()
}

// request is one request, to be written and verified.
type request struct {
	method, path string
	version      string // default HTTP/1.1
	host         string // default the-host
	header       []string
	body         string
	chunks       []int // chunked, in pieces of these lengths; the rest in one
	do           do
}

// String is the request's bytes.
func (q request) String() string { return q.head() + q.payload() }

func (q request) head() string {
	var b strings.Builder
	version, host, method := q.version, q.host, q.method
	if version == "" {
		version = "HTTP/1.1"
	}
	if host == "" {
		host = "the-host"
	}
	if method == "" {
		method = http.MethodGet
	}
	fmt.Fprintf(&b, "%s %s %s\r\nHost: %s\r\n", method, q.path, version, host)
	if q.do != (do{}) {
		fmt.Fprintf(&b, "X-Do: %s\r\n", q.do)
	}
	for _, h := range q.header {
		b.WriteString(h + "\r\n")
	}
	switch {
	case q.chunks != nil:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	case q.body != "":
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(q.body))
	}
	b.WriteString("\r\n")
	return b.String()
}

func (q request) payload() string {
	if q.chunks == nil {
		return q.body
	}
	var b strings.Builder
	rest := q.body
	for i := 0; rest != ""; i++ {
		n := len(rest)
		if i < len(q.chunks) {
			n = min(n, q.chunks[i])
		}
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n\r\n")
	return b.String()
}

// faults says what is wrong with a server's reply to the request. want are the servers that may have answered; none:
// a local answer is expected, and nothing but the status is looked at.
func (q request) faults(r *reply, want ...string) error {
	status := max(q.do.Status, http.StatusOK)
	if r.StatusCode != status {
		return fmt.Errorf("%s: status %d of %q, want %d", q.path, r.StatusCode, r.server(), status)
	}
	if !slices.Contains(want, r.server()) {
		return fmt.Errorf("%s: %q answered, want %v", q.path, r.server(), want)
	}
	method := q.method
	if method == "" {
		method = http.MethodGet
	}
	if m, p := r.Header.Get("X-Method"), r.Header.Get("X-Path"); m != method || p != q.path {
		return fmt.Errorf("%s %s: the server saw %s %s", method, q.path, m, p)
	}
	n, sum, _ := digest(strings.NewReader(q.body), 0)
	if l, s := r.Header.Get("X-Body-Len"), r.Header.Get("X-Body-Sum"); l != fmt.Sprint(n) || s != sum {
		return fmt.Errorf("%s: the server saw a body of %s bytes with sum %s, want %d and %s", q.path, l, s, n, sum)
	}
	size := q.do.Size
	if method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified {
		size = 0
	}
	if len(r.body) != size {
		return fmt.Errorf("%s: a body of %d bytes, want %d", q.path, len(r.body), size)
	}
	wantBody := make([]byte, size)
	_, _ = io.ReadFull(bytesOf(q.do.Seed), wantBody)
	if !bytes.Equal(r.body, wantBody) {
		return fmt.Errorf("%s: a body of %d wrong bytes", q.path, size)
	}
	return nil
}

// check reads the reply to a request, and verifies it.
func (c *conn) check(q request, want *server) *reply {
	c.s.Helper()
	r := c.read(q.method)
	if c.s.mode == direct {
		want = &server{name: r.server()} // there is only one to ask
	}
	if err := q.faults(r, want.name); err != nil {
		c.s.Fatal(err)
	}
	return r
}

// ask makes a request in one write, and verifies what the server answers.
func (c *conn) ask(q request, want *server) *reply {
	c.s.Helper()
	c.write(q.String())
	return c.check(q, want)
}

// get is a GET.
func (c *conn) get(path string, want *server) *reply {
	c.s.Helper()
	return c.ask(request{path: path}, want)
}

// refused makes a request that the program answers.
func (c *conn) refused(q string, status int) *reply {
	c.s.Helper()
	c.write(q)
	method, _, _ := strings.Cut(q, " ")
	r := c.read(method)
	if r.StatusCode != status || r.server() != "" {
		c.s.Fatalf("%.60q: status %d of %q, want %d of the program's own", q, r.StatusCode, r.server(), status)
	}
	return r
}

// body is n random bytes.
func body(n int, seed uint64) string {
	b := make([]byte, n)
	_, _ = io.ReadFull(bytesOf(seed), b)
	return string(b)
}
