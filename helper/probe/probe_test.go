// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/publish"
)

// fake holds what there is to read.
type fake struct {
	counters publish.Counters
	http     publish.HTTPCounters
	status   *apiv1.StatusResponse
	pods     *apiv1.PodsResponse

	countersErr, httpErr, statusErr, podsErr error
}

func (f *fake) Counters(context.Context) (publish.Counters, error) { return f.counters, f.countersErr }

func (f *fake) Status(context.Context) (*apiv1.StatusResponse, error) { return f.status, f.statusErr }

func (f *fake) HTTPCounters(context.Context) (publish.HTTPCounters, error) { return f.http, f.httpErr }

func (f *fake) Pods(context.Context) (*apiv1.PodsResponse, error) { return f.pods, f.podsErr }

func full() *fake {
	return &fake{
		counters: publish.Counters{
			Uses: []publish.Use{
				{Service: "echo", Cluster: "v1", Active: 3, Stats: bpf.Stats{
					Opened: 5, Closed: 2, Failed: 1, Sent: 5 << 32, Received: 7, Flows: 8, Passed: 9,
				}},
				{Scope: "shop/web/", Service: "echo", Cluster: "v1", Stats: bpf.Stats{Opened: 6}},
			},
			Refusals: []publish.Refusal{{Service: "echo", Reason: 1, Count: 4}},
		},
		http: publish.HTTPCounters{
			Requests: []publish.Request{{Pod: 7, Cluster: "v1", Status: 200, RequestStats: took(2e6, 2)}},
			Events:   []publish.EventCount{{Event: 0, Count: 5}, {Event: 14}},
		},
		pods: &apiv1.PodsResponse{Pods: []*apiv1.Pod{{NetnsCookie: 7, Namespace: "shop", Name: "web"}}},
		status: &apiv1.StatusResponse{
			Generation: 12,
			Xds:        &apiv1.Xds{Connected: true, LastUpdateUnixSeconds: 1700000000},
			Scopes:     []*apiv1.Scope{{Live: true, Xds: &apiv1.Xds{Connected: true, LastUpdateUnixSeconds: 1600000000, FromDiskUnixSeconds: 1500000000}}},
			Problems:   []*apiv1.Verdict{{Class: "invalid"}},
			Verdicts:   []*apiv1.Verdict{{Class: "not-enforced"}, {Class: "not-enforced"}},
			Maps:       []*apiv1.Map{{Name: "km_endpoints", Entries: 3, Capacity: 200000}},
			Pods:       &apiv1.PodCounts{Live: 2, LinksLive: 22, LinksSevered: 1, Draining: 3},
			Kubernetes: &apiv1.Kubernetes{Synced: true, Plans: []*apiv1.PodPlan{{Name: "a"}, {Name: "b", Policies: []string{"shop/deny", "shop/lock"}}}},
		},
	}
}

func newProbe(f *fake) *Probe {
	return New(Options{Counters: f, Status: f, Version: "v1"})
}

// scrape returns the lines of our metrics, sorted.
func scrape(t *testing.T, p *Probe) []string {
	t.Helper()
	return scrapeOf(t, p, "kmesh_")
}

