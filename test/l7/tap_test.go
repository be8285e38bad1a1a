// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

// tap remembers the last packets on a pod's interface, as they are on the wire: after the programs at egress, before
// those at ingress. (What a program redirects into the interface's ingress is seen too.)
type tap struct {
	f *os.File

	mu   sync.Mutex
	ring []packet
	next int
}

type packet struct {
	at         time.Time
	out        bool
	src, dst   netip.AddrPort
	seq, ack   uint32
	flags      byte
	window     uint16
	payload    int
	head, opts []byte
}

func newTap(t testing.TB, p *node.Pod, packets int) *tap {
	t.Helper()
	tp := &tap{ring: make([]packet, packets)}
	err := p.Do(func() error {
		l, err := netlink.LinkByName(node.IfName)
		if err != nil {
			return err
		}
		all := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		tp.f = os.NewFile(uintptr(fd), "tap")
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: l.Attrs().Index})
	})
	if err != nil {
		t.Fatalf("tap: %v", err)
	}
	t.Cleanup(func() { tp.f.Close() })
	go tp.read()
	return tp
}

func (t *tap) read() {
	rc, err := t.f.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 256) // the rest is cut off
	for {
		var from unix.Sockaddr
		var n int
		var rerr error
		if err := rc.Read(func(fd uintptr) bool {
			n, _, _, from, rerr = unix.RecvmsgBuffers(int(fd), [][]byte{buf}, nil, unix.MSG_TRUNC)
			return !errors.Is(rerr, unix.EAGAIN)
		}); err != nil || rerr != nil {
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		p, ok := parsePacket(buf[:min(n, len(buf))], n)
		if !ok {
			continue
		}
		p.out = ll.Pkttype == unix.PACKET_OUTGOING
		t.mu.Lock()
		t.ring[t.next%len(t.ring)] = p
		t.next++
		t.mu.Unlock()
	}
}

func parsePacket(b []byte, size int) (packet, bool) {
	p := packet{at: time.Now()}
	if len(b) < 14+40 {
		return p, false
	}
	var src, dst netip.Addr
	tcp := 14
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if b[14+9] != unix.IPPROTO_TCP {
			return p, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[26:])), netip.AddrFrom4([4]byte(b[30:]))
		tcp += int(b[14]&15) * 4
		size = min(size, 14+int(binary.BigEndian.Uint16(b[16:])))
	case unix.ETH_P_IPV6:
		if b[14+6] != unix.IPPROTO_TCP || len(b) < 14+60 {
			return p, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[22:])), netip.AddrFrom16([16]byte(b[38:]))
		tcp += 40
		size = min(size, 54+int(binary.BigEndian.Uint16(b[18:])))
	default:
		return p, false
	}
	if len(b) < tcp+20 {
		return p, false
	}
	h := b[tcp:]
	p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(h))
	p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(h[2:]))
	p.seq, p.ack = binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
	p.flags, p.window = h[13], binary.BigEndian.Uint16(h[14:])
	data := int(h[12]>>4) * 4
	p.payload = size - tcp - data
	if data > 20 && len(h) >= data {
		p.opts = slices.Clone(h[20:data])
	}
	if len(h) > data {
		p.head = slices.Clone(h[data:min(len(h), data+40)])
	}
	return p, true
}

func (p packet) String() string {
	var flags strings.Builder
	for i, c := range "FSRPAU" {
		if p.flags>>i&1 == 1 {
			flags.WriteRune(c)
		}
	}
	dir := "in "
	if p.out {
		dir = "out"
	}
	s := fmt.Sprintf("%s %s %s > %s [%s] seq %d ack %d win %d len %d", p.at.Format("05.000000"), dir, p.src, p.dst, flags.String(), p.seq, p.ack, p.window, p.payload)
	if p.flags&2 != 0 {
		s += fmt.Sprintf(" options %x", p.opts)
	}
	if p.payload > 0 {
		s += fmt.Sprintf(" %q", p.head)
	}
	return s
}

// lines tells the last packets of some servers' ports, some services' addresses, or some ports of the client.
func (t *tap) lines(servers []uint16, vips []netip.Addr, ours []uint16) []string {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for i := t.next - 1; i >= 0 && i >= t.next-len(t.ring) && len(out) < 120; i-- {
		p := t.ring[i%len(t.ring)]
		local, remote := p.src, p.dst
		if !p.out {
			local, remote = p.dst, p.src
		}
		if slices.Contains(servers, remote.Port()) || slices.Contains(vips, remote.Addr()) || slices.Contains(ours, local.Port()) {
			out = append(out, p.String())
		}
	}
	slices.Reverse(out)
	return out
}
