// SPDX-License-Identifier: Apache-2.0

// Package gate is a bad network: programs at the node's end of a pod's veth that count, drop, swap or spoil the packets
// that a rule describes.
//
// Invariant: a gate sits outside of the pod. It sees what the network would see, after everything that runs in the pod
// has had its way with a packet, and what it drops is lost for good.
package gate

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

//go:generate go tool bpf2go -cc clang-19 -target bpfel -type rule gate gate.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// rulesEach is the number of rules of each direction (RULES in gate.bpf.c).
const rulesEach = 64

// Direction of a packet: Up is from the pod.
type Direction int

// The directions.
const (
	Up Direction = iota
	Down
)

// Action is what happens to a packet.
type Action uint8

// The actions (enum action).
const (
	Count Action = iota
	Drop
	Swap  // this packet and the next one of the rule change places
	Spoil // the last byte is another one, and the checksum does not tell
)

// Payload says which packets a rule is about.
type Payload uint8

// The kinds of packet (enum payload).
const (
	Any Payload = iota
	Without
	With
	Super   // several segments in one packet, as segmentation offload makes them
	Stamped // with timestamps, payload or not
)

// Flags of TCP (RFC 9293, section 3.1).
const (
	FIN = 1
	SYN = 2
	RST = 4
	ACK = 16
)

// Rule describes packets, and what happens to them. The zero value counts every TCP packet.
type Rule struct {
	Direction
	Action
	Payload
	Port        uint16 // of the server, as it is on the wire; 0: any
	Mask, Value uint8  // flags & Mask == Value
	Share       float64
	// Of the packets that fit, the first Skip pass; then at most Limit are acted on (0: all).
	Skip, Limit uint32
}

// Gate is a gate at one pod.
type Gate struct {
	objs  gateObjects
	links []link.Link

	mu   sync.Mutex
	used [2 * rulesEach]bool
}

// Attach puts a gate at a pod's veth.
func Attach(n *node.Node, p *node.Pod) (*Gate, error) {
	var peer int
	err := p.Do(func() error {
		l, err := netlink.LinkByName(node.IfName)
		if err == nil {
			peer = l.Attrs().ParentIndex
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("gate: pod %s: %w", p.Name, err)
	}
	g := &Gate{}
	if err := loadGateObjects(&g.objs, nil); err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	err = n.Do(func() error {
		for _, at := range []struct {
			prog   *ebpf.Program
			attach ebpf.AttachType
			parent uint32
		}{
			{g.objs.GateUp, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS},
			{g.objs.GateDown, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS},
		} {
			l, err := link.AttachTCX(link.TCXOptions{Interface: peer, Program: at.prog, Attach: at.attach})
			if errors.Is(err, link.ErrNotSupported) {
				err = filter(peer, at.parent, at.prog)
			} else if err == nil {
				g.links = append(g.links, l)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gate: pod %s: %w", p.Name, err), g.Close())
	}
	return g, nil
}

// filter does the same before Linux 6.6. What it makes ends with the interface.
func filter(index int, parent uint32, prog *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscReplace(qdisc); err != nil {
		return err
	}
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           prog.FD(),
		Name:         "gate",
		DirectAction: true,
	})
}

// Close takes the gate away.
func (g *Gate) Close() error {
	errs := []error{g.objs.Close()}
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Active is a rule in force.
type Active struct {
	g   *Gate
	key uint32
}

// Add puts a rule in force.
func (g *Gate) Add(r Rule) (*Active, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range uint32(rulesEach) {
		key := i
		if r.Direction == Down {
			key += rulesEach
		}
		if g.used[key] {
			continue
		}
		g.used[key] = true
		raw := gateRule{Used: 1, Action: uint8(r.Action), Payload: uint8(r.Payload), Mask: r.Mask, Value: r.Value,
			Port: r.Port, Skip: r.Skip, Limit: r.Limit, Chance: uint32(r.Share * math.MaxUint32)}
		if err := g.objs.Rules.Put(key, &raw); err != nil {
			return nil, fmt.Errorf("gate: %w", err)
		}
		return &Active{g, key}, nil
	}
	return nil, errors.New("gate: no rule is free")
}

// Counts tells how many packets fitted the rule, and how many it acted on.
func (a *Active) Counts() (matched, acted uint64, err error) {
	var r gateRule
	if err := a.g.objs.Rules.Lookup(a.key, &r); err != nil {
		return 0, 0, fmt.Errorf("gate: %w", err)
	}
	return r.Matched, r.Acted, nil
}

// Remove ends the rule.
func (a *Active) Remove() error {
	a.g.mu.Lock()
	defer a.g.mu.Unlock()
	if err := a.g.objs.Rules.Put(a.key, &gateRule{}); err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	a.g.used[a.key] = false
	return nil
}
