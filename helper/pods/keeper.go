// SPDX-License-Identifier: Apache-2.0

// Package pods keeps the enrolled pods of this node as they should be, while the
// helper lives: left-overs are swept, links run the newest programs, sockets of
// endpoints that went away are ended.
//
// It is level-triggered: everything it does follows from what the kernel says at
// the moment, and may be done again at any time. Enrolment itself is the plugin's,
// and needs none of this.
package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
	"kmesh/netns"
)

// Options of a Keeper.
type Options struct {
	Node    *netns.Node
	Runtime *bpf.Runtime
	// Every is the time between sweeps.
	Every time.Duration
	// Swept is told what a sweep removed; may be nil.
	Swept func(kind string, n int)
	Log   *slog.Logger
}

// Keeper keeps the pods.
type Keeper struct{ opts Options }

// New returns a keeper.
func New(opts Options) *Keeper {
	if opts.Swept == nil {
		opts.Swept = func(string, int) {}
	}
	return &Keeper{opts}
}

// Start brings the pods that an earlier helper left up to date: links are updated
// to the programs that are pinned now, each atomically, and left-overs are swept.
func (k *Keeper) Start(ctx context.Context) error {
	if err := k.opts.Node.Upgrade(ctx, k.opts.Runtime.Program); err != nil {
		return fmt.Errorf("update the programs of pods: %w", err)
	}
	k.sweep(ctx)
	return nil
}

// Run sweeps from time to time until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(k.opts.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			k.sweep(ctx)
		}
	}
}

// sweep removes left-overs; what fails is tried again next time.
func (k *Keeper) sweep(ctx context.Context) {
	s, err := k.opts.Node.Sweep(ctx)
	k.opts.Swept("pod", s.Pods)
	k.opts.Swept("cgroup", s.Cgroups)
	k.opts.Swept("link", s.Links)
	if s != (netns.Swept{}) {
		k.opts.Log.Info("swept", "pods", s.Pods, "cgroups", s.Cgroups, "links", s.Links)
	}
	if err != nil && ctx.Err() == nil {
		k.opts.Log.Error("sweep incomplete, trying again later", "err", err)
	}
}

// EndUDP ends, in every pod, the connected UDP sockets whose endpoint may no longer
// be chosen: they run no hook again by which they could be moved.
func (k *Keeper) EndUDP(ctx context.Context) {
	all, err := k.opts.Node.List(ctx)
	if err != nil {
		k.opts.Log.Error("udp sockets of removed endpoints stay", "err", err)
		return
	}
	done := make(map[uint64]bool) // by namespace: a pod may have several attachments
	for _, p := range all {
		if p.NetnsPath == "" || done[p.NetnsCookie] || ctx.Err() != nil {
			continue
		}
		done[p.NetnsCookie] = true
		var ended []bpf.Socket
		err := netns.Do(p.NetnsPath, func() (err error) {
			ended, err = k.opts.Runtime.ReapUDP()
			return err
		})
		switch {
		case errors.Is(err, ebpf.ErrNotSupported):
			k.opts.Log.Warn("udp sockets of removed endpoints stay: this kernel cannot end them", "err", err)
			return
		case errors.Is(err, fs.ErrNotExist): // the pod is going
		case err != nil:
			k.opts.Log.Error("udp sockets of removed endpoints stay", "pod", p.Name, "namespace", p.Namespace, "err", err)
		case len(ended) > 0:
			k.opts.Log.Info("ended udp sockets of removed endpoints", "pod", p.Name, "namespace", p.Namespace, "sockets", len(ended))
		}
	}
}
