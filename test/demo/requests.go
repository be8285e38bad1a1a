// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"kmesh/bpf"
	"kmesh/test/node"
)

// The shop: a service whose requests are routed one by one.
const shopHost = "shop.demo"

var shopVIP = netip.MustParseAddrPort("10.96.0.2:80")

// The health of an endpoint, in EDS.
const (
	healthy  = "HEALTHY"
	draining = "DRAINING"
)

// openShop starts the HTTP servers and publishes the service.
func (s *story) openShop(ctx context.Context) error {
	pods := map[string]*node.Pod{}
	for _, p := range s.n.Pods() {
		pods[p.Name] = p
	}
	s.shop = shop{Routes: 1, Endpoints: 1, VIP: shopVIP, Host: shopHost, Weights: [2]int{90, 10},
		Clusters: []cluster{{Name: "v1"}, {Name: "v2"}, {Name: "cart"}}}
	for _, e := range []struct {
		pod     string
		cluster int
	}{{"v1-a", 0}, {"v1-b", 0}, {"v2-a", 1}, {"v2-b", 1}, {"cart", 2}} {
		s.working("starting the HTTP server of %s", e.pod)
		p := pods[e.pod]
		if p == nil {
			var err error
			if p, err = s.n.AddPod(ctx, node.PodSpec{Name: e.pod}); err != nil {
				return err
			}
		}
		srv := &server{pod: p}
		if err := srv.start(ctx); err != nil {
			return err
		}
		c := &s.shop.Clusters[e.cluster]
		c.Endpoints = append(c.Endpoints, endpoint{srv.at(), healthy})
		if e.pod == "cart" {
			s.cart = srv
		} else {
			s.servers = append(s.servers, srv)
		}
	}
	_, err := s.publish(ctx, "the shop", s.shop.write)
	return err
}

// requests shows that each request of one connection goes where its own route says.
func (s *story) requests(ctx context.Context) error {
	if err := s.openShop(ctx); err != nil {
		return err
	}
	var err error
	if s.web, err = connect(ctx, s.client, shopVIP); err != nil {
		return err
	}
	s.title("HTTP: a new listener, %s at %s; one connection, five requests", shopHost, shopVIP)
	rows := [][]string{{"REQUEST", "ROUTE", "LEADS TO", "ANSWER", "BY"}}
	right := true
	for _, r := range []struct {
		request
		route  string
		leads  string
		status int
		by     []string // which servers; "": the kernel
	}{
		{request{shopHost, "/", ""}, "main", "v1 90 %, v2 10 %", http.StatusOK, []string{"v1-a", "v1-b", "v2-a", "v2-b"}},
		{request{shopHost, "/", "End-User: tester"}, "testers", "v2", http.StatusOK, []string{"v2-a", "v2-b"}},
		{request{shopHost, "/cart/7", ""}, "cart", "cart", http.StatusOK, []string{"cart"}},
		{request{shopHost, "/basket", ""}, "moved", "redirect to /cart", http.StatusMovedPermanently, []string{""}},
		{request{"nobody.demo", "/", ""}, "none", "", http.StatusNotFound, []string{""}},
	} {
		got, err := s.web.get(r.request)
		if err != nil {
			return fmt.Errorf("GET %s: %w", r.path, err)
		}
		by, location := got.Header.Get(headerServer), got.Header.Get("Location")
		right = right && got.StatusCode == r.status && !got.Close && slices.Contains(r.by, by) &&
			(r.status != http.StatusMovedPermanently || location == "http://"+shopHost+"/cart")
		asked := r.path
		if r.host != shopHost {
			asked = r.host + asked
		}
		if r.header != "" {
			asked += "  " + r.header
		}
		answer := got.Status
		if location != "" {
			answer += " " + location
		}
		if by == "" {
			by = "the kernel"
		}
		rows = append(rows, []string{asked, r.route, r.leads, answer, by})
	}
	s.table(rows...)
	s.claim(right, "each went where its own route says, all over the one connection from %s", s.web.LocalAddr())
	return nil
}

