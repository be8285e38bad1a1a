// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/plugins/pkg/ns"
)

// Do runs f on a thread inside the network namespace at path. Goroutines that f
// starts are not in it.
func Do(path string, f func() error) error {
	h, err := getNS(path)
	if err == nil {
		defer h.Close()
		err = within(h, func(ns.NetNS) error { return f() })
	}
	if err != nil {
		return fmt.Errorf("in network namespace %s: %w", path, err)
	}
	return nil
}

// EachNetns runs f in the network namespace of every enrolled pod, once each, however
// many attachments it has. One that is going, or whose record is gone and with it the
// namespace's name, is passed over.
func (n *Node) EachNetns(ctx context.Context, f func() error) error {
	all, err := n.List(ctx)
	if err != nil {
		return err
	}
	done := make(map[uint64]bool)
	for _, p := range all {
		if p.NetnsPath == "" || done[p.NetnsCookie] {
			continue
		}
		done[p.NetnsCookie] = true
		if err := Do(p.NetnsPath, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
