// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// requestLabels are Istio's (telemetry/v2, "Istio Standard Metrics"), as far as the
// kernel knows them, and the route.
var requestLabels = []string{
	"reporter", "source_workload", "source_workload_namespace",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"request_protocol", "response_code", "response_flags", "connection_security_policy", "kmesh_route",
}

var (
	requests  = counter("istio_requests_total", "HTTP requests that were answered.", requestLabels...)
	durations = series{prometheus.NewDesc("istio_request_duration_milliseconds", "Time from an HTTP request's head to its answer's end.", requestLabels, nil), prometheus.UntypedValue}
	events    = counter("kmesh_http_events_total", "Events of the path that routes HTTP requests.", "event")
)

// bounds are the upper bounds of the kernel's buckets (bucket_of in bpf/count.h), in
// milliseconds; the last bucket has none.
var bounds = [...]float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// histogram makes the buckets cumulative. Its count is their sum, and not the
// kernel's own: requests go on while they are read, and the two must agree.
func histogram(v sample) prometheus.Metric {
	buckets := make(map[float64]uint64, len(bounds))
	var sum uint64
	for i, n := range v.counts {
		sum += n
		if i < len(bounds) {
			buckets[bounds[i]] = sum
		}
	}
	return prometheus.MustNewConstHistogram(v.series.desc, sum, v.value, buckets, v.labels...)
}

const unknown = "unknown"

// readHTTP reads the counters before the pods, so that who asked is in the list.
func readHTTP(ctx context.Context, from Counters, status Status, s *samples) error {
	c, err := from.HTTPCounters(ctx)
	if err != nil {
		return err
	}
	var pods map[uint64]*apiv1.Pod
	if status != nil {
		list, err := status.Pods(ctx)
		if err != nil {
			return err
		}
		pods = make(map[uint64]*apiv1.Pod)
		for _, p := range list.GetPods() {
			// Of two attachments of one pod the record of one may be gone.
			if pods[p.NetnsCookie].GetName() == "" {
				pods[p.NetnsCookie] = p
			}
		}
	}
	for _, e := range c.Events {
		s.add(events, float64(e.Count), e.Event.String())
	}
	for i := range c.Requests {
		r := &c.Requests[i]
		pod, ok := pods[r.Pod]
		if pods != nil && !ok {
			// The pod has gone, and its series with it: what it asked for would look
			// like new requests of another source.
			continue
		}
		labels := labelsOf(r, pod)
		s.add(requests, float64(r.Count), labels...)
		s.observe(durations, float64(r.Duration)/1e6, r.Buckets[:], labels...)
	}
	return nil
}

// labelsOf returns the values of requestLabels.
func labelsOf(r *publish.Request, pod *apiv1.Pod) []string {
	workload, namespace := unknown, unknown
	if pod.GetName() != "" {
		workload, namespace = pod.GetName(), pod.GetNamespace()
	}
	service, name, of := destination(r)
	return []string{
		"source", workload, namespace, service, name, of,
		"http", strconv.Itoa(int(r.Status)), responseFlags(r), "none", r.Route,
	}
}

// destination names the service that was asked. Istio calls a service's cluster
// "outbound|port|subset|host"; another cluster goes by its own name, and what the
// program answered by the name of the service.
func destination(r *publish.Request) (service, name, namespace string) {
	service = r.Cluster
	if service == "" {
		service = r.Service
	}
	if parts := strings.Split(service, "|"); len(parts) == 4 && parts[0] == "outbound" && parts[3] != "" {
		service = parts[3]
	}
	if labels := strings.Split(service, "."); len(labels) >= 3 && labels[2] == "svc" {
		return service, labels[0], labels[1]
	}
	return service, service, unknown
}

// responseFlags are Envoy's. The program answers 404 by itself only where no route
// matched, else a route asked for it; of its 503s only the status is known.
func responseFlags(r *publish.Request) string {
	switch {
	case r.Local && r.Status == 404 && r.Route == "":
		return "NR"
	case r.Local && r.Status == 503:
		return "UH"
	}
	return "-"
}
