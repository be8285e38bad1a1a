// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"testing"

	"kmesh/test/istiod/control"
)

// scopesRoutes are routes that depend on who asks.
const scopesRoutes = `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog.shop.svc.cluster.local]
  http:
  - name: gold
    match: [{sourceLabels: {tier: gold}, uri: {prefix: /gold/}}]
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - name: blue
    match: [{sourceNamespace: blue, uri: {prefix: /blue/}}]
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v2}}]
  - name: rest
    route: [{destination: {host: catalog.shop.svc.cluster.local, subset: v1}}]
`

// A scope for each namespace, labels and service account: pods of one node that ask the same get different answers, each
// as istiod evaluates it for the one that asks.
func TestScopes(t *testing.T) {
	b := newBed(t)
	b.world()
	if err := b.c.EnsureNamespace(b.ctx, "blue"); err != nil {
		t.Fatal(err)
	}
	b.apply(scopesRoutes + egress("blue", "shop/catalog.shop.svc.cluster.local"))
	b.startHelper(b.perPods()...)
	gold := b.client("red", "gold", control.PodOptions{Labels: labels{"tier": "gold"}, Account: "red"})
	iron := b.client("red", "iron", control.PodOptions{Labels: labels{"tier": "iron"}, Account: "red"})
	blue := b.client("blue", "blue", control.PodOptions{Labels: labels{"tier": "iron"}, Account: "blue"})

	forGold := request{at: catalogAt, host: catalogHost, path: "/gold/x"}
	forBlue := request{at: catalogAt, host: catalogHost, path: "/blue/x"}
	b.want(gold, forGold, "catalog-v2")
	b.want(gold, forBlue, "catalog-v1")
	b.want(iron, forGold, "catalog-v1")
	b.want(iron, forBlue, "catalog-v1")
	b.want(blue, forGold, "catalog-v1")
	b.want(blue, forBlue, "catalog-v2")

	// The Sidecar resource is about its own namespace only.
	b.want(gold, payRequest, "other")
	b.want(iron, payRequest, "other")
	b.refused(blue, payRequest)

	// What a pod's labels ask for follows them.
	if err := b.c.Label(b.ctx, iron, labels{"tier": "gold"}); err != nil {
		t.Fatal(err)
	}
	b.want(iron, forGold, "catalog-v2")
	b.want(gold, forGold, "catalog-v2")
	b.healthy()
}
