// SPDX-License-Identifier: Apache-2.0

// Package controller puts the helper together: the order of start, readiness, the
// order of shutdown. It has no logic of its own.
//
// The invariant: neither start nor stop touches running traffic. What is pinned is
// opened, not replaced; what the helper holds at its end stays where it is.
package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/helper/api"
	"kmesh/helper/installed"
	"kmesh/helper/mesh"
	"kmesh/helper/pods"
	"kmesh/helper/pods/kube"
	"kmesh/helper/probe"
	"kmesh/helper/publish"
	"kmesh/helper/resolve"
	"kmesh/helper/scopes"
	"kmesh/helper/translate/workload"
	"kmesh/netns"
)

// Options of the helper, as its flags say.
type Options struct {
	// One of XDSDir and XDSServers: where the mesh comes from. The servers all have the
	// same; the preferred one is the first.
	XDSDir     string
	XDSServers []string
	// Server says how to speak to the servers.
	Server ServerOptions
	// CA is where certificates for pods' accounts are asked for: HOST:PORT; the first of
	// XDSServers if empty. TrustDomain is the mesh's.
	CA, TrustDomain string
	// NodeID is announced to the server, and what NodeMetadata says.
	NodeID       string
	NodeMetadata map[string]string
	// Scopes is OneScope or ScopePerPods, with at most MaxScopes.
	Scopes    Scopes
	MaxScopes int
	// WorkloadAPI: the servers speak Istio's workload API too, and it is followed; so it is
	// with ScopePerPods.
	WorkloadAPI bool
	// NodeIP is announced for scopes, which are no pods. Network is the node's.
	NodeIP, Network string
	// BPFFS, RunDir and StateDir are where the helper keeps what outlives it.
	BPFFS, RunDir, StateDir string
	// Metrics is the address of /metrics, /healthz and /readyz.
	Metrics string
	// Unenforceable is what becomes of what asks for an action that cannot be enforced:
	// ServeUnenforceable or RefuseUnenforceable.
	Unenforceable string
	// Unenforced is what becomes of pods that authorization policies select which are not
	// enforced: ReportUnenforced or RefuseEnrolment.
	Unenforced string
	// FlowsPerPod is the most connections routed by request that one pod may have open.
	FlowsPerPod uint32
	// SweepEvery is the time between two looks at the pods: left-overs, drifted links,
	// programs of another layout that have nothing left to do.
	SweepEvery time.Duration
	// Kubeconfig names the API server; "" is that of the cluster in whose pod this is, if
	// it is one. NodeName is this node's name there.
	Kubeconfig, NodeName string
	// CNICache is where the container runtime has libcni remember sandboxes.
	CNICache string
	// Version of the helper.
	Version string
	// Ready gets one line when the helper is ready.
	Ready io.Writer
	Log   *slog.Logger
}

// What Options.Unenforceable may be; "" is the first.
const (
	ServeUnenforceable  = "serve"
	RefuseUnenforceable = "refuse"
)

// How often the helper looks after what no event tells it of.
const recountEvery = 30 * time.Second

// recoveredReady is how long a restarted helper, whose maps already serve, waits for
// its source before it says that it is ready.
const recoveredReady = 2 * time.Second

// Controller is a helper at work.
type Controller struct {
	opts    Options
	started time.Time
	rt      *bpf.Runtime
	pub     *publish.Publisher
	node    *netns.Node
	keeper  *pods.Keeper
	scopes  *scopes.Manager
	ids     *identities // nil: no identities but the helper's

	workloads *workloads          // nil: the workload API is not followed
	selected  *workload.Selection // what heardOf passed on last
	names     *resolve.Resolver
	probe     *probe.Probe
	tables    *installed.Tables
	cluster   *kube.Client // nil: there is no API server
	own       []string     // the helper's namespace, which is never enrolled

	// last is the newest published snapshot of this run, nil before the first.
	last  atomic.Pointer[mesh.Snapshot]
	ready atomic.Bool
	// others: another layout's maps served when this run began; taken: they do no longer.
	others bool
	taken  atomic.Bool
	// garbage counts what has been published since memory was given back.
	garbage int
}

