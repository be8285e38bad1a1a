// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// took is requests in single buckets.
func took(ns uint64, buckets ...int) (s bpf.RequestStats) {
	s.Duration = ns
	for _, b := range buckets {
		s.Count++
		s.Buckets[b]++
	}
	return s
}

func TestBounds(t *testing.T) {
	if len(bounds)+1 != bpf.Buckets {
		t.Errorf("%d bounds for %d buckets", len(bounds), bpf.Buckets)
	}
	if !slices.IsSorted(bounds[:]) {
		t.Errorf("not in order: %v", bounds)
	}
}

func TestRequests(t *testing.T) {
	reviews := "outbound|9080|v1|reviews.shop.svc.cluster.local"
	f := full()
	f.pods = &apiv1.PodsResponse{Pods: []*apiv1.Pod{
		{NetnsCookie: 7}, {NetnsCookie: 7, Namespace: "shop", Name: "web"}, {NetnsCookie: 7}, {NetnsCookie: 8},
	}}
	f.http.Requests = []publish.Request{
		// Two scopes and two ports of one service are one series.
		{Pod: 7, Service: "a", Cluster: reviews, Route: "a|v/r", Status: 200, RequestStats: took(2e6, 0, 2)},
		{Pod: 7, Scope: "s", Service: "b", Cluster: strings.ReplaceAll(reviews, "v1", "v2"), Route: "a|v/r", Status: 200, RequestStats: took(4e12, 2, 19)},
		{Pod: 8, Service: "a", Cluster: "v1", Status: 0, RequestStats: took(500_000, 18)},
		{Pod: 9, Service: "a", Cluster: "v1", Status: 200, RequestStats: took(1, 0)}, // has gone
	}
	var want []string
	labels := func(source, service, status, route, more string) string {
		return `{connection_security_policy="none",` + service + `,kmesh_route="` + route + `"` + more +
			`,reporter="source",request_protocol="http",response_code="` + status + `",response_flags="-",` + source + `}`
	}
	add := func(source, service, status, route, total, sum string, cumulative [20]string) {
		want = append(want, "istio_requests_total"+labels(source, service, status, route, "")+" "+total,
			"istio_request_duration_milliseconds_count"+labels(source, service, status, route, "")+" "+total,
			"istio_request_duration_milliseconds_sum"+labels(source, service, status, route, "")+" "+sum)
		for i, le := range []string{"0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500", "5000",
			"10000", "30000", "60000", "300000", "600000", "1.8e+06", "3.6e+06", "+Inf"} {
			// The exposition puts le last.
			l := labels(source, service, status, route, "")
			want = append(want, "istio_request_duration_milliseconds_bucket"+l[:len(l)-1]+`,le="`+le+`"} `+cumulative[i])
		}
	}
	add(`source_workload="web",source_workload_namespace="shop"`,
		`destination_service="reviews.shop.svc.cluster.local",destination_service_name="reviews",destination_service_namespace="shop"`,
		"200", "a|v/r", "4", "4.000002e+06",
		[20]string{"1", "1", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "3", "4"})
	add(`source_workload="unknown",source_workload_namespace="unknown"`,
		`destination_service="v1",destination_service_name="v1",destination_service_namespace="unknown"`,
		"0", "", "1", "0.5",
		[20]string{"0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "1", "1"})
	slices.Sort(want)
	if got := scrapeOf(t, newProbe(f), "istio_"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRequestLabels(t *testing.T) {
	tests := []struct {
		name string
		r    publish.Request
		want []string // service, its name, its namespace, flags
	}{
		{"a cluster of Istio's", publish.Request{Cluster: "outbound|80||a.b.svc.cluster.local", Status: 503}, []string{"a.b.svc.cluster.local", "a", "b", "-"}},
		{"an external host", publish.Request{Cluster: "outbound|80||www.example.org", Status: 404}, []string{"www.example.org", "www.example.org", "unknown", "-"}},
		{"no host", publish.Request{Cluster: "outbound|80||"}, []string{"outbound|80||", "outbound|80||", "unknown", "-"}},
		{"another cluster", publish.Request{Cluster: "inbound|80||a.b"}, []string{"inbound|80||a.b", "inbound|80||a.b", "unknown", "-"}},
		{"no route", publish.Request{Service: "web", Status: 404, Local: true}, []string{"web", "web", "unknown", "NR"}},
		{"a direct response", publish.Request{Service: "web", Route: "r", Status: 404, Local: true}, []string{"web", "web", "unknown", "-"}},
		{"no endpoint", publish.Request{Service: "web", Route: "r", Status: 503, Local: true}, []string{"web", "web", "unknown", "UH"}},
		{"a redirect", publish.Request{Service: "web", Route: "r", Status: 301, Local: true}, []string{"web", "web", "unknown", "-"}},
	}
	for _, tt := range tests {
		service, name, namespace := destination(&tt.r)
		if got := []string{service, name, namespace, responseFlags(&tt.r)}; !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Without one of its two sources nothing of HTTP is shown, and the rest is.
func TestHTTPUnreadable(t *testing.T) {
	for name, change := range map[string]func(*fake){
		"counters": func(f *fake) { f.httpErr = errors.New("no map") },
		"pods":     func(f *fake) { f.podsErr = errors.New("no bpffs") },
	} {
		f := full()
		change(f)
		p := newProbe(f)
		if got := scrapeOf(t, p, "istio_"); len(got) > 0 {
			t.Errorf("%s: %q", name, got)
		}
		got := scrape(t, p)
		if want := `kmesh_scrape_errors_total{source="http"} 2`; !slices.Contains(got, want) {
			t.Errorf("%s: no line %s", name, want)
		}
		if want := `kmesh_config_generation 12`; !slices.Contains(got, want) {
			t.Errorf("%s: no line %s", name, want)
		}
	}
}