func scrapeOf(t *testing.T, p *Probe, prefix string) []string {
	t.Helper()
	w := httptest.NewRecorder()
	p.Handler(func() error { return nil }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var lines []string
	for s := bufio.NewScanner(w.Body); s.Scan(); {
		if strings.HasPrefix(s.Text(), prefix) {
			lines = append(lines, s.Text())
		}
	}
	slices.Sort(lines)
	return lines
}

func TestMetrics(t *testing.T) {
	p := newProbe(full())
	p.Swept("link", 2)
	p.Swept("link", 1)
	p.Swept("pod", 0)
	p.Did("drift_repaired", 2)
	want := strings.Split(strings.TrimSpace(`
kmesh_active_connections{cluster="v1",scope="",service="echo"} 3
kmesh_active_connections{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_api_server_connected 1
kmesh_build_info{version="v1"} 1
kmesh_config_errors 1
kmesh_config_from_disk_timestamp_seconds 1.5e+09
kmesh_config_generation 12
kmesh_http_events_total{event="flow"} 5
kmesh_http_events_total{event="rejected"} 0
kmesh_links{state="live"} 22
kmesh_links{state="severed"} 1
kmesh_map_capacity{map="km_endpoints"} 200000
kmesh_map_entries{map="km_endpoints"} 3
kmesh_passed_total{cluster="v1",scope="",service="echo"} 9
kmesh_passed_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_pod_actions_total{action="drift_repaired"} 2
kmesh_pod_actions_total{action="enroll_failed"} 0
kmesh_pod_actions_total{action="late_enrolled"} 0
kmesh_pod_actions_total{action="released"} 0
kmesh_pods_kept_out 1
kmesh_pods_unsettled 2
kmesh_pods{state="draining"} 3
kmesh_pods{state="drift"} 0
kmesh_pods{state="live"} 2
kmesh_pods{state="severed"} 0
kmesh_refused_total{reason="no_endpoint",scope="",service="echo"} 4
kmesh_scopes{state="live"} 1
kmesh_scopes{state="waiting"} 0
kmesh_scrape_errors_total{source="counters"} 0
kmesh_scrape_errors_total{source="http"} 0
kmesh_scrape_errors_total{source="status"} 0
kmesh_swept_total{kind="link"} 3
kmesh_tcp_connections_closed_total{cluster="v1",scope="",service="echo"} 2
kmesh_tcp_connections_closed_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_tcp_connections_failed_total{cluster="v1",scope="",service="echo"} 1
kmesh_tcp_connections_failed_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_tcp_connections_opened_total{cluster="v1",scope="",service="echo"} 5
kmesh_tcp_connections_opened_total{cluster="v1",scope="shop/web/",service="echo"} 6
kmesh_tcp_received_bytes_total{cluster="v1",scope="",service="echo"} 7
kmesh_tcp_received_bytes_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_tcp_sent_bytes_total{cluster="v1",scope="",service="echo"} 2.147483648e+10
kmesh_tcp_sent_bytes_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_udp_flows_total{cluster="v1",scope="",service="echo"} 8
kmesh_udp_flows_total{cluster="v1",scope="shop/web/",service="echo"} 0
kmesh_verdicts{class="invalid"} 1
kmesh_verdicts{class="not-enforced"} 2
kmesh_verdicts{class="unsupported-condition"} 0
kmesh_xds_connected 1
kmesh_xds_last_update_timestamp_seconds 1.6e+09
`), "\n")
	if got := scrape(t, p); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Names and types follow Prometheus' rules: what ends in _total is a counter and
// nothing else is.
func TestLint(t *testing.T) {
	p := newProbe(full())
	p.Swept("link", 1)
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		// Istio's name, which its dashboards know.
		if problem.Metric == "istio_request_duration_milliseconds" && strings.Contains(problem.Text, "base unit") {
			continue
		}
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	seen := 0
	for _, family := range families {
		name := family.GetName()
		if !strings.HasPrefix(name, "kmesh_") && !strings.HasPrefix(name, "istio_") {
			continue
		}
		seen++
		isCounter := family.GetType() == dto.MetricType_COUNTER
		if strings.HasSuffix(name, "_total") != isCounter {
			t.Errorf("%s is a %v", name, family.GetType())
		}
	}
	if want := len(all) + 3; seen != want {
		t.Errorf("%d families of ours, want %d", seen, want)
	}
}

func TestAwkwardSources(t *testing.T) {
	tests := []struct {
		name   string
		change func(*fake)
		want   []string // these lines
		absent []string // no line begins with these
	}{
		{"a counter beyond 32 bits", func(f *fake) { f.counters.Uses[0].Sent = math.MaxUint32 + 1 },
			[]string{`kmesh_tcp_sent_bytes_total{cluster="v1",scope="",service="echo"} 4.294967296e+09`}, nil},
		{"the largest counter", func(f *fake) { f.counters.Uses[0].Sent = math.MaxUint64 },
			[]string{`kmesh_tcp_sent_bytes_total{cluster="v1",scope="",service="echo"} 1.8446744073709552e+19`}, nil},
		{"two with the same labels", func(f *fake) { f.counters.Uses[1].Scope = "" },
			[]string{`kmesh_tcp_connections_opened_total{cluster="v1",scope="",service="echo"} 11`}, nil},
		{"a name cut inside a rune", func(f *fake) { f.counters.Refusals[0].Service = "caf\xc3" },
			[]string{`kmesh_refused_total{reason="no_endpoint",scope="",service="caf` + "\uFFFD" + `"} 4`}, nil},
		{"counters unreadable", func(f *fake) { f.countersErr = errors.New("no map") },
			[]string{`kmesh_scrape_errors_total{source="counters"} 1`, `kmesh_map_entries{map="km_endpoints"} 3`},
			[]string{"kmesh_tcp_", "kmesh_active_connections", "kmesh_refused_total"}},
		{"status unreadable", func(f *fake) { f.status, f.statusErr = nil, errors.New("no map") },
			[]string{`kmesh_scrape_errors_total{source="status"} 1`, `kmesh_refused_total{reason="no_endpoint",scope="",service="echo"} 4`},
			[]string{"kmesh_map_", "kmesh_pods", "kmesh_config_"}},
		{"an empty status", func(f *fake) { f.status = &apiv1.StatusResponse{} },
			[]string{`kmesh_config_generation 0`, `kmesh_pods{state="live"} 0`, `kmesh_xds_connected 0`}, nil},
		{"API server away", func(f *fake) { f.status.Kubernetes.Problem = "refused" }, []string{`kmesh_api_server_connected 0`}, nil},
		{"no API server", func(f *fake) { f.status.Kubernetes = nil }, nil, []string{"kmesh_api_server_connected", "kmesh_pods_unsettled", "kmesh_pods_kept_out"}},
		{"of two scopes one is away", func(f *fake) {
			f.status.Xds = nil
			f.status.Scopes = []*apiv1.Scope{
				{Live: true, Xds: &apiv1.Xds{Connected: true, LastUpdateUnixSeconds: 1700000000}},
				{Xds: &apiv1.Xds{LastUpdateUnixSeconds: 1600000000}},
			}
		}, []string{`kmesh_xds_connected 0`, `kmesh_xds_last_update_timestamp_seconds 1.6e+09`, `kmesh_scopes{state="live"} 1`, `kmesh_scopes{state="waiting"} 1`}, nil},
		{"two scopes", func(f *fake) {
			f.status.Xds = nil
			f.status.Scopes = []*apiv1.Scope{{Live: true, Xds: &apiv1.Xds{Connected: true}}, {Live: true, Xds: &apiv1.Xds{Connected: true}}}
		}, []string{`kmesh_xds_connected 1`, `kmesh_scopes{state="live"} 2`, `kmesh_scopes{state="waiting"} 0`}, nil},
		{"not connected", func(f *fake) { f.status.Xds.Connected = false }, []string{`kmesh_xds_connected 0`}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := full()
			tt.change(f)
			got := scrape(t, newProbe(f))
			for _, line := range tt.want {
				if !slices.Contains(got, line) {
					t.Errorf("no line %s in\n%s", line, strings.Join(got, "\n"))
				}
			}
			for _, prefix := range tt.absent {
				if slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, prefix) }) {
					t.Errorf("a line begins with %s in\n%s", prefix, strings.Join(got, "\n"))
				}
			}
		})
	}
}

