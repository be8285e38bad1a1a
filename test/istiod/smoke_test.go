// SPDX-License-Identifier: Apache-2.0

package istiod

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"kmesh/test/istiod/control"
)

// The control plane itself, without Kmesh: what the other tests stand on.
func TestIstiodServes(t *testing.T) {
	b := newBed(t)
	catalog := b.server("shop", "catalog-1", labels{"app": "catalog"})
	b.apply(service("shop", "catalog", "10.79.0.20", "http", 80, catalog))
	const cluster = "outbound|80||catalog.shop.svc.cluster.local"
	look := func() error {
		v, err := b.c.View(b.ctx, control.HelperID(), control.HelperMetadata())
		if err != nil {
			return err
		}
		if v.Clusters[cluster] == nil || v.Listeners["0.0.0.0_80"] == nil || v.Routes["80"] == nil {
			return fmt.Errorf("clusters\n%s\nlisteners\n%s\nroutes\n%s", control.Names(v.Clusters), control.Names(v.Listeners), control.Names(v.Routes))
		}
		at := v.Endpoints[cluster].GetEndpoints()
		if len(at) != 1 || at[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress() != catalog.IP4.String() {
			return fmt.Errorf("endpoints %v, want %s", at, catalog.IP4)
		}
		return nil
	}
	b.until("istiod serves a service", look)

	// Who has the right token but announces another namespace is refused: the check of identities is on.
	_, err := b.c.View(b.ctx, control.NodeID("shop", "catalog-1", catalog.IP4), map[string]string{"NAMESPACE": "shop"})
	if err == nil || !strings.Contains(err.Error(), "authorization failed") {
		t.Errorf("asking as another namespace: %v, want it refused", err)
	}

	b.c.StopIstiod()
	if err := look(); err == nil {
		t.Error("istiod serves after its end")
	}
	before, err := os.ReadFile(b.c.Roots)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.c.StartIstiod(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.until("istiod serves again", look)
	if after, err := os.ReadFile(b.c.Roots); err != nil || string(after) != string(before) {
		t.Errorf("istiod has another root certificate after a restart (%v)", err)
	}
}
