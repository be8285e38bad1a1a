// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
)

// series is one metric: its description, and how its samples are typed.
type series struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) series {
	return series{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) series {
	return series{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

var (
	opened   = counter("kmesh_tcp_connections_opened_total", "TCP connections whose handshake was done.", "scope", "service", "cluster")
	closed   = counter("kmesh_tcp_connections_closed_total", "TCP connections that were open and have ended.", "scope", "service", "cluster")
	failed   = counter("kmesh_tcp_connections_failed_total", "TCP connections that ended before their handshake was done.", "scope", "service", "cluster")
	sent     = counter("kmesh_tcp_sent_bytes_total", "Bytes that clients sent and endpoints acknowledged.", "scope", "service", "cluster")
	received = counter("kmesh_tcp_received_bytes_total", "Bytes that clients received.", "scope", "service", "cluster")
	flows    = counter("kmesh_udp_flows_total", "UDP associations of a socket with an endpoint.", "scope", "service", "cluster")
	passed   = counter("kmesh_passed_total", "Connections sent where the client meant them.", "scope", "service", "cluster")
	refused  = counter("kmesh_refused_total", "Connections refused, by reason.", "scope", "service", "reason")
	active   = gauge("kmesh_active_connections", "TCP connections that are open.", "scope", "service", "cluster")

	mapEntries  = gauge("kmesh_map_entries", "Entries in a map.", "map")
	mapCapacity = gauge("kmesh_map_capacity", "Entries that a map can hold.", "map")

	pods  = gauge("kmesh_pods", "Enrolled pods of this node, by state.", "state")
	links = gauge("kmesh_links", "Links on enrolled pods, by state.", "state")

	generation = gauge("kmesh_config_generation", "Generation of the newest published snapshot.")
	problems   = gauge("kmesh_config_errors", "Problems of the configuration that have to be repaired; the last good version stays in use.")
	verdicts   = gauge("kmesh_verdicts", "Fields of the configuration that the data path does not do, by class.", "class")
	connected  = gauge("kmesh_xds_connected", "1 while the source of configuration answers; with several, while all of them do.")
	updated    = gauge("kmesh_xds_last_update_timestamp_seconds", "When the source of configuration last delivered something; with several, the one that has been silent longest.")
	stale      = gauge("kmesh_config_from_disk_timestamp_seconds", "When what is served from disk alone was last updated, the oldest of it; 0 while nothing is.")
	scopes     = gauge("kmesh_scopes", "Views of the mesh that pods have of their own, by state; absent with one view for all.", "state")
	apiServer  = gauge("kmesh_api_server_connected", "1 while the API server answers; absent where none is followed.")
	unsettled  = gauge("kmesh_pods_unsettled", "Pods that are not as they, or their namespaces, ask them to be; absent where no API server is followed.")
	keptOut    = gauge("kmesh_pods_kept_out", "Pods that ask to be governed and are not, or are let go, since policies select them that are not enforced; absent where no API server is followed.")

	scrapeErrors = counter("kmesh_scrape_errors_total", "Reads of a source of metrics that failed.", "source")

	all = []series{
		opened, closed, failed, sent, received, flows, passed, refused, active,
		mapEntries, mapCapacity, pods, links, generation, problems, verdicts, connected, updated, stale, scopes, apiServer, unsettled, keptOut, scrapeErrors,
		requests, durations, events,
	}
)

// collector reads the sources at every scrape. A source that fails takes its own
// metrics away and is counted; the others are still shown.
type collector struct {
	log     *slog.Logger
	timeout time.Duration
	sources []source

	mu     sync.Mutex
	errors map[string]float64
}

// source adds its samples to a scrape, or fails as a whole.
type source struct {
	name string
	read func(context.Context, *samples) error
}

func newCollector(opts Options) *collector {
	c := &collector{log: opts.Log, timeout: opts.Timeout, errors: map[string]float64{}}
	if from := opts.Counters; from != nil {
		c.sources = append(c.sources, source{"counters", func(ctx context.Context, s *samples) error { return readCounters(ctx, from, s) }})
		c.sources = append(c.sources, source{"http", func(ctx context.Context, s *samples) error { return readHTTP(ctx, from, opts.Status, s) }})
	}
	if from := opts.Status; from != nil {
		c.sources = append(c.sources, source{"status", func(ctx context.Context, s *samples) error { return readStatus(ctx, from, s) }})
	}
	for _, src := range c.sources {
		c.errors[src.name] = 0
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, s := range all {
		out <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, src := range c.sources {
		ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
		s := newSamples()
		err := src.read(ctx, s)
		cancel()
		if err != nil {
			c.log.Warn("metrics: a source cannot be read", "source", src.name, "error", err)
			c.mu.Lock()
			c.errors[src.name]++
			c.mu.Unlock()
			continue
		}
		s.send(out)
	}
	s := newSamples()
	c.mu.Lock()
	for name, n := range c.errors {
		s.add(scrapeErrors, n, name)
	}
	c.mu.Unlock()
	s.send(out)
}

// samples gathers one source's values, so that a source that fails half-way shows
// nothing, and two entries with the same labels (names cut at the maps' length)
// are one series.
type samples struct {
	index  map[key]int
	values []sample
}

type key struct {
	desc   *prometheus.Desc
	labels string
}

type sample struct {
	series series
	labels []string
	value  float64
	counts []uint64 // of a histogram's buckets, not cumulative; value is its sum
}

func newSamples() *samples { return &samples{index: map[key]int{}} }

func (s *samples) add(to series, value float64, labels ...string) {
	s.at(to, labels).value += value
}

// observe adds to a histogram whose bounds are those of durations.
func (s *samples) observe(to series, sum float64, counts []uint64, labels ...string) {
	v := s.at(to, labels)
	v.value += sum
	if v.counts == nil {
		v.counts = make([]uint64, len(counts))
	}
	for i, n := range counts {
		v.counts[i] += n
	}
}

// at returns the one sample of these labels.
func (s *samples) at(to series, labels []string) *sample {
	labels = slices.Clone(labels)
	for i := range labels {
		labels[i] = clean(labels[i])
	}
	k := key{to.desc, strings.Join(labels, "\x00")}
	if i, ok := s.index[k]; ok {
		return &s.values[i]
	}
	s.index[k] = len(s.values)
	s.values = append(s.values, sample{series: to, labels: labels})
	return &s.values[len(s.values)-1]
}

func (s *samples) send(out chan<- prometheus.Metric) {
	for _, v := range s.values {
		if v.counts != nil {
			out <- histogram(v)
			continue
		}
		out <- prometheus.MustNewConstMetric(v.series.desc, v.series.kind, v.value, v.labels...)
	}
}

// clean makes a name from outside fit for a label.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func readCounters(ctx context.Context, from Counters, s *samples) error {
	c, err := from.Counters(ctx)
	if err != nil {
		return err
	}
	for _, u := range c.Uses {
		for _, v := range []struct {
			to    series
			value uint64
		}{
			{opened, u.Opened}, {closed, u.Closed}, {failed, u.Failed},
			{sent, u.Sent}, {received, u.Received},
			{flows, u.Flows}, {passed, u.Passed}, {active, u.Active},
		} {
			s.add(v.to, float64(v.value), u.Scope, u.Service, u.Cluster)
		}
	}
	for _, r := range c.Refusals {
		s.add(refused, float64(r.Count), r.Scope, r.Service, r.Reason.String())
	}
	return nil
}

// classes are always shown, so that an alert on one does not depend on whether it
// ever occurred.
var classes = []mesh.Class{mesh.UnsupportedCondition, mesh.UnsupportedAction, mesh.Invalid}

func readStatus(ctx context.Context, from Status, s *samples) error {
	status, err := from.Status(ctx)
	if err != nil {
		return err
	}
	s.add(generation, float64(status.Generation))
	s.add(problems, float64(len(status.Problems)))
	readSources(status, s)
	if k := status.GetKubernetes(); k != nil {
		up := 0.0
		if k.Synced && k.Problem == "" {
			up = 1
		}
		s.add(apiServer, up)
		s.add(unsettled, float64(len(k.Plans)))
		barred := 0
		for _, p := range k.Plans {
			barred += min(len(p.GetPolicies()), 1)
		}
		s.add(keptOut, float64(barred))
	}
	for _, class := range classes {
		s.add(verdicts, 0, class.String())
	}
	for _, list := range [][]*apiv1.Verdict{status.Verdicts, status.Problems} {
		for _, v := range list {
			s.add(verdicts, 1, v.Class)
		}
	}
	for _, m := range status.Maps {
		s.add(mapEntries, float64(m.Entries), m.Name)
		s.add(mapCapacity, float64(m.Capacity), m.Name)
	}
	n := status.GetPods()
	s.add(pods, float64(n.GetLive()), "live")
	s.add(pods, float64(n.GetSevered()), "severed")
	s.add(pods, float64(n.GetDrift()), "drift")
	s.add(pods, float64(n.GetDraining()), "draining")
	s.add(links, float64(n.GetLinksLive()), "live")
	s.add(links, float64(n.GetLinksSevered()), "severed")
	return nil
}

// readSources tells of the sources of configuration.
func readSources(status *apiv1.StatusResponse, s *samples) {
	var all []*apiv1.Xds
	for _, x := range []*apiv1.Xds{status.GetXds(), status.GetWorkloads()} {
		if x != nil {
			all = append(all, x)
		}
	}
	if len(status.GetScopes()) > 0 {
		s.add(scopes, 0, "live")
		s.add(scopes, 0, "waiting")
	}
	for _, scope := range status.GetScopes() {
		all = append(all, scope.GetXds())
		state := "waiting"
		if scope.GetLive() {
			state = "live"
		}
		s.add(scopes, 1, state)
	}
	up, last, disk := float64(min(len(all), 1)), int64(0), int64(0)
	for i, x := range all {
		if !x.GetConnected() {
			up = 0
		}
		if at := x.GetLastUpdateUnixSeconds(); i == 0 || at < last {
			last = at
		}
		if at := x.GetFromDiskUnixSeconds(); at != 0 && (disk == 0 || at < disk) {
			disk = at
		}
	}
	s.add(connected, up)
	s.add(updated, float64(last))
	s.add(stale, float64(disk))
}
