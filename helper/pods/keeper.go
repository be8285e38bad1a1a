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
	// Every is the time between rounds.
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

// round updates links to the programs that are pinned now, each atomically: those
// that an earlier helper left, and those of an ADD that had opened the programs before
// they were replaced. Then it sweeps. What fails, as with a pod that is going, is tried
// again next time.
func (k *Keeper) round(ctx context.Context) {
	if err := k.opts.Node.Upgrade(ctx, k.opts.Runtime.Program); err != nil && ctx.Err() == nil {
		k.opts.Log.Error("programs of pods not all updated, trying again later", "err", err)
	}
	k.sweep(ctx)
}

// Run looks after the pods at once and then from time to time, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.round(ctx)
	tick := time.NewTicker(k.opts.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			k.round(ctx)
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
		if p.NetnsPath == "" {
			k.opts.Log.Warn("udp sockets of removed endpoints stay: the pod's record, which names its network namespace, is gone", "containerID", p.ContainerID)
			continue
		}
		if done[p.NetnsCookie] || ctx.Err() != nil {
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
