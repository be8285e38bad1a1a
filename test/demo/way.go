// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"kmesh/test/node"
)

// socket is an established TCP socket.
type socket struct{ local, remote netip.AddrPort }

// sockets are those of a pod that are established, IPv4 ones, as the kernel lists them.
func sockets(p *node.Pod) (all []socket, err error) {
	var text []byte
	if err := p.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}); err != nil {
		return nil, err
	}
	const established = "01"
	for _, line := range strings.Split(string(text), "\n")[1:] {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != established {
			continue
		}
		local, err := procAddr(f[1])
		if err != nil {
			return nil, err
		}
		remote, err := procAddr(f[2])
		if err != nil {
			return nil, err
		}
		all = append(all, socket{local, remote})
	}
	return all, nil
}

// procAddr reads an address as /proc/net/tcp writes it: the 4 bytes in memory as one number, and the port.
func procAddr(text string) (netip.AddrPort, error) {
	addr, port, _ := strings.Cut(text, ":")
	a, err := strconv.ParseUint(addr, 16, 32)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("/proc/net/tcp: %w", err)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("/proc/net/tcp: %w", err)
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(a))
	return netip.AddrPortFrom(netip.AddrFrom4(b), uint16(p)), nil
}

// onTheWay counts the sockets of all pods that a pod's requests to the HTTP servers pass, the pod's own to begin with.
func (s *story) onTheWay(from *node.Pod, to netip.AddrPort) (n int, err error) {
	for _, p := range s.n.Pods() {
		all, err := sockets(p)
		if err != nil {
			return 0, err
		}
		for _, o := range all {
			if p == from && o.remote == to || p != from && o.local.Port() == httpPort && o.remote.Addr() == from.IP4 {
				n++
			}
		}
	}
	return n, nil
}

// way makes a connection with a few requests to one version, and counts the sockets that they pass.
func (s *story) way(ctx context.Context, from *node.Pod, to netip.AddrPort) (n int, peer netip.Addr, err error) {
	// What earlier connections leave behind goes away first.
	if err := until(ctx, "waiting for the end of earlier connections", func() (bool, error) {
		n, err := s.onTheWay(from, to)
		return n == 0, err
	}); err != nil {
		return 0, peer, err
	}
	c, err := connect(ctx, from, to)
	if err != nil {
		return 0, peer, err
	}
	defer c.Close()
	for range 10 {
		r, err := c.get(request{shopHost, "/cart", ""})
		if err != nil {
			return 0, peer, err
		}
		at, err := netip.ParseAddrPort(r.Header.Get(headerPeer))
		if err != nil {
			return 0, peer, fmt.Errorf("the server's word on its peer: %w", err)
		}
		peer = at.Addr()
	}
	n, err = s.onTheWay(from, to)
	return n, peer, err
}

// theWay compares the way of a request with the direct one, and with the one through a proxy in each pod.
func (s *story) theWay(ctx context.Context) error {
	s.title("The way of a request from client to cart")
	s.web.Close()
	direct, _, err := s.way(ctx, s.plain, s.cart.at())
	if err != nil {
		return err
	}
	kmesh, peer, err := s.way(ctx, s.client, shopVIP)
	if err != nil {
		return err
	}
	// A TCP connection is two sockets, and at each a program and the kernel copy the request once.
	const sidecars = 6
	const near, far = "client ──────────────────── server", "client ── proxy ── proxy ── server"
	rows := [][]string{{"", "", "TCP CONNECTIONS", "COPIES", "HOW WE KNOW"}}
	for _, w := range []struct {
		name, way string
		sockets   int
		known     string
	}{
		{"direct", near, direct, "measured, from the pod plain: the sockets in /proc/net/tcp of all pods"},
		{"Kmesh", near, kmesh, "measured, the same way"},
		{"sidecars", far, sidecars, "not run here: each of two proxies receives and sends (make bench runs them)"},
	} {
		rows = append(rows, []string{w.name, w.way, strconv.Itoa(w.sockets / 2), strconv.Itoa(w.sockets), w.known})
	}
	s.table(rows...)
	s.claim(direct == 2 && kmesh == direct, "a request has the direct way: one TCP connection, and one copy between program and kernel at each end")
	s.claim(peer == s.client.IP4, "the server's peer is the client itself, %s", peer)
	return nil
}
