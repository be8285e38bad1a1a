// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"testing"
	"time"

	"kmesh/test/istiod/control"
	"kmesh/test/node"
)

// istiod goes away, then the helper too, then both come back: traffic notices nothing, and changes flow again.
func TestOutage(t *testing.T) {
	b := newBed(t)
	b.world()
	b.startHelper()
	client := b.client("web", "client", control.PodOptions{})
	b.answered(client)

	// Requests on one connection go on through all of it.
	conns, errno := b.conns(client, catalogAt)
	defer conns.CloseIdleConnections()
	goesOn := func(when string) {
		t.Helper()
		for path, want := range map[string]string{"/": "catalog-v1", "/api/x": "catalog-v2"} {
			if got := b.over(conns, errno, request{host: catalogHost, path: path}); got != want {
				t.Errorf("%s, on an old connection: %s: got %q, want %q", when, path, got, want)
			}
			if got := b.ask(client, request{at: catalogAt, host: catalogHost, path: path}); got != want {
				t.Errorf("%s: %s: got %q, want %q", when, path, got, want)
			}
		}
		if got := b.ask(client, payRequest); got != "other" {
			t.Errorf("%s: pay: got %q", when, got)
		}
	}
	goesOn("before")

	b.c.StopIstiod()
	goesOn("without istiod")
	b.helper.Kill9()
	goesOn("without istiod and the helper")
	b.startHelper()
	goesOn("with a helper that never saw istiod")
	if late := b.client("web", "late", control.PodOptions{}); b.ask(late, request{at: catalogAt, host: catalogHost, path: "/api/x"}) != "catalog-v2" {
		t.Error("a pod that is made without istiod is not governed")
	}

	// What changes meanwhile is told when istiod is back.
	b.apply(catalogRoutes(0, 100))
	if got := b.ask(client, request{at: catalogAt, host: catalogHost}); got != "catalog-v1" {
		t.Errorf("without istiod a change arrives: %q", got)
	}
	if err := b.c.StartIstiod(b.ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.want(client, request{at: catalogAt, host: catalogHost}, "catalog-v2")
	t.Logf("what changed without istiod is in the kernel %s after istiod is ready again", time.Since(began).Round(10*time.Millisecond))
	b.apply(catalogRoutes(100, 0))
	b.want(client, request{at: catalogAt, host: catalogHost}, "catalog-v1")
	goesOn("afterwards")
	b.healthy()
}

// answered waits until the mesh is whole in the kernel.
func (b *bed) answered(client *node.Pod) {
	b.Helper()
	b.want(client, request{at: catalogAt, host: catalogHost, path: "/"}, "catalog-v1")
	b.want(client, request{at: catalogAt, host: catalogHost, path: "/api/x"}, "catalog-v2")
	b.want(client, payRequest, "other")
}

// healthy asks the helper whether it has rejected or left out anything of what istiod sends.
func (b *bed) healthy() {
	b.Helper()
	b.until("nothing is to be repaired", func() error {
		status, err := b.status()
		if err != nil {
			return err
		}
		if len(status.Problems) > 0 {
			return fmt.Errorf("to repair: %v", status.Problems)
		}
		return nil
	})
}
