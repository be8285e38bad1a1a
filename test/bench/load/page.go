// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// PageSize is the length of a page: many windows long, so that the heads between two pages are no matter.
const PageSize = 16 << 20

var pageHead = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", PageSize)

// pages answers every head of a connection, one at a time, with a page.
func pages(fd int) {
	head := make([]byte, maxHead)
	piece := make([]byte, 128<<10)
	for n := 0; ; n = 0 {
		for !bytes.HasSuffix(head[:n], headEnd) {
			got, err := receive(fd, head[n:])
			if err != nil || got == 0 { // also when head is full
				return
			}
			n += got
		}
		if send(fd, pageHead) != nil {
			return
		}
		for left := PageSize; left > 0; left -= len(piece) {
			if send(fd, piece) != nil {
				return
			}
		}
	}
}

// Get asks for pages over one connection, and counts the bytes of their bodies. A page that has begun is read to its end.
func Get(to netip.AddrPort, d time.Duration) (Result, error) {
	fd, err := dial(to)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	ask := fmt.Appendf(nil, "GET /page HTTP/1.1\r\nHost: %s\r\n\r\n", to)
	buf := make([]byte, 256<<10)
	var count uint64
	begun := time.Now()
	for time.Since(begun) < d {
		if err := send(fd, ask); err != nil {
			return Result{}, err
		}
		n, err := getPage(fd, buf)
		if err != nil {
			return Result{}, err
		}
		count += n
	}
	return Result{Count: count, Seconds: time.Since(begun).Seconds()}, nil
}

// getPage reads one response, which has to be a whole page.
func getPage(fd int, buf []byte) (uint64, error) {
	have, end := 0, -1
	for end < 0 {
		n, err := receive(fd, buf[have:min(len(buf), maxHead)])
		if err == nil && n == 0 {
			err = fmt.Errorf("the response's head: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return 0, err
		}
		have += n
		end = bytes.Index(buf[:have], headEnd)
	}
	length, err := pageLength(buf[:end])
	if err != nil {
		return 0, err
	}
	body := uint64(have - end - len(headEnd))
	for body < length {
		n, err := receive(fd, buf)
		if err == nil && n == 0 {
			err = fmt.Errorf("after %d of %d bytes: %w", body, length, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return 0, err
		}
		body += uint64(n)
	}
	if body != length {
		return 0, fmt.Errorf("%d bytes came, more than the %d of a page", body, length)
	}
	return body, nil
}

func pageLength(head []byte) (uint64, error) {
	status, fields, _ := bytes.Cut(head, []byte("\r\n"))
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("the response is %q, want 200", status)
	}
	for len(fields) > 0 {
		var line []byte
		line, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 63)
			if err == nil && n != PageSize {
				err = fmt.Errorf("%d is not a page's", n)
			}
			if err != nil {
				return 0, fmt.Errorf("content-length: %w", err)
			}
			return n, nil
		}
	}
	return 0, errors.New("the response has no content-length")
}
