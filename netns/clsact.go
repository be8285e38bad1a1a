// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/netns/failpoint"
)

// Filters of ours on a clsact qdisc, for kernels without TCX. They are no links: they live and die with the interface, and a marker directory says
// that they are there.
const (
	filterName     = "kmesh"
	filterPriority = 0x6b6d
	filterHandle   = 1
)

func filterParent(h bpf.Hook) uint32 {
	if h.Attach == ebpf.AttachTCXIngress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func filterOf(index int, h bpf.Hook) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index,
			Parent:    filterParent(h),
			Handle:    filterHandle,
			Priority:  filterPriority,
			Protocol:  unix.ETH_P_ALL,
		},
		Name:         filterName,
		DirectAction: true,
	}
}

// attachClsact puts the TC programs on the interface, in the calling thread's network namespace. madeQdisc says that the qdisc is ours.
func attachClsact(tx *undo, index int, progs programs, hadQdisc, hadFilters bool) error {
	if !hadQdisc {
		qdisc := clsactQdisc(index)
		err := failpoint.Here("add qdisc")
		if err == nil {
			err = netlink.QdiscAdd(qdisc)
		}
		if err != nil {
			return fmt.Errorf("add clsact to interface %d: %w", index, err)
		}
		tx.add(func() error { return netlink.QdiscDel(qdisc) })
	}
	for _, h := range bpf.TCHooks {
		filter := filterOf(index, h)
		filter.Fd = progs[h.Name].FD()
		err := failpoint.Here("add filter")
		if err == nil {
			err = netlink.FilterReplace(filter)
		}
		if err != nil {
			return fmt.Errorf("attach %s to clsact of interface %d: %w", h.Name, index, err)
		}
		if !hadFilters {
			tx.add(func() error { return netlink.FilterDel(filterOf(index, h)) })
		}
	}
	return nil
}

func clsactQdisc(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}

// hasClsact says whether the interface has a clsact qdisc.
func hasClsact(index int) (bool, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) {
		return netlink.QdiscList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}})
	})
	if err != nil {
		return false, fmt.Errorf("list qdiscs of interface %d: %w", index, err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			return true, nil
		}
	}
	return false, nil
}

// filters finds our filters on the interface.
func filters(index int, h bpf.Hook) (ours []*netlink.BpfFilter, foreign int, err error) {
	all, err := dump(func() ([]netlink.Filter, error) {
		return netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, filterParent(h))
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list filters of interface %d: %w", index, err)
	}
	for _, f := range all {
		b, ok := f.(*netlink.BpfFilter)
		// The kernel lists a head without a program beside each filter.
		switch {
		case ok && b.Priority == filterPriority && b.Handle == filterHandle:
			ours = append(ours, b)
		case !ok || b.Id != 0:
			foreign++
		}
	}
	return ours, foreign, nil
}

// dump repeats a netlink dump that was interrupted by a change.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// detachClsact removes our filters, and the qdisc if we made it and nobody else uses it.
func detachClsact(index int, ownQdisc bool) error {
	foreign := 0
	for _, h := range bpf.TCHooks {
		ours, others, err := filters(index, h)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
			return nil // the interface or the qdisc is gone, and the filters with it
		}
		if err != nil {
			return err
		}
		foreign += others
		for range ours {
			if err := failpoint.Here("remove filter"); err != nil {
				return fmt.Errorf("remove filter of interface %d: %w", index, err)
			}
			if err := netlink.FilterDel(filterOf(index, h)); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove filter of interface %d: %w", index, err)
			}
		}
	}
	if !ownQdisc || foreign > 0 {
		return nil
	}
	if err := failpoint.Here("remove qdisc"); err != nil {
		return fmt.Errorf("remove clsact of interface %d: %w", index, err)
	}
	if err := netlink.QdiscDel(clsactQdisc(index)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact of interface %d: %w", index, err)
	}
	return nil
}

// lacksTCX says whether an attach failed because the kernel has no TCX: the library probes the feature, not the version.
func lacksTCX(err error) bool { return errors.Is(err, link.ErrNotSupported) }
