// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"kmesh/test/istiod/control"
	"kmesh/test/node"
)

// The services of the tests.
const (
	catalogIP = "10.79.0.20" // http, with a VirtualService
	payIP     = "10.79.0.21" // by connection
	newsIP    = "10.79.0.22" // by what it is heard to speak
	quoteIP   = "10.79.0.23" // http, with an HTTPRoute
	quote2IP  = "10.79.0.24"
	partnerIP = "10.79.1.10" // outside: http
	archiveIP = "10.79.1.11" // outside: by connection
)

// catalogRoutes is a VirtualService of which the last route shares out.
func catalogRoutes(v1, v2 int) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog.shop.svc.cluster.local]
  http:
  - name: testers
    match: [{headers: {end-user: {exact: tester}}}]
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - name: api
    match: [{uri: {prefix: /api/}}]
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - name: orders
    match: [{uri: {regex: "/orders/[0-9]+"}}]
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - name: moved
    match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - name: main
    route:
    - {destination: {host: catalog.shop.svc.cluster.local, subset: v1}, weight: %d}
    - {destination: {host: catalog.shop.svc.cluster.local, subset: v2}, weight: %d}
`, v1, v2)
}

const catalogSubsets = `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog.shop.svc.cluster.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

// outsideServices are two services that are no pods of the cluster.
func outsideServices(p *node.Pod) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: shop}
spec:
  hosts: [partner.example.com]
  addresses: [%[1]s]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: %[4]d}]
  endpoints: [{address: %[3]s}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: archive, namespace: shop}
spec:
  hosts: [archive.example.com]
  addresses: [%[2]s]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: %[4]d}]
  endpoints: [{address: %[3]s}]
`, partnerIP, archiveIP, p.IP4, serverPort)
}

// quoteRoutes is what the Gateway API has for the same.
const quoteRoutes = `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: quote, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: quote, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /beta}}, {headers: [{name: x-beta, value: "yes"}]}]
    backendRefs: [{name: quote-2, port: 80}]
  - backendRefs: [{name: quote, port: 80}]