// Run runs the helper until ctx ends.
func Run(ctx context.Context, opts Options) error {
	if err := opts.checkUnenforced(); err != nil {
		return err
	}
	unlock, err := Lock(opts.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	release, err := lockMaps(opts.BPFFS)
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory (--state-dir): %w", err)
	}
	c := &Controller{opts: opts, started: time.Now()}
	if c.rt, err = bpf.Load(bpf.LoadOptions{BPFFS: opts.BPFFS, FlowsPerPod: opts.FlowsPerPod}); err != nil {
		return err
	}
	defer c.rt.Close()
	for feature, why := range c.rt.Unsupported {
		opts.Log.Warn("this kernel lacks a feature", "feature", feature, "err", why)
	}
	if err := c.inherit(); err != nil {
		return err
	}
	if c.pub, err = publish.New(c.rt, opts.Log); err != nil {
		return err
	}
	c.node = netns.New(netns.Options{BPFFS: opts.BPFFS, RunDir: opts.RunDir})
	c.rt.EachNetns = func(f func() error) error { return c.node.EachNetns(ctx, f) }
	if err := c.makeScopes(); err != nil {
		return err
	}
	if c.tables, err = installed.New(installed.Options{Runtime: c.rt, Pods: c.Pods}); err != nil {
		return err
	}
	c.probe = probe.New(probe.Options{Counters: c.pub, Status: c, Version: opts.Version, Log: opts.Log})
	if err := c.makeKeeper(ctx); err != nil {
		return err
	}
	if c.ids != nil {
		defer c.ids.issuer.Close()
	}
	return c.run(ctx)
}

// makeKeeper makes the keeper of the pods, which follows the API server if there is one.
func (c *Controller) makeKeeper(ctx context.Context) error {
	opts := pods.Options{
		Node: c.node, Runtime: c.rt, Every: c.opts.SweepEvery, Swept: c.probe.Swept, Counted: c.probe.Did, Log: c.opts.Log,
		StateDir: c.opts.StateDir, CacheDir: c.opts.CNICache, Noticed: c.scopes.Poke,
	}
	cluster, err := kube.Connect(ctx, c.opts.Kubeconfig, c.opts.NodeName, c.opts.Log)
	switch {
	case errors.Is(err, kube.ErrNone) && c.opts.Unenforced == RefuseEnrolment:
		return fmt.Errorf("--policy-unenforced %s is about pods that the API server tells of: give --kubeconfig, or leave it out: %w", RefuseEnrolment, err)
	case errors.Is(err, kube.ErrNone):
		c.opts.Log.Info("pods are followed by the plugin alone", "why", err)
	case err != nil:
		return err
	default:
		c.cluster = kube.New(cluster)
		opts.Cluster = c.cluster
		// The mesh must not need itself to start.
		if own := kube.OwnNamespace(); own != "" {
			c.own = []string{own}
		}
		opts.Own = c.own
	}
	if c.workloads != nil {
		opts.Policies = c.workloads.store.PoliciesOf
	}
	if c.opts.Unenforced == RefuseEnrolment {
		opts.Barred = c.barred
	}
	c.keeper = pods.New(opts)
	return nil
}

// inherit takes over what must go on from other layouts. Their programs serve the pods
// until this one's have a configuration.
func (c *Controller) inherit() error {
	others, err := bpf.Others(c.opts.BPFFS)
	if err != nil {
		return err
	}
	c.others = slices.ContainsFunc(others, bpf.Other.Live)
	return c.rt.Inherit()
}

