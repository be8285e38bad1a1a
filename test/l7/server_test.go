// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

// do is what a client asks of an HTTP server, in the header X-Do.
type do struct {
	Status     int           `json:"status,omitempty"` // default 200
	Size       int           `json:"size,omitempty"`   // of the body
	Seed       uint64        `json:"seed,omitempty"`   // of its bytes
	Chunked    bool          `json:"chunked,omitempty"`
	Delay      time.Duration `json:"delay,omitempty"` // before the response
	Close      bool          `json:"close,omitempty"` // Connection: close
	UntilClose bool          `json:"untilClose,omitempty"`
	Hints      int           `json:"hints,omitempty"`   // so many 103 first
	Upgrade    bool          `json:"upgrade,omitempty"` // 101, then echo
	Slow       time.Duration `json:"slow,omitempty"`    // between reads of 16 KiB of the request's body
	Break      bool          `json:"break,omitempty"`   // RST after half of the body
	Raw        string        `json:"raw,omitempty"`     // these bytes, then the end
}

func (d do) String() string {
	b, _ := json.Marshal(d) // of plain fields
	return string(b)
}

// server listens in a pod, on both families.
type server struct {
	name string
	pod  *node.Pod
	port uint16

	mu       sync.Mutex
	accepts  int
	requests int
	conns    map[net.Conn]http.ConnState
}

func (e *server) addr(v6 bool) netip.AddrPort { return netip.AddrPortFrom(addrOf(e.pod, v6), e.port) }

// open is the number of connections that the server has.
func (e *server) open() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

func (e *server) accepted() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.accepts
}

func (e *server) served() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.requests
}

// closeIdle ends the connections on which no request runs, with a FIN or a RST, and says how many it were.
func (e *server) closeIdle(reset bool) int {
	var idle []net.Conn
	e.mu.Lock()
	for c, state := range e.conns {
		if state == http.StateIdle {
			idle = append(idle, c)
		}
	}
	e.mu.Unlock()
	for _, c := range idle {
		if reset {
			_ = c.(*counted).SetLinger(0)
		}
		c.Close()
	}
	return len(idle)
}

// counted tells the server when a connection ends.
type counted struct {
	*net.TCPConn
	e *server
}

func (c *counted) Close() error {
	c.e.mu.Lock()
	delete(c.e.conns, c)
	c.e.mu.Unlock()
	return c.TCPConn.Close()
}

type counting struct {
	net.Listener
	e *server
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &counted{TCPConn: c.(*net.TCPConn), e: l.e}
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	l.e.accepts++
	l.e.conns[conn] = http.StateNew
	return conn, nil
}

// serverPorts are the ports of all servers of this process.
var serverPorts sync.Map

// listen starts a server in a pod; serve runs until the listener is closed.
func (s *scene) listen(p *node.Pod, serve func(e *server, l net.Listener)) *server {
	s.Helper()
	e := &server{name: p.Name, pod: p, conns: map[net.Conn]http.ConnState{}}
	var l net.Listener
	// A port that no other pod's server has: rules of the gate know packets by it.
	err := p.Do(func() (err error) {
		for l == nil && err == nil {
			if l, err = net.Listen("tcp", ":0"); err != nil {
				return err
			}
			if _, taken := serverPorts.LoadOrStore(l.Addr().(*net.TCPAddr).Port, true); taken {
				err = l.Close()
				l = nil
			}
		}
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	e.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	s.ports = append(s.ports, e.port)
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(e, &counting{l, e})
	}()
	s.Cleanup(func() {
		l.Close()
		<-done
		serverPorts.Delete(int(e.port))
		e.mu.Lock()
		var rest []net.Conn
		for c := range e.conns {
			rest = append(rest, c)
		}
		e.mu.Unlock()
		for _, c := range rest {
			c.Close()
		}
	})
	return e
}

// http starts an HTTP server in the i-th server pod.
func (s *scene) http(i int) *server {
	s.Helper()
	return s.httpIn(s.pods[i])
}

func (s *scene) httpIn(p *node.Pod) *server {
	s.Helper()
	return s.listen(p, func(e *server, l net.Listener) {
		srv := &http.Server{
			Handler: e, ErrorLog: log.New(io.Discard, "", 0), MaxHeaderBytes: 64 << 10,
			ConnState: func(c net.Conn, state http.ConnState) {
				e.mu.Lock()
				defer e.mu.Unlock()
				if _, ok := e.conns[c]; ok {
					e.conns[c] = state
				}
			},
		}
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		_ = srv.Serve(l)
	})
}

// https starts n of them, in the first server pods.
func (s *scene) https(n int) []*server {
	s.Helper()
	var all []*server
	for i := range n {
		all = append(all, s.http(i))
	}
	return all
}

// raw starts a server whose connections talk does; they end when it returns.
func (s *scene) raw(i int, talk func(c *net.TCPConn, e *server)) *server {
	s.Helper()
	return s.listen(s.pods[i], func(e *server, l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				talk(c.(*counted).TCPConn, e)
			}()
		}
	})
}

