// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/netns"
)

// drain is what this helper has seen of another layout.
type drain struct {
	rounds int // since it took over, or since it started
	quiet  int // in a row, without an open flow
}

// quietRounds is how often in a row nothing must be open before a layout's programs go:
// the last packets of a connection come a little after its end.
const quietRounds = 2

// TakeOver makes the programs of this layout those of the pods, where another layout's
// are so far. It is called when there is a configuration for them, and not before: until
// then the others serve on with theirs.
func (k *Keeper) TakeOver(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	others, err := bpf.Others(k.opts.Runtime.BPFFS)
	if err != nil {
		return fmt.Errorf("take over pods: %w", err)
	}
	for _, o := range others {
		if !o.Live() {
			continue
		}
		if err := k.opts.Runtime.TakeOver(func() error { return k.opts.Node.Upgrade(ctx, k.opts.Runtime.Program) }); err != nil {
			return fmt.Errorf("take over pods of layout %d: %w", o.ABI, err)
		}
		k.opts.Log.Info("took over pods of another layout", "from", o.ABI, "to", bpf.ABI)
		break
	}
	k.ours = true
	return nil
}

// tend looks after the other layouts that are left: pods that their plugin has enrolled
// meanwhile are taken over, and what has nothing left to do is removed.
func (k *Keeper) tend(ctx context.Context) error {
	others, err := bpf.Others(k.opts.Runtime.BPFFS)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range others {
		if err := k.tendOne(ctx, o); err != nil {
			errs = append(errs, fmt.Errorf("layout %d: %w", o.ABI, err))
		}
	}
	return errors.Join(errs...)
}

func (k *Keeper) tendOne(ctx context.Context, o bpf.Other) error {
	rt := k.opts.Runtime
	known, err := rt.Pods(o)
	if err != nil {
		return err
	}
	alive, err := k.opts.Node.Cookies()
	if err != nil {
		return err
	}
	if !o.Flows() {
		for cookie := range known {
			if alive[cookie] {
				return nil
			}
		}
		k.opts.Log.Info("the last pod of another layout is gone", "layout", o.ABI)
		return rt.Remove(o)
	}
	d := k.drains[o.ABI]
	if d == nil {
		d = &drain{}
		k.drains[o.ABI] = d
	}
	if !o.Whole() {
		return rt.Retire(o) // which was interrupted
	}
	// An enrolment by a plugin of that layout, begun before the other one took over, has
	// ended by the second round, and so has the wait for a neighbour of a SYN's.
	if d.rounds++; d.rounds == 2 {
		if err := rt.CloseFlows(o); err != nil {
			return err
		}
	}
	open, err := k.openFlows(ctx, o)
	if err != nil {
		return err
	}
	if open > 0 || d.rounds < 2 {
		d.quiet = 0
		return nil
	}
	if d.quiet++; d.quiet < quietRounds {
		return nil
	}
	k.opts.Log.Info("the last flow of another layout is gone", "layout", o.ABI)
	delete(k.drains, o.ABI)
	return rt.Retire(o)
}

// flows are what a layout's programs say of their flows, read once.
type flows struct {
	open   map[uint64]uint64 // how many, by network namespace
	tuples map[bpf.FlowKey]bpf.FlowRef
}

func (k *Keeper) readFlows(o bpf.Other) (f flows, err error) {
	if f.open, err = k.opts.Runtime.Open(o); err == nil && len(f.open) > 0 {
		f.tuples, err = k.opts.Runtime.Tuples(o)
	}
	return f, err
}

// needed counts those that a pod still needs. What the programs count as open includes
// clients that vanished without a word: there are at most as many as the pod has sockets
// with such a connection.
func (k *Keeper) needed(f flows, p netns.Known) int {
	if f.open[p.NetnsCookie] == 0 {
		return 0
	}
	n, err := k.sockets(p, func(client, vip netip.AddrPort) bool {
		_, ok := f.tuples[bpf.FlowKeyOf(p.NetnsCookie, client, vip)]
		return ok
	})
	if err != nil {
		// It cannot be told: what the programs count is right or too much.
		return int(f.open[p.NetnsCookie])
	}
	return n
}

// openFlows counts the flows of a layout that any pod still needs.
func (k *Keeper) openFlows(ctx context.Context, o bpf.Other) (int, error) {
	f, err := k.readFlows(o)
	if err != nil || len(f.open) == 0 {
		return 0, err
	}
	pods, err := k.opts.Node.Known(ctx)
	if err != nil {
		return 0, err
	}
	total, seen := 0, make(map[uint64]bool)
	for _, p := range pods {
		if !seen[p.NetnsCookie] {
			seen[p.NetnsCookie] = true
			total += k.needed(f, p)
		}
	}
	return total, nil
}

// sockets counts the connections in a pod's network namespace that match says yes to.
func (k *Keeper) sockets(p netns.Known, match func(local, remote netip.AddrPort) bool) (n int, err error) {
	err = k.opts.Node.Within(p, func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return err
			}
			for _, s := range all {
				if s.State == netlink.TCP_TIME_WAIT {
					continue // its end is over
				}
				local, ok1 := netip.AddrFromSlice(s.ID.Source)
				remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
				if ok1 && ok2 && match(netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort), netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort)) {
					n++
				}
			}
		}
		return nil
	})
	return n, err
}
