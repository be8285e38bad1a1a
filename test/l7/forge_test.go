// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

// forged is a TCP segment that no TCP made. Its addresses are whatever one likes.
type forged struct {
	src, dst netip.AddrPort
	seq, ack uint32
	flags    byte
	payload  string
}

// bytes is the segment in a frame, with right checksums.
func (f forged) bytes(from, to net.HardwareAddr) []byte {
	tcp := make([]byte, 20+len(f.payload))
	binary.BigEndian.PutUint16(tcp, f.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], f.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], f.seq)
	binary.BigEndian.PutUint32(tcp[8:], f.ack)
	tcp[12], tcp[13] = 5<<4, f.flags
	binary.BigEndian.PutUint16(tcp[14:], 64_000) // window
	copy(tcp[20:], f.payload)
	src, dst := f.src.Addr().AsSlice(), f.dst.Addr().AsSlice()
	pseudo := slices.Concat(src, dst, []byte{0, unix.IPPROTO_TCP}, binary.BigEndian.AppendUint16(nil, uint16(len(tcp))))
	binary.BigEndian.PutUint16(tcp[16:], checksum(slices.Concat(pseudo, tcp)))

	frame := slices.Concat(to, from)
	if f.src.Addr().Is6() {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
		frame = append(frame, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(tcp)))
		frame = append(frame, unix.IPPROTO_TCP, 64)
		return slices.Concat(frame, src, dst, tcp)
	}
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
	ip = slices.Concat(ip, src, dst)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return slices.Concat(binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP), ip, tcp)
}

func checksum(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(slices.Clip(b), 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// forge sends segments from inside of a pod, through the programs on its interface, to a pod or (nil) to the node.
func (s *scene) forge(from, to *node.Pod, all ...forged) {
	s.Helper()
	hardware := func(name string) (addr net.HardwareAddr, index int, err error) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return nil, 0, err
		}
		return l.Attrs().HardwareAddr, l.Attrs().Index, nil
	}
	var next net.HardwareAddr
	ask := func() (err error) { next, _, err = hardware(node.IfName); return err }
	var err error
	if to == nil {
		err = s.node.Do(func() (err error) { next, _, err = hardware("cni0"); return err })
	} else {
		err = to.Do(ask)
	}
	if err != nil {
		s.Fatal(err)
	}
	if err := from.Do(func() error {
		own, index, err := hardware(node.IfName)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range all {
			if err := unix.Sendto(fd, f.bytes(own, next), 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		s.Fatalf("sending forged segments from %s: %v", from.Name, err)
	}
}