// echo answers with the server's name, then with what it gets.
func echo(c *net.TCPConn, e *server) {
	b := make([]byte, 64<<10)
	for first := true; ; first = false {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if first {
			if _, err := io.WriteString(c, e.name+":"); err != nil {
				return
			}
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// refusing is an address at which nobody listens, and nobody will.
func (s *scene) refusing(i int) *server {
	s.Helper()
	e := &server{name: "refusing", pod: s.pods[i]}
	err := e.pod.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet6{}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err == nil {
			e.port = uint16(sa.(*unix.SockaddrInet6).Port)
		}
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.ports = append(s.ports, e.port)
	return e
}

// ServeHTTP does what X-Do says, and tells in headers what it saw.
func (e *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	e.requests++
	e.mu.Unlock()
	var d do
	if x := r.Header.Get("X-Do"); x != "" {
		if err := json.Unmarshal([]byte(x), &d); err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
			return
		}
	}
	h := w.Header()
	h.Set("X-Server", e.name)
	h.Set("X-Method", r.Method)
	h.Set("X-Host", r.Host)
	h.Set("X-Path", r.RequestURI)
	h.Set("X-Peer", r.RemoteAddr)
	if d.Upgrade || r.Method == http.MethodConnect {
		e.tunnel(w, r)
		return
	}
	for range d.Hints {
		w.WriteHeader(http.StatusEarlyHints)
	}
	n, sum, err := digest(r.Body, d.Slow)
	if err != nil {
		return
	}
	h.Set("X-Body-Len", strconv.Itoa(n))
	h.Set("X-Body-Sum", sum)
	time.Sleep(d.Delay)
	if d.Raw != "" || d.UntilClose {
		e.raw(w, d)
		return
	}
	if d.Close {
		h.Set("Connection", "close")
	}
	if !d.Chunked && d.Status != http.StatusNoContent && d.Status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(d.Size))
	}
	h.Set("Content-Type", "application/octet-stream")
	w.WriteHeader(max(d.Status, http.StatusOK))
	if d.Size == 0 {
		return
	}
	if d.Chunked {
		_ = http.NewResponseController(w).Flush()
	}
	if d.Break {
		_, _ = io.CopyN(w, bytesOf(d.Seed), int64(d.Size/2))
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.(*counted).SetLinger(0)
			c.Close()
		}
		return
	}
	_, _ = io.CopyN(w, bytesOf(d.Seed), int64(d.Size))
}

// raw takes the connection over, writes, and ends it.
func (e *server) raw(w http.ResponseWriter, d do) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	if d.Raw != "" {
		_, _ = io.WriteString(c, d.Raw)
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Server: %s\r\n\r\n", e.name)
	_, _ = io.CopyN(c, bytesOf(d.Seed), int64(d.Size))
}

// tunnel takes the connection over and echoes.
func (e *server) tunnel(w http.ResponseWriter, r *http.Request) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	first := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n"
	if r.Method == http.MethodConnect {
		first = "HTTP/1.1 200 OK\r\n"
	}
	if _, err := fmt.Fprintf(c, "%sX-Server: %s\r\n\r\n", first, e.name); err != nil {
		return
	}
	_, _ = io.Copy(c, struct{ io.Reader }{bufio.NewReader(rw)})
}

// pool is what all bodies are made of. Its length has no common factor with any size of a segment or buffer.
var pool = func() string {
	b := make([]byte, 4_194_301)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return string(b)
}()

// stream is an endless stream of bytes.
type stream int

// bytesOf is the stream of a seed.
func bytesOf(seed uint64) io.Reader {
	s := stream(seed * 7919 % uint64(len(pool)))
	return &s
}

func (s *stream) Read(b []byte) (int, error) {
	n := copy(b, pool[*s:])
	*s = (*s + stream(n)) % stream(len(pool))
	return n, nil
}

// digest reads to the end.
func digest(r io.Reader, pause time.Duration) (n int, sum string, err error) {
	hash := sha256.New()
	b := make([]byte, 16<<10)
	for {
		m, err := r.Read(b)
		n += m
		hash.Write(b[:m])
		if err == io.EOF {
			return n, hex.EncodeToString(hash.Sum(nil)[:8]), nil
		}
		if err != nil {
			return n, "", err
		}
		time.Sleep(pause)
	}
}