// grayRelease makes many requests on the one connection and compares who answered with the weights.
func (s *story) grayRelease(ctx context.Context) error {
	n := 3 * s.connections
	s.title("Gray release: %d requests on that one connection, each drawn by itself", n)
	counts, err := s.draw(ctx, n)
	if err != nil {
		return err
	}
	off := s.sigmas(counts, n)
	if off > 3 {
		// As chance has it once in 370 runs: a second sample tells it from a fault.
		s.printf("  that is %.1f standard deviations off: once more", off)
		if counts, err = s.draw(ctx, n); err != nil {
			return err
		}
		off = s.sigmas(counts, n)
	}
	s.claim(counts["v1"]+counts["v2"] == n, "all %d requests were answered, on one connection", n)
	s.claim(off <= 3, "90/10 within 3 standard deviations (%.1f off)", off)
	return nil
}

// draw makes n requests and shows who answered.
func (s *story) draw(ctx context.Context, n int) (map[string]int, error) {
	s.working("%d requests", n)
	counts := map[string]int{}
	for range n {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r, err := s.web.get(request{host: shopHost, path: "/"})
		if err != nil {
			return nil, fmt.Errorf("request %d: %w", counts["v1"]+counts["v2"]+1, err)
		}
		if by := r.Header.Get(headerServer); r.StatusCode == http.StatusOK && len(by) > 2 {
			counts[by[:2]]++
		}
	}
	for i, v := range []string{"v1", "v2"} {
		share := float64(counts[v]) / float64(n)
		s.printf("  %s  %s  %4.1f %%  %s of %d, expected %d", v, bar(share, 50), 100*share, strconv.Itoa(counts[v]), n, n*s.shop.Weights[i]/100)
	}
	return counts, nil
}

// sigmas is how many standard deviations the counts are off the weights.
func (s *story) sigmas(counts map[string]int, n int) float64 {
	p := float64(s.shop.Weights[0]) / 100
	return math.Abs(float64(counts["v1"])-float64(n)*p) / math.Sqrt(float64(n)*p*(1-p))
}

// failover puts an endpoint at which nobody listens into a cluster.
func (s *story) failover(ctx context.Context) error {
	const n = 20
	carts := &s.shop.Clusters[2]
	refusing := endpoint{netip.AddrPortFrom(s.servers[0].pod.IP4, 9), healthy}
	s.title("An endpoint that refuses: %s, where nobody listens, joins the cluster cart", refusing.Addr)
	whole := carts.Endpoints
	carts.Endpoints = append([]endpoint{refusing}, whole...)
	s.shop.Endpoints++
	if _, err := s.publish(ctx, "the endpoint that refuses", s.shop.write); err != nil {
		return err
	}
	before, err := s.refused()
	if err != nil {
		return err
	}
	counts := map[string]int{}
	for range n {
		c, err := connect(ctx, s.client, shopVIP)
		if err != nil {
			return err
		}
		r, err := c.get(request{host: shopHost, path: "/cart"})
		c.Close()
		if err != nil {
			return fmt.Errorf("GET /cart: %w", err)
		}
		counts[strconv.Itoa(r.StatusCode)+" of "+r.Header.Get(headerServer)]++
	}
	after, err := s.refused()
	if err != nil {
		return err
	}
	carts.Endpoints = whole
	s.shop.Endpoints++
	if _, err := s.publish(ctx, "the end of the endpoint that refuses", s.shop.write); err != nil {
		return err
	}
	s.claim(maps.Equal(counts, map[string]int{"200 of cart": n}), "%d connections, a request each: %s", n, tally(counts))
	s.claim(after > before, "the endpoint refused %d of them, as the kernel counted; they went on to the next one, and it was avoided from then on", after-before)
	return nil
}

// refused is how many connections to endpoints were refused so far, as the kernel counts.
func (s *story) refused() (n uint64, err error) {
	m, err := ebpf.LoadPinnedMap(bpf.MapPath(s.n.BPFFS, "km_events"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("the counters: %w", err)
	}
	defer m.Close()
	return n, m.Lookup(bpf.EventRefused, &n)
}

// tally is counts in words.
func tally(counts map[string]int) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%d times %s", counts[k], k))
	}
	return strings.Join(words, ", ")
}
