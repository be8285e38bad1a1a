// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"kmesh/test/node/wire"
)

// handover is our end of the socket over which a pod's agent passes connected sockets (wire.Handed).
type handover struct {
	mu    sync.Mutex
	fd    int
	ready map[uint64]int // descriptors that nobody has asked for yet
}

func newHandover() (ours *handover, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("a socket for the pod's agent: %w", err)
	}
	return &handover{fd: fds[0], ready: map[uint64]int{}}, os.NewFile(uintptr(fds[1]), "handover"), nil
}

// take returns the descriptor of a handle. It was sent before the answer that told the handle, so nothing waits here.
func (h *handover) take(handle uint64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if fd, ok := h.ready[handle]; ok {
			delete(h.ready, handle)
			return fd, nil
		}
		id, fd, err := receive(h.fd)
		if err != nil {
			return -1, fmt.Errorf("taking over a socket: %w", err)
		}
		h.ready[id] = fd
	}
}

func receive(from int) (handle uint64, fd int, err error) {
	var id [8]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(from, id[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, -1, err
	}
	if n != len(id) || len(messages) != 1 {
		return 0, -1, errors.New("no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, -1, err
	}
	return binary.BigEndian.Uint64(id[:]), fds[0], nil
}

func (h *handover) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.ready {
		unix.Close(fd)
	}
	unix.Close(h.fd)
	h.fd, h.ready = -1, nil
}

// Conn connects from the pod and returns the connection: a socket that the pod's own process made and connected, used
// here. It is nil when a system call failed, as the result tells. The caller closes it.
func (p *Pod) Conn(ctx context.Context, d wire.Dial) (*net.TCPConn, wire.Result, error) {
	d.HandOver, d.Silent = true, true
	res, err := p.Dial(ctx, d)
	if err != nil || res.Errno != "" {
		return nil, res, err
	}
	a, err := p.running(ctx)
	if err != nil {
		return nil, res, err
	}
	fd, err := a.socks.take(res.Handle)
	if err != nil {
		return nil, res, err
	}
	f := os.NewFile(uintptr(fd), "pod "+p.Name)
	defer f.Close()
	c, err := net.FileConn(f) // a copy of its own
	if err != nil {
		return nil, res, fmt.Errorf("taking over a socket: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, res, fmt.Errorf("taking over a socket: it is a %T", c)
	}
	return tcp, res, nil
}
