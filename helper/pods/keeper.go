// SPDX-License-Identifier: Apache-2.0

// Package pods keeps the pods of this node as they should be, while the helper lives:
// left-overs are swept, links run the newest programs, what has drifted from its
// enrolment is repaired, sockets of endpoints that went away are ended. Where there is an
// API server, pods and namespaces that opt in or out are followed while pods run (package
// plan has the rule), the plugin is given the set of namespaces, and pods are told by events.
//
// It is level-triggered: everything it does follows from what the kernel, the container
// runtime's cache and the API server say at the moment, and may be done again at any
// time. Enrolment itself is the plugin's, and needs none of this; where it has to be made
// up for, it is the same code (package netns).
//
// What it needs on a node, beside what the plugin's work needs of whoever does it
// (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN to enter network namespaces, CAP_DAC_READ_SEARCH
// to open a cgroup by its inode): to read libcni's cache (/var/lib/cni) and the runtime's
// network namespaces (/run/netns) where the runtime has them; CAP_NET_BROADCAST to hear of
// what is removed in pods, or it is found a round later; CAP_SYS_PTRACE and the node's
// process namespace to find pods that the cache has lost, or an event says so. Of the API
// server it needs what package kube lists.
package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"kmesh/bpf"
	"kmesh/helper/pods/cached"
	"kmesh/helper/pods/hint"
	"kmesh/helper/pods/plan"
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
	// Counted is told what was done to pods: "late_enrolled", "enroll_failed",
	// "drift_repaired", "released"; may be nil.
	Counted func(what string, n int)
	// Noticed is told that pods may be others than before, on this node or at the API
	// server; may be nil. It must not wait.
	Noticed func()
	Log     *slog.Logger

	// Cluster is the API server; nil: there is none, and nothing is followed.
	Cluster Cluster
	// Policies are those that select pods and are not enforced, by "namespace/name"; nil:
	// nobody says.
	Policies func() map[string][]string
	// Barred are those that keep the pods out of the mesh that they select; nil: none does,
	// and they are told of only. Poke says that they are others.
	Barred func(plan.View) plan.Policies
	// Own are namespaces that are never enrolled, beside the built-in ones.
	Own []string
	// StateDir is where the plugin finds the set of namespaces.
	StateDir string
	// CacheDir is libcni's, as the container runtime has it.
	CacheDir string
}

// Keeper keeps the pods.
type Keeper struct {
	opts  Options
	poked chan struct{} // has room for one

	mu     sync.Mutex
	ours   bool // the pods are to run this layout's programs
	drains map[uint32]*drain

	told  sync.Mutex
	said  map[string]said // by UID
	plans []Plan
}

// New returns a keeper.
func New(opts Options) *Keeper {
	if opts.Swept == nil {
		opts.Swept = func(string, int) {}
	}
	if opts.Counted == nil {
		opts.Counted = func(string, int) {}
	}
	if opts.Noticed == nil {
		opts.Noticed = func() {}
	}
	if opts.CacheDir == "" {
		opts.CacheDir = cached.DefaultDir
	}
	return &Keeper{opts: opts, poked: make(chan struct{}, 1), drains: make(map[uint32]*drain), said: make(map[string]said)}
}

// Poke tells that the policies of pods may be others than before. It does not wait.
func (k *Keeper) Poke() {
	select {
	case k.poked <- struct{}{}:
	default:
	}
}

// round updates links to the programs that are pinned now, each atomically: those
// that an earlier helper left, and those of an ADD that had opened the programs before
// they were replaced. Then it sweeps. What fails, as with a pod that is going, is tried
// again next time.
func (k *Keeper) round(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ours || !k.othersServe() {
		if err := k.opts.Node.Upgrade(ctx, k.opts.Runtime.Program); err != nil && ctx.Err() == nil {
			k.opts.Log.Error("programs of pods not all updated, trying again later", "err", err)
		}
		if err := k.tend(ctx); err != nil && ctx.Err() == nil {
			k.opts.Log.Error("programs of another layout stay, trying again later", "err", err)
		}
	}
	k.sweep(ctx)
}

