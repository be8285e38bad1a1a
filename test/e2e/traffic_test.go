// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	_ "embed"
	"strings"
	"text/template"

	core "k8s.io/api/core/v1"

	"kmesh/test/e2e/ask"
)

// The services' addresses. Nothing is there but what the mesh says.
const (
	vipL4 = "10.96.0.10"
	vipL7 = "10.96.0.11"
)

//go:embed mesh.yaml
var meshText string

var meshTemplate = template.Must(template.New("mesh").Parse(meshText))

// mesh is an xDS file over two servers.
func (b *bed) mesh(v1, v2 string) string {
	b.Helper()
	var w strings.Builder
	if err := meshTemplate.Execute(&w, map[string]any{
		"L4": vipL4, "L7": vipL7, "Endpoints": map[string]string{"v1": v1, "v2": v2},
	}); err != nil {
		b.Fatal(err)
	}
	return w.String()
}

// servers are the pods of the mesh's two clusters, which do not opt in.
func (b *bed) servers() []*core.Pod {
	return b.waitReady(b.create(b.spec("v1", nil)), b.create(b.spec("v2", nil)))
}

// checkTraffic has a governed pod use both services, and one that is not try.
func (b *bed) checkTraffic(governed, plain *core.Pod) {
	b.Helper()
	// By connection, and the client sees the service's address.
	const n = 20
	a := b.ask(governed, ask.Question{URL: "http://" + vipL4 + "/", N: n})
	if a.Failed() > 0 || a.Servers["v1"]+a.Servers["v2"] != n || a.Servers["v1"] == 0 || a.Servers["v2"] == 0 || a.Peers[vipL4+":80"] != n {
		b.Errorf("%d connections to the L4 service: %+v, want both servers, and the service as the peer", n, a)
	}
	b.checkRequests(governed)
	if a := b.ask(plain, ask.Question{URL: "http://" + vipL4 + "/", N: 1, Timeout: 1e9}); a.Failed() != 1 {
		b.Errorf("a pod that did not opt in reached a service's address: %+v", a)
	}
}

// checkRequests looks at routes by request.
func (b *bed) checkRequests(governed *core.Pod) {
	b.Helper()
	url := "http://" + vipL7 + "/"
	if a := b.ask(governed, ask.Question{URL: url, N: 10, KeepAlive: true}); a.Servers["v1"] != 10 || a.Connections != 1 {
		b.Errorf("10 requests over one connection: %+v, want v1 for all", a)
	}
	tester := map[string]string{"end-user": "tester"}
	if a := b.ask(governed, ask.Question{URL: url, N: 10, Header: tester}); a.Servers["v2"] != 10 {
		b.Errorf("10 requests of a tester: %+v, want v2 for all", a)
	}
	if a := b.ask(governed, ask.Question{URL: url + "basket", N: 1}); a.Statuses[301] != 1 {
		b.Errorf("a request for what has moved: %+v, want 301", a)
	}
}