// A source that hangs is left at its time limit.
func TestScrapeIsBounded(t *testing.T) {
	p := New(Options{Counters: hanging{}, Timeout: 10 * time.Millisecond})
	got := scrape(t, p)
	if want := `kmesh_scrape_errors_total{source="counters"} 1`; !slices.Contains(got, want) {
		t.Errorf("no line %s in %q", want, got)
	}
}

type hanging struct{}

func (hanging) Counters(ctx context.Context) (publish.Counters, error) {
	<-ctx.Done()
	return publish.Counters{}, ctx.Err()
}

func (hanging) HTTPCounters(ctx context.Context) (publish.HTTPCounters, error) {
	<-ctx.Done()
	return publish.HTTPCounters{}, ctx.Err()
}

func TestConcurrentScrapes(t *testing.T) {
	f := full()
	f.statusErr = errors.New("no map")
	p := newProbe(f)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				p.Swept("link", 1)
				if _, err := p.Registry().Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if want := `kmesh_scrape_errors_total{source="status"} 161`; !slices.Contains(scrape(t, p), want) {
		t.Errorf("no line %s", want)
	}
}

func TestServer(t *testing.T) {
	var notReady atomic.Pointer[error]
	reason := errors.New("no snapshot has been published yet")
	notReady.Store(&reason)
	handler := newProbe(full()).Handler(func() error {
		if err := notReady.Load(); err != nil {
			return *err
		}
		return nil
	})
	s, err := Listen("127.0.0.1:0", handler, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	client := &http.Client{Timeout: 10 * time.Second}
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get(fmt.Sprintf("http://%s%s", s.Addr(), path))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	check := func(path string, code int, want string) {
		t.Helper()
		if got, body := get(path); got != code || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200q, want %d with %q", path, got, body, code, want)
		}
	}
	check("/healthz", 200, "ok")
	check("/readyz", 503, "no snapshot has been published yet")
	notReady.Store(nil)
	check("/readyz", 200, "ok")
	check("/metrics", 200, "kmesh_config_generation 12")
	check("/metrics", 200, "process_resident_memory_bytes")
	check("/debug/pprof/", 404, "")

	if _, err := Listen(s.Addr().String(), handler, nil); err == nil || !strings.Contains(err.Error(), "--metrics") {
		t.Errorf("a second server on the same address: %v, want an error that names the flag", err)
	}
	began := time.Now()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
}
