// SPDX-License-Identifier: Apache-2.0

// Package probe turns what the kernel has counted into metrics.
//
// It counts nothing itself that the kernel knows: every scrape reads the pinned
// counters, so that a restart of the helper loses none and resets none. What ends
// in _total only grows. The number of series is bounded by the configuration
// (services and clusters), never by traffic.
package probe

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// Counters is who reads the kernel's counters: *publish.Publisher.
type Counters interface {
	Counters(ctx context.Context) (publish.Counters, error)
	HTTPCounters(ctx context.Context) (publish.HTTPCounters, error)
}

// Status is who knows the state of the node: the source of the operator's view.
type Status interface {
	Status(ctx context.Context) (*apiv1.StatusResponse, error)
	// Pods gives requests the name of who asked.
	Pods(ctx context.Context) (*apiv1.PodsResponse, error)
}

// Options of New.
type Options struct {
	// Counters and Status may be nil: their metrics are then absent.
	Counters Counters
	Status   Status
	// Version of the helper, for kmesh_build_info.
	Version string
	// Log may be nil.
	Log *slog.Logger
	// Timeout bounds what one scrape may spend on each source; 0: 5 s.
	Timeout time.Duration
}

// Probe holds the metrics.
type Probe struct {
	registry *prometheus.Registry
	swept    *prometheus.CounterVec
	did      *prometheus.CounterVec
}

// New makes the metrics; nothing is read before the first scrape.
func New(opts Options) *Probe {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Second
	}
	p := &Probe{
		registry: prometheus.NewRegistry(),
		swept: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kmesh_swept_total",
			Help: "Left-overs that this helper has removed since it started, by kind.",
		}, []string{"kind"}),
		did: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kmesh_pod_actions_total",
			Help: "What this helper has done to pods that run, since it started: late_enrolled, enroll_failed, drift_repaired, released.",
		}, []string{"action"}),
	}
	for _, action := range []string{"late_enrolled", "enroll_failed", "drift_repaired", "released"} {
		p.did.WithLabelValues(action) // shown as 0, so that an alert has something to compare with
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "kmesh_build_info",
		Help:        "The helper's version, as a label; always 1.",
		ConstLabels: prometheus.Labels{"version": clean(opts.Version)},
	})
	build.Set(1)
	p.registry.MustRegister(p.swept, p.did, build, newCollector(opts),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p
}

// Registry holds every metric, for callers that add their own.
func (p *Probe) Registry() *prometheus.Registry { return p.registry }

// Swept counts n left-overs of one kind ("link", "pod", "cgroup", ...) as removed.
func (p *Probe) Swept(kind string, n int) {
	if n > 0 {
		p.swept.WithLabelValues(kind).Add(float64(n))
	}
}

// Did counts what was done to pods.
func (p *Probe) Did(action string, n int) { p.did.WithLabelValues(action).Add(float64(n)) }
