// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"

	"kmesh/test/node/wire"
)

// server is a listener with the connections it accepted: closing it ends them too, as a server's death does.
type server struct {
	name string
	l    net.Listener
	pc   net.PacketConn

	mu    sync.Mutex
	ended bool
	conns map[net.Conn]struct{}
}

func (a *agent) listen(l wire.Listen) (*wire.Result, error) {
	if l.Name == "" {
		return nil, fmt.Errorf("listen: name is empty")
	}
	s := &server{name: l.Name, conns: map[net.Conn]struct{}{}}
	var local net.Addr
	switch l.Network {
	case wire.TCP, wire.MPTCP:
		var lc net.ListenConfig
		lc.SetMultipathTCP(l.Network == wire.MPTCP)
		ln, err := lc.Listen(context.Background(), "tcp", l.Addr)
		if err != nil {
			return nil, err
		}
		s.l, local = ln, ln.Addr()
		go s.accept()
	case wire.UDP:
		pc, err := net.ListenPacket("udp", l.Addr)
		if err != nil {
			return nil, err
		}
		s.pc, local = pc, pc.LocalAddr()
		go s.packets()
	default:
		return nil, fmt.Errorf("listen: unknown network %q", l.Network)
	}
	return &wire.Result{Local: local.String(), Handle: a.keep(s)}, nil
}

func (s *server) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		go s.talk(c)
	}
}

func (s *server) talk(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if _, err := fmt.Fprintf(c, "%s %s\n", s.name, c.RemoteAddr()); err != nil {
		return
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if _, err := fmt.Fprintf(c, "%s %s\n", s.name, in.Text()); err != nil {
			return
		}
	}
}

func (s *server) packets() {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := s.pc.ReadFrom(buf)
		if err != nil {
			if s.isEnded() {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		_, _ = fmt.Fprintf(packetTo{s.pc, from}, "%s %s\n", s.name, from)
	}
}

type packetTo struct {
	net.PacketConn
	to net.Addr
}

func (p packetTo) Write(b []byte) (int, error) { return p.WriteTo(b, p.to) }

func (s *server) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.l != nil {
		s.l.Close()
	}
	if s.pc != nil {
		s.pc.Close()
	}
	for c := range s.conns {
		c.Close()
	}
}
