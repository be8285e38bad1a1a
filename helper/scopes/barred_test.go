// SPDX-License-Identifier: Apache-2.0

package scopes

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"kmesh/cni/optin"
	"kmesh/helper/mesh"
	"kmesh/helper/pods/plan"
	"kmesh/helper/translate/workload"
	"kmesh/helper/xds"
)

func TestBarred(t *testing.T) {
	at := func(last byte) []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})} }
	view := plan.View{Pods: []plan.Pod{
		{UID: "chosen", Namespace: "shop", Name: "chosen", Addrs: at(1), Labels: map[string]string{"app": "till"}},
		{UID: "other", Namespace: "shop", Name: "other", Addrs: at(2)},
		{UID: "anew", Namespace: "shop", Name: "anew", Addrs: at(9)},
		{UID: "strange", Namespace: "bank", Name: "strange", Addrs: at(4)},
	}}
	said := workload.Selection{
		Everywhere: []string{"root/lock"}, Namespaces: map[string][]string{"farm": {"farm/all"}}, Some: map[string][]string{"shop": {"shop/some"}},
		Local: map[string]workload.Selected{
			"shop/chosen": {Addrs: at(1), Policies: []string{"root/lock", "shop/some"}},
			"shop/other":  {Addrs: at(2)},
			"shop/anew":   {Addrs: at(3), Policies: []string{"shop/some"}}, // of the pod before it
		},
	}
	api := func() (workload.Selection, bool) { return said, true }
	silent := func() (workload.Selection, bool) { return workload.Selection{}, false }
	till := KeyOf("shop", "", map[string]string{"app": "till"})
	inbound := func(key mesh.ScopeKey) ([]string, bool) {
		switch key {
		case till:
			return []string{"shop/rbac"}, true
		case mesh.ScopeKey{}:
			return []string{"root/rbac"}, true
		}
		return nil, false
	}
	nobody := func(mesh.ScopeKey) ([]string, bool) { return nil, false }
	none := map[string]plan.Selected{"chosen": {}, "other": {}, "anew": {}, "strange": {}}

	for _, tt := range []struct {
		name string
		from Sources
		want plan.Policies
	}{
		{"a view for each", Sources{API: api, Inbound: inbound}, plan.Policies{
			Policies: optin.Policies{Everywhere: said.Everywhere, Namespaces: said.Namespaces, Some: map[string][]string{"shop": {"shop/rbac", "shop/some"}}},
			Pods: map[string]plan.Selected{
				"chosen": {Known: true, Policies: []string{"root/lock", "shop/rbac", "shop/some"}}, "other": {Known: true}, "anew": {}, "strange": {},
			},
		}},
		{"a view for each, without the workload API", Sources{Inbound: inbound}, plan.Policies{
			Policies: optin.Policies{Some: map[string][]string{"shop": {"shop/rbac"}}},
			Pods:     map[string]plan.Selected{"chosen": {Known: true, Policies: []string{"shop/rbac"}}, "other": {}, "anew": {}, "strange": {}},
		}},
		{"a view for each, and no word of the workload API yet", Sources{API: silent, Until: time.Now().Add(time.Hour), Inbound: inbound}, plan.Policies{
			Policies: optin.Policies{Some: map[string][]string{"shop": {"shop/rbac"}}},
			Pods:     map[string]plan.Selected{"chosen": {Policies: []string{"shop/rbac"}}, "other": {}, "anew": {}, "strange": {}},
			Last:     true, Unknown: "no word yet from the workload API about policies",
		}},
		{"no word of the workload API for long", Sources{API: silent, Until: time.Now(), Inbound: nobody}, plan.Policies{Pods: none, Last: true}},
		{"one view", Sources{One: true, Inbound: inbound}, plan.Policies{Policies: optin.Policies{Everywhere: []string{"root/rbac"}}, Pods: none}},
		{"one view, not known yet", Sources{One: true, Inbound: nobody}, plan.Policies{Pods: none, Last: true}},
		{"one view and the workload API", Sources{One: true, API: api, Inbound: inbound}, plan.Policies{
			Policies: optin.Policies{Everywhere: []string{"root/lock", "root/rbac"}, Namespaces: said.Namespaces, Some: said.Some},
			Pods: map[string]plan.Selected{
				"chosen": {Known: true, Policies: []string{"root/lock", "shop/some"}}, "other": {Known: true}, "anew": {}, "strange": {},
			},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Barred(view, tt.from)
			if !got.Policies.Whole().Equal(tt.want.Policies) || !reflect.DeepEqual(got.Pods, tt.want.Pods) || got.Last != tt.want.Last || got.Unknown != tt.want.Unknown {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
	if len(said.Some["shop"]) != 1 || len(said.Everywhere) != 1 {
		t.Errorf("the workload API's word is changed: %+v", said)
	}
}

// virtualInbound is a listener as istiod sends it to a sidecar whose pod a policy selects.
const virtualInbound = `version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: virtualInbound
  traffic_direction: INBOUND
  address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.rbac
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
        stat_prefix: tcp.
        rules:
          action: DENY
          policies:
            "ns[shop]-policy[deny]-rule[0]":
              permissions: [{any: true}]
              principals: [{any: true}]
`

// TestUnenforcedOfViews: each pod's view tells of the policies that select it; where there is
// one view, that is every pod's.
func TestUnenforcedOfViews(t *testing.T) {
	dir := t.TempDir()
	shop, bank := KeyOf("shop", "", nil), KeyOf("bank", "", nil)
	for namespace, text := range map[string]string{"shop": virtualInbound, "bank": "version_info: \"1\"\nresources: []\n"} {
		if err := os.Mkdir(filepath.Join(dir, namespace), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, namespace, "lds.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manage := func(t *testing.T, change func(*Options)) *Manager {
		opts := Options{
			Pods: func(context.Context) ([]Pod, bool) {
				return []Pod{{Namespace: "shop", Name: "a", Scope: shop}, {Namespace: "bank", Name: "b", Scope: bank}}, true
			},
			Installed: func() map[string]uint32 { return nil }, Name: func(k mesh.ScopeKey) string { return k.Namespace },
			Publish: func(context.Context, *mesh.Snapshot) error { return nil }, Resolve: func([]mesh.Lookup) {},
			StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		}
		change(&opts)
		m := New(opts)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return m
	}
	source := func(namespace string) (xds.Source, error) {
		return xds.NewFiles(xds.FilesOptions{Dir: filepath.Join(dir, namespace), Logger: slog.New(slog.DiscardHandler)}), nil
	}
	has := func(t *testing.T, m *Manager, key mesh.ScopeKey, want ...string) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for {
			got, ok := m.Unenforced(key)
			if ok && slices.Equal(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v: %q, %t; want %q", key, got, ok, want)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Run("a view for each", func(t *testing.T) {
		m := manage(t, func(o *Options) {
			o.Open = func(k mesh.ScopeKey) (xds.Source, error) { return source(k.Namespace) }
		})
		has(t, m, shop, "shop/deny")
		has(t, m, bank)
		if got, ok := m.Unenforced(KeyOf("till", "", nil)); ok || got != nil {
			t.Errorf("of a view that there is not: %q", got)
		}
	})
	t.Run("one view", func(t *testing.T) {
		m := manage(t, func(o *Options) { o.Default = func() (xds.Source, error) { return source("shop") } })
		has(t, m, bank, "shop/deny")
	})
}
