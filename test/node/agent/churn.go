// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/test/node/wire"
)

// churn makes short connections by nothing but the system calls that they need.
func churn(c wire.Churn) (*wire.Churned, error) {
	to, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return nil, fmt.Errorf("churn: addr %q: %w", c.Addr, err)
	}
	if c.N <= 0 {
		return nil, fmt.Errorf("churn: n is %d, want at least 1", c.N)
	}
	out := &wire.Churned{Errors: map[string]int{}}
	all := make([]time.Duration, 0, c.N)
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for range max(c.Parallel, 1) {
		wg.Go(func() {
			s := &shortLived{to: to, Churn: c, buf: make([]byte, 4096)}
			var took []time.Duration
			wrong := map[string]int{}
			for i := next.Add(1); i <= int64(c.N); i = next.Add(1) {
				began := time.Now()
				if fault := s.connection(i); fault != "" {
					wrong[fault]++
					continue
				}
				took = append(took, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			for fault, n := range wrong {
				out.Errors[fault] += n
			}
		})
	}
	wg.Wait()
	out.Took, out.Done = time.Since(start), len(all)
	if len(all) > 0 {
		slices.Sort(all)
		out.P50, out.P99, out.Max = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	}
	return out, nil
}

// shortLived makes one thread's connections.
type shortLived struct {
	wire.Churn
	to  netip.AddrPort
	buf []byte
}

// connection is the i-th one; it returns what went wrong.
func (s *shortLived) connection(i int64) (fault string) {
	c := &socket{to: s.to, stream: true, v6: s.to.Addr().Is6()}
	family := unix.AF_INET
	if c.v6 {
		family = unix.AF_INET6
	}
	var err error
	if c.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return broken("socket", err)
	}
	defer c.close()
	c.timeout(s.Timeout)
	if err := c.connect(); err != nil {
		return broken("connect", err)
	}
	request := make([]byte, 0, 80)
	request = append(request, "GET /"...)
	request = strconv.AppendInt(request, i, 10)
	path := request[len("GET "):]
	request = append(request, " HTTP/1.1\r\nHost: churn\r\n"...)
	if s.ServerFirst {
		request = append(request, "Connection: close\r\n"...)
	}
	request = append(request, "\r\n"...)
	if err := unix.Send(c.fd, request, unix.MSG_NOSIGNAL); err != nil {
		return broken("send", err)
	}
	n := 0
	for !answered(s.buf[:n], path) {
		if n == len(s.buf) {
			return fmt.Sprintf("a wrong answer: %.100q", s.buf)
		}
		m, err := receive(c.fd, s.buf[n:])
		if err != nil {
			return broken("recv", err)
		}
		if m == 0 {
			return fmt.Sprintf("EOF after %d bytes, %.100q", n, s.buf[:n])
		}
		n += m
	}
	if s.ServerFirst {
		if m, err := receive(c.fd, s.buf); err != nil {
			return broken("recv of the end", err)
		} else if m > 0 {
			return fmt.Sprintf("more than the answer: %.100q", s.buf[:m])
		}
	}
	return ""
}

// answered says whether b is a whole response with that body.
func answered(b, body []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	return end >= 0 && bytes.HasPrefix(b, []byte("HTTP/1.1 200 OK\r\n")) && bytes.Equal(b[end+4:], body)
}

func receive(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

func broken(call string, err error) string {
	if e, ok := err.(unix.Errno); ok {
		return call + " " + unix.ErrnoName(e)
	}
	return call + " " + err.Error()
}