// othersServe tells whether the pods are another layout's still.
func (k *Keeper) othersServe() bool {
	others, err := bpf.Others(k.opts.Runtime.BPFFS)
	if err != nil {
		k.opts.Log.Error("it cannot be told whether another layout serves the pods", "err", err)
		return true
	}
	return slices.ContainsFunc(others, bpf.Other.Live)
}

// Run looks after the pods at once and then from time to time, until ctx ends; and what
// there are hints of, at once.
func (k *Keeper) Run(ctx context.Context) error {
	pins := filepath.Join(k.opts.Runtime.BPFFS, "pods") // the first pod would make it
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return fmt.Errorf("bpffs: %w", err)
	}
	hints := hint.New(pins, k.opts.Log)
	defer hints.Close()
	g, ctx := errgroup.WithContext(ctx)
	if k.opts.Cluster != nil {
		g.Go(func() error { return k.follow(ctx) })
	}
	g.Go(func() error { return k.watch(ctx, hints) })
	return g.Wait()
}

// settle is how long hints that come together are gathered. It is also the shortest time
// between two looks, however many hints there are.
const settle = 50 * time.Millisecond

func (k *Keeper) watch(ctx context.Context, hints *hint.Watcher) error {
	m := &mender{
		Keeper: k, retries: make(map[netns.Attachment]*retry), lost: make(map[netns.Attachment]netns.Request), looked: make(map[netns.Attachment]bool),
	}
	look := func() []netns.Known {
		known, err := k.opts.Node.Known(ctx)
		if err == nil {
			hints.Follow(known, k.opts.Node.CgroupDir)
		}
		return known
	}
	round := func() {
		known := look()
		m.repair(ctx) // before the sweep, which lets go what has no cgroup
		m.lookedAt(known)
		k.round(ctx)
	}
	round()
	tick := time.NewTicker(k.opts.Every)
	defer tick.Stop()
	var heard, before gathered
	soon := time.NewTimer(0)
	soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			round()
		case h := <-hints.C:
			k.opts.Noticed()
			if !heard.urgent() {
				wait := lookAgain
				if h != (hint.Hint{New: true}) {
					wait = settle
				}
				if heard.empty() || wait == settle {
					soon.Reset(wait)
				}
			}
			heard.add(h)
			continue
		case <-soon.C:
			known := look()
			m.repairWhere(ctx, known, func(a netns.Known) bool {
				_, failed := m.retries[a.Attachment]
				return a.Ready && (failed || !m.looked[a.Attachment] || heard.concerns(a, m) || before.concerns(a, m))
			})
			m.lookedAt(known)
			// Once more, since the kernel lets go a little after it has told.
			before, heard = heard, gathered{}
		}
		if before.urgent() || m.unfinished() || m.atWork {
			soon.Reset(lookAgain)
		}
	}
}

// lookAgain is when a second look follows the one that a hint was reason for.
const lookAgain = 300 * time.Millisecond

// gathered are hints that came together.
type gathered struct {
	cgroup, pods bool
	spaces       map[uint64]bool
}

// urgent says whether something may be gone. That a pod is new only means that there is
// another one to watch.
func (g *gathered) urgent() bool { return g.cgroup || len(g.spaces) > 0 }

func (g *gathered) empty() bool { return !g.urgent() && !g.pods }

func (g *gathered) add(h hint.Hint) {
	g.cgroup, g.pods = g.cgroup || h.Cgroup, g.pods || h.New
	if h.Netns != 0 {
		if g.spaces == nil {
			g.spaces = make(map[uint64]bool)
		}
		g.spaces[h.Netns] = true
	}
}

// concerns says whether a pod is among those that something was heard of.
func (g *gathered) concerns(a netns.Known, m *mender) bool {
	return g.spaces[a.NetnsCookie] || g.cgroup && m.cgroupGone(a)
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