`

// world makes the servers and everything that is said about them.
func (b *bed) world() {
	b.Helper()
	v1 := b.server("shop", "catalog-v1", labels{"app": "catalog", "version": "v1"})
	v2 := b.server("shop", "catalog-v2", labels{"app": "catalog", "version": "v2"})
	other := b.server("shop", "other", labels{"app": "other"})
	beta := b.server("shop", "quote-beta", labels{"app": "quote-2"})
	b.apply(service("shop", "catalog", catalogIP, "http", 80, v1, v2) +
		service("shop", "pay", payIP, "tcp", 9000, other) +
		service("shop", "news", newsIP, "", 8081, other) +
		service("shop", "quote", quoteIP, "http", 80, other) +
		service("shop", "quote-2", quote2IP, "http", 80, beta) +
		outsideServices(b.outside("beyond")) + catalogSubsets + catalogRoutes(100, 0) + quoteRoutes)
}

const (
	catalogHost = "catalog.shop"
	catalogAt   = catalogIP + ":80"
)

// One scope: the node has the view of the helper's own namespace.
func TestTraffic(t *testing.T) {
	b := newBed(t)
	b.world()
	b.startHelper()
	client := b.client("web", "client", control.PodOptions{})

	b.run("requests", func(b *bed) {
		for _, tt := range []struct {
			name string
			q    request
			want string
		}{
			{"no rule", request{at: catalogAt, host: catalogHost, path: "/"}, "catalog-v1"},
			{"header", request{at: catalogAt, host: catalogHost, headers: labels{"end-user": "tester"}}, "catalog-v2"},
			{"another value", request{at: catalogAt, host: catalogHost, headers: labels{"end-user": "testers"}}, "catalog-v1"},
			{"prefix", request{at: catalogAt, host: catalogHost, path: "/api/x"}, "catalog-v2"},
			{"shorter than the prefix", request{at: catalogAt, host: catalogHost, path: "/api"}, "catalog-v1"},
			{"regex", request{at: catalogAt, host: catalogHost, path: "/orders/42"}, "catalog-v2"},
			{"regex, not all of it", request{at: catalogAt, host: catalogHost, path: "/orders/42/x"}, "catalog-v1"},
			{"redirect", request{at: catalogAt, host: catalogHost, path: "/old"}, "301 http://" + catalogHost + "/new"},
			{"host with everything", request{at: catalogAt, host: catalogHost + ".svc.cluster.local:80", path: "/api/x"}, "catalog-v2"},
			{"host is the address", request{at: catalogAt, host: catalogIP, path: "/api/x"}, "catalog-v2"},
			{"by connection", payRequest, "other"},
			{"by what it speaks", request{at: newsIP + ":8081", host: "news.shop"}, "other"},
			{"outside, by request", request{at: partnerIP + ":80", host: "partner.example.com"}, "beyond"},
			{"outside, by connection", request{at: archiveIP + ":5432", host: "archive.example.com"}, "beyond"},
			{"HTTPRoute", request{at: quoteIP + ":80", host: "quote.shop"}, "other"},
			{"HTTPRoute, prefix", request{at: quoteIP + ":80", host: "quote.shop", path: "/beta/x"}, "quote-beta"},
			{"HTTPRoute, prefix by segment", request{at: quoteIP + ":80", host: "quote.shop", path: "/betax"}, "other"},
			{"HTTPRoute, header", request{at: quoteIP + ":80", host: "quote.shop", headers: labels{"x-beta": "yes"}}, "quote-beta"},
		} {
			b.run(tt.name, func(b *bed) { b.want(client, tt.q, tt.want) })
		}
	})
	b.run("one connection, many routes", func(b *bed) {
		conns, errno := b.conns(client, catalogAt)
		defer conns.CloseIdleConnections()
		for i := range 20 {
			path, want := "/", "catalog-v1"
			if i%2 == 1 {
				path, want = "/api/x", "catalog-v2"
			}
			if got := b.over(conns, errno, request{host: catalogHost, path: path}); got != want {
				b.Errorf("request %d for %s: %q, want %q", i, path, got, want)
			}
		}
	})
	b.run("weights", func(b *bed) { b.weights(client) })
	b.run("Sidecar", func(b *bed) { b.sidecar(client) })
	b.run("status", func(b *bed) { b.healthy() })
}

// weights follows a canary through its steps.
func (b *bed) weights(client *node.Pod) {
	q := request{at: catalogAt, host: catalogHost}
	b.apply(catalogRoutes(0, 100))
	b.want(client, q, "catalog-v2")
	b.apply(catalogRoutes(70, 30))
	b.want(client, q, "catalog-v1")
	const n = 400
	got := b.shares(client, q, n)
	// Four standard deviations: wrong once in 16000 runs.
	mean, deviation := 0.7*n, math.Sqrt(0.7*0.3*n)
	if v1 := float64(got["catalog-v1"]); math.Abs(v1-mean) > 4*deviation || got["catalog-v1"]+got["catalog-v2"] != n {
		b.Errorf("of %d requests: %v, want about %v of catalog-v1", n, got, mean)
	}
	b.apply(catalogRoutes(100, 0))
	b.until("the canary is over", func() error {
		if got := b.shares(client, q, 20); got["catalog-v1"] != 20 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
}

// egress is a Sidecar resource: all that the pods of a namespace may see.
func egress(namespace, hosts string) string {
	return `---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: ` + namespace + `}
spec: {egress: [{hosts: [` + hosts + `]}]}
`
}

// payRequest is for the service that is not routed by request.
var payRequest = request{at: payIP + ":9000", host: "pay.shop"}

// refused waits until a client cannot connect. What the mesh does not know goes where it is meant for, and there is
// nothing at a service's address.
func (b *bed) refused(client *node.Pod, q request) {
	b.Helper()
	b.until(client.Name+" cannot connect to "+q.at, func() error {
		if got := b.ask(client, q); !strings.HasPrefix(got, "connect ") {
			return fmt.Errorf("the answer is %q", got)
		}
		return nil
	})
}

// sidecar narrows what the scope's namespace may see, and widens it again.
func (b *bed) sidecar(client *node.Pod) {
	b.apply(egress(control.HelperNamespace, "shop/catalog.shop.svc.cluster.local"))
	b.refused(client, payRequest)
	b.want(client, request{at: catalogAt, host: catalogHost, path: "/api/"}, "catalog-v2")
	b.apply(egress(control.HelperNamespace, "shop/*"))
	b.want(client, payRequest, "other")
}
