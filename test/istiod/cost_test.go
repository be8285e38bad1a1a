// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kmesh/test/istiod/control"
	"kmesh/test/node"
)

// What a scope costs istiod, which is told and not judged: when it is opened, and when routes change that all have. That
// each is led by the change is.
func TestScopesCost(t *testing.T) {
	const scopes, services = 16, 200
	b := newBed(t)
	b.world()
	var more strings.Builder
	for i := range services {
		fmt.Fprintf(&more, `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far-%d, namespace: shop}
spec:
  hosts: [far-%d.example.com]
  addresses: [240.9.0.%d]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 240.10.0.%d}]
`, i, i, i+1, i+1)
	}
	b.apply(more.String())
	b.startHelper(b.perPods()...)
	cpu := func() time.Duration {
		used, err := b.c.IstiodCPU()
		if err != nil {
			t.Fatal(err)
		}
		return used
	}
	// The first is not counted: with it come the identity and the connection of its namespace.
	pods := append([]*node.Pod(nil), b.client("red", "first", control.PodOptions{Labels: labels{"tier": "first"}, Account: "red"}))
	b.want(pods[0], request{at: catalogAt, host: catalogHost, path: "/"}, "catalog-v1")
	before := cpu()
	for i := range scopes {
		p := b.client("red", fmt.Sprintf("tier-%d", i), control.PodOptions{Labels: labels{"tier": fmt.Sprint(i)}, Account: "red"})
		b.want(p, request{at: catalogAt, host: catalogHost, path: "/"}, "catalog-v1")
		pods = append(pods, p)
	}
	opened := cpu()
	b.apply(catalogRoutes(0, 100))
	for _, p := range pods {
		b.want(p, request{at: catalogAt, host: catalogHost, path: "/"}, "catalog-v2")
	}
	changed := cpu()
	t.Logf("istiod with %d services more: %.1f ms of CPU to open each of %d scopes (its pod in the API server with it), %.1f ms for each of %d when a route changes",
		services, float64((opened-before).Microseconds())/1000/scopes, scopes, float64((changed-opened).Microseconds())/1000/float64(len(pods)), len(pods))
	b.healthy()
}
