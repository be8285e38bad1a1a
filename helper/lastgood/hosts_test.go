// SPDX-License-Identifier: Apache-2.0

package lastgood

import (
	"context"
	"fmt"
	"os"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/xds"
)

// taker accepts everything.
type taker struct{ got map[string]xds.Resource }

func (c *taker) Apply(_ context.Context, updates ...xds.Update) error {
	for _, u := range updates {
		for _, r := range u.Resources {
			c.got[r.Name] = r
		}
	}
	return nil
}
func (c *taker) Wanted(string) []string  { return []string{"80", "81"} }
func (c *taker) Absent(string, []string) {}

// TestRoutesApart: a RouteConfiguration that was taken apart is in the file as it was sent,
// and what two of them have in common is held once.
func TestRoutesApart(t *testing.T) {
	dir := t.TempDir()
	sent := map[string]*routev3.RouteConfiguration{}
	u := xds.Update{Type: xds.RouteType}
	for _, name := range []string{"80", "81"} {
		rc := &routev3.RouteConfiguration{Name: name, IgnorePortInHostMatching: true}
		for i := range 300 {
			own := ""
			if i == 7 {
				own = name
			}
			rc.VirtualHosts = append(rc.VirtualHosts, &routev3.VirtualHost{Name: fmt.Sprint("v", own, i), Domains: []string{fmt.Sprint("h", i)}})
		}
		sent[name] = rc
		packed, err := anypb.New(rc)
		if err != nil {
			t.Fatal(err)
		}
		r, err := xds.EnvoyTypes()[3].Unpack("", "1", "server", packed)
		if err != nil || len(r.Hosts) != 300 {
			t.Fatalf("%d virtual hosts: %v", len(r.Hosts), err)
		}
		u.Resources = append(u.Resources, r)
	}
	first := &taker{got: map[string]xds.Resource{}}
	k, err := New(first, Options{Dir: dir, Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Apply(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	a, b := k.types[xds.RouteType].items["80"], k.types[xds.RouteType].items["81"]
	k.mu.Unlock()
	if len(a.raw.bytes) > 20 || a.hosts[0] != b.hosts[0] || a.hosts[7] == b.hosts[7] {
		t.Errorf("%d bytes beside the virtual hosts, or what is equal is held twice", len(a.raw.bytes))
	}
	k.Close()

	data, err := os.ReadFile(k.path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range c.types[len(c.types)-1].items {
		m := &routev3.RouteConfiguration{}
		if err := proto.Unmarshal(it.raw.bytes, m); err != nil || !proto.Equal(m, sent[it.name]) {
			t.Errorf("%s in the file is %v: %v", it.name, m, err)
		}
	}
	second := &taker{got: map[string]xds.Resource{}}
	again, err := New(second, Options{Dir: dir, Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !again.Load(t.Context()) {
		t.Fatal("nothing was loaded")
	}
	for name, rc := range sent {
		r := second.got[name]
		whole, err := r.Whole()
		if err != nil || len(r.Hosts) != 300 || !proto.Equal(whole, rc) || again.types[xds.RouteType].items[name].hosts[7] != r.Hosts[7] {
			t.Errorf("%s from disk is %v: %v", name, whole, err)
		}
	}
	if again.collectDirty() {
		t.Error("what was read is to be written again")
	}
	// The same again is no change.
	if err := again.Apply(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	again.collect()
	if err := again.Apply(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	if again.collectDirty() {
		t.Error("the same again is a change")
	}
}

// TestShared: what two sources were sent alike is held once, and not longer than by them.
func TestShared(t *testing.T) {
	said := func(version string) xds.Update {
		packed, err := anypb.New(&clusterv3.Cluster{Name: "c", AltStatName: "shared by two"})
		if err != nil {
			t.Fatal(err)
		}
		r, err := xds.EnvoyTypes()[0].Unpack("", version, "server", packed)
		if err != nil {
			t.Fatal(err)
		}
		return xds.Update{Type: xds.ClusterType, Resources: []xds.Resource{r}}
	}
	var held []*message
	for _, name := range []string{"one", "two", "alone"} {
		k, err := New(&taker{got: map[string]xds.Resource{}}, Options{Dir: t.TempDir(), Name: name, Shared: name != "alone"})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if err := k.Apply(t.Context(), said(name)); err != nil {
			t.Fatal(err)
		}
		k.mu.Lock()
		held = append(held, k.types[xds.ClusterType].items["c"].raw)
		k.mu.Unlock()
	}
	if held[0] != held[1] || held[0] == held[2] || string(held[0].bytes) != string(held[2].bytes) {
		t.Error("what is equal is held twice")
	}
}

// collectDirty tells whether something is to be written.
func (k *Keeper) collectDirty() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dirty
}
