// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"testing"
	"time"

	"kmesh/test/istiod/control"
	"kmesh/test/node/wire"
)

// policy says whether the pods of a namespace may reach what the mesh does not know.
func policy(namespace, mode string) string {
	return `---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: ` + namespace + `}
spec: {outboundTrafficPolicy: {mode: ` + mode + `}}
`
}

// With REGISTRY_ONLY a pod reaches the mesh and itself, and nothing else by TCP; it is reached as ever.
func TestRegistryOnly(t *testing.T) {
	b := newBed(t)
	b.world()
	stray := b.outside("stray") // not "beyond", which a ServiceEntry knows
	b.startHelper()
	client := b.client("web", "client", control.PodOptions{})
	b.serve(client)
	b.answered(client)

	unknown := request{at: fmt.Sprintf("%s:%d", stray.IP4, serverPort), host: "stray"}
	always := func(when string) {
		t.Helper()
		for _, tt := range []struct {
			q    request
			want string
		}{
			{request{at: catalogAt, host: catalogHost, path: "/api/x"}, "catalog-v2"},
			{payRequest, "other"},
			{request{at: newsIP + ":8081", host: "news.shop"}, "other"},
			{request{at: archiveIP + ":5432", host: "archive.example.com"}, "beyond"},
			{request{at: fmt.Sprintf("127.0.0.1:%d", serverPort), host: "localhost"}, "client"},
			{request{at: fmt.Sprintf("%s:%d", client.IP4, serverPort), host: "itself"}, "client"},
		} {
			if got := b.ask(client, tt.q); got != tt.want {
				t.Errorf("%s: %s: got %q, want %q", when, tt.q, got, tt.want)
			}
		}
		if got := b.ask(stray, request{at: fmt.Sprintf("%s:%d", client.IP4, serverPort), host: "client"}); got != "client" {
			t.Errorf("%s: who asks the pod gets %q", when, got)
		}
		// No datagram is sent, and none would be refused later that is not here.
		res, err := client.Dial(b.ctx, wire.Dial{Network: wire.UDP, Addr: fmt.Sprintf("%s:53", stray.IP4), Silent: true, Timeout: time.Second})
		if err != nil || res.Errno != "" {
			t.Errorf("%s: UDP to what the mesh does not know: %s %s, %v", when, res.Call, res.Errno, err)
		}
	}
	b.want(client, unknown, "stray")
	always("by default")
	for range 2 {
		b.apply(policy(control.HelperNamespace, "REGISTRY_ONLY"))
		b.want(client, unknown, "connect ECONNREFUSED")
		always("with REGISTRY_ONLY")
		b.apply(policy(control.HelperNamespace, "ALLOW_ANY"))
		b.want(client, unknown, "stray")
		always("with ALLOW_ANY")
	}
	b.healthy()
}