// Lock takes the run directory for one process, a helper or an uninstall.
func Lock(runDir string) (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("run directory (--run-dir): %w", err)
	}
	path := filepath.Join(runDir, "helper.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run directory (--run-dir): %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another kmesh-helper holds %s: stop it first, or give this one another --run-dir: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// lockMaps takes the bpffs directory for one writer, whatever its run directory.
func lockMaps(bpffs string) (release func(), err error) {
	if err := bpf.CheckBPFFS(bpffs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(bpffs, 0o700); err != nil {
		return nil, fmt.Errorf("bpffs: %w", err)
	}
	dir, err := os.Open(bpffs)
	if err != nil {
		return nil, fmt.Errorf("bpffs: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("another kmesh-helper writes the maps below %s: stop it first, or give this one another --bpffs: %w", bpffs, err)
	}
	return func() { dir.Close() }, nil
}

// run starts everything, waits, and ends everything.
func (c *Controller) run(ctx context.Context) error {
	web, err := probe.Listen(c.opts.Metrics, c.probe.Handler(c.notReady), c.opts.Log)
	if err != nil {
		return err
	}
	socket, err := api.Listen(api.Options{Socket: filepath.Join(c.opts.RunDir, "helper.sock"), Source: c, Requests: c.tables, Log: c.opts.Log})
	if err != nil {
		web.Close()
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return web.Run(ctx) })
	g.Go(func() error { return socket.Run(ctx) })
	g.Go(func() error { return c.keeper.Run(ctx) })
	if c.cluster != nil {
		g.Go(func() error { return c.cluster.Run(ctx) })
	}
	g.Go(func() error { return asFlag(c.scopes.Run(ctx)) })
	g.Go(func() error { return c.names.Run(ctx, c.scopes.Resolved) })
	if c.workloads != nil {
		g.Go(func() error { return asFlag(c.workloads.run(ctx, c.heardOf)) })
	}
	g.Go(func() error { return c.recount(ctx) })
	g.Go(func() error { return c.forget(ctx) })
	g.Go(func() error { return c.announce(ctx, web.Addr().String()) })
	return g.Wait()
}

// publish brings a snapshot into the maps.
func (c *Controller) publish(ctx context.Context, s *mesh.Snapshot) error {
	res, err := c.pub.Publish(ctx, s)
	if err != nil {
		return err
	}
	first := c.last.Swap(s) == nil
	c.tidy(res, first)
	if !c.taken.Load() {
		if err := c.keeper.TakeOver(ctx); err != nil {
			return err
		}
		c.taken.Store(true)
	}
	c.ready.Store(true)
	if c.opts.Unenforced == RefuseEnrolment {
		c.keeper.Poke() // a view may be known now
	}
	// The first time also: an earlier helper may have died between the two.
	if len(res.Removed) > 0 || first {
		c.keeper.EndUDP(ctx)
	}
	return nil
}

// recount keeps the counts of open connections true.
func (c *Controller) recount(ctx context.Context) error {
	r := publish.NewRecounter(c.pub)
	tick := time.NewTicker(recountEvery)
	defer tick.Stop()
	for {
		n, err := r.Recount(ctx)
		if err != nil && ctx.Err() == nil {
			c.opts.Log.Error("open connections not recounted", "err", err)
		}
		if n > 0 {
			c.opts.Log.Info("corrected counts of open connections", "counts", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// announce writes the line that says the helper is ready, once.
func (c *Controller) announce(ctx context.Context, metrics string) error {
	deadline := time.Now().Add(recoveredReady)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !c.ready.Load() {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, live := c.pub.Live(); (live || c.others) && time.Now().After(deadline) {
			c.opts.Log.Warn("no configuration yet: the last good state, which is pinned, serves on")
			c.ready.Store(true)
		}
	}
	generation, _ := c.pub.Live()
	fmt.Fprintf(c.opts.Ready, "kmesh-helper %s is ready: generation %d, metrics http://%s/metrics, socket %s\n",
		c.opts.Version, generation, metrics, filepath.Join(c.opts.RunDir, "helper.sock"))
	return nil
}

// notReady says why the helper is not ready.
func (c *Controller) notReady() error {
	if c.ready.Load() {
		return nil
	}
	if why := c.scopes.Status().Holding; why != "" {
		return fmt.Errorf("no snapshot is published yet: %s", why)
	}
	return errors.New("no snapshot is published yet")
}
