// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/address"
)

func ip(last ...byte) []byte { return []byte{10, last[0], last[1], last[2]} }

// aService is a service at 10.96.0.n, port 80.
func aService(host string, n byte, way *address.GatewayAddress) *address.Address {
	return &address.Address{Type: &address.Address_Service{Service: &address.Service{
		Namespace: "default", Hostname: host, Waypoint: way,
		Addresses: []*address.NetworkAddress{{Address: ip(96, 0, n)}},
		Ports:     []*address.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: address.AppProtocol_HTTP11}},
	}}}
}

// aWorkload is a workload at 10.0.x.y that serves services.
func aWorkload(uid string, x, y byte, hosts ...string) *address.Address {
	w := &address.Workload{Uid: uid, Name: uid, Namespace: "default", Addresses: [][]byte{ip(0, x, y)}, Services: map[string]*address.PortList{}}
	for _, h := range hosts {
		w.Services["default/"+h] = &address.PortList{}
	}
	return &address.Address{Type: &address.Address_Workload{Workload: w}}
}

func translated(a *address.Address) *Address { return TranslateAddress(a, "server") }

// TestRandomChanges: after any changes an index is what one is that was given the last
// version of each resource at once; and Flush names exactly the services that differ.
func TestRandomChanges(t *testing.T) {
	hosts := []string{"a", "b", "c", "d"}
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 3))
		here := Here{Node: "n1", Network: []string{"", "net"}[r.IntN(2)], Region: "r1"}
		x := NewIndex(here)
		now := map[string]*Address{}
		for step := range 120 {
			switch r.IntN(7) {
			case 0:
				host := hosts[r.IntN(len(hosts))]
				var way *address.GatewayAddress
				switch r.IntN(4) {
				case 0:
					way = &address.GatewayAddress{Destination: &address.GatewayAddress_Hostname{Hostname: &address.NamespacedHostname{Namespace: "default", Hostname: hosts[r.IntN(4)]}}, HboneMtlsPort: uint32(r.IntN(2) * 15008)}
				case 1:
					way = &address.GatewayAddress{Destination: &address.GatewayAddress_Address{Address: &address.NetworkAddress{Address: ip(96, 0, byte(r.IntN(4)))}}}
				}
				s := aService(host, byte(r.IntN(4)), way)
				s.GetService().Addresses[0].Network = []string{"", "net", "far"}[r.IntN(3)]
				a := translated(s)
				now[a.Name] = a
				x.Put(a)
			case 1:
				names := slices.Sorted(maps.Keys(now))
				if len(names) > 0 {
					name := names[r.IntN(len(names))]
					delete(now, name)
					x.Remove(name)
				}
			case 2:
				x.Remove("nobody")
			default:
				w := aWorkload(fmt.Sprintf("w%d", r.IntN(6)), 0, byte(r.IntN(6)), hosts[r.IntN(4)], hosts[r.IntN(4)])
				w.GetWorkload().Node = []string{"n1", "n2"}[r.IntN(2)]
				w.GetWorkload().Network = []string{"", "net", "far"}[r.IntN(3)]
				w.GetWorkload().Capacity = wrapperspb.UInt32(uint32(r.IntN(3)))
				w.GetWorkload().AuthorizationPolicies = []string{hosts[r.IntN(4)], hosts[r.IntN(4)]}
				a := translated(w)
				now[a.Name] = a
				x.Put(a)
			}
			if r.IntN(3) > 0 {
				continue
			}
			before := maps.Clone(x.built)
			changed := x.Flush()
			all := maps.Clone(before)
			maps.Copy(all, x.built)
			for key := range all {
				same := slices.Equal(before[key], x.built[key])
				if same == slices.Contains(changed, key) {
					t.Fatalf("seed %d step %d: %q changed: %v, but Flush says %q", seed, step, key, !same, changed)
				}
			}
			fresh := NewIndex(here)
			for _, name := range slices.Sorted(maps.Keys(now)) {
				fresh.Put(now[name])
			}
			fresh.Flush()
			if got, want := text(x), text(fresh); !slices.Equal(got, want) {
				t.Fatalf("seed %d step %d:\n%q\nwant\n%q", seed, step, got, want)
			}
			if got, want := x.Unenforced(nil), fresh.Unenforced(nil); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d step %d:\n%v\nwant\n%v", seed, step, got, want)
			}
			if got, want := x.Selection(), fresh.Selection(); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d step %d:\n%v\nwant\n%v", seed, step, got, want)
			}
			for i := range byte(6) {
				addr := netip.AddrFrom4([4]byte{10, 0, 0, i})
				if got, want := x.Behind(addr), fresh.Behind(addr); (got == nil) != (want == nil) || got != nil && got.UID != want.UID {
					t.Fatalf("seed %d step %d: %v is %v, want %v", seed, step, addr, got, want)
				}
			}
		}
		// Nothing is left of what is gone.
		for name := range now {
			x.Remove(name)
		}
		x.Flush()
		if n := len(x.services) + len(x.workloads) + len(x.members) + len(x.owners) + len(x.via) + len(x.viaAddr) + len(x.behind) + len(x.local) + len(x.chosen) + len(x.built) + len(x.dirty); n != 0 {
			t.Fatalf("seed %d: %d entries are left: %+v", seed, n, x)
		}
	}
}

// TestIdentity: what a change does not touch stays the same object.
func TestIdentity(t *testing.T) {
	x := NewIndex(Here{})
	for _, a := range []*address.Address{aService("a", 1, nil), aService("b", 2, nil), aWorkload("w", 0, 1, "a"), aWorkload("v", 0, 2, "b")} {
		x.Put(translated(a))
	}
	x.Flush()
	a, b := x.Announced("default/a")[0], x.Announced("default/b")[0]
	x.Put(translated(aWorkload("w", 0, 1, "a"))) // the same once more
	if got := x.Flush(); len(got) != 0 || x.Announced("default/a")[0] != a {
		t.Errorf("the same again changes %q", got)
	}
	x.Put(translated(aWorkload("w", 0, 9, "a")))
	if got := x.Flush(); !slices.Equal(got, []string{"default/a"}) || x.Announced("default/b")[0] != b {
		t.Errorf("changed %q", got)
	}
	// Of a service whose endpoints are others, only the cluster is.
	if now := x.Announced("default/a")[0]; now == a || now.Service != a.Service || now.Clusters[0] == a.Clusters[0] {
		t.Errorf("%p %p %p became %p %p %p", a, a.Service, a.Clusters[0], now, now.Service, now.Clusters[0])
	}
	// And of one whose address is another, only the service.
	a = x.Announced("default/a")[0]
	x.Put(translated(aService("a", 3, nil)))
	x.Flush()
	if now := x.Announced("default/a")[0]; now == a || now.Service == a.Service || now.Clusters[0] != a.Clusters[0] {
		t.Errorf("%p %p %p became %p %p %p", a, a.Service, a.Clusters[0], now, now.Service, now.Clusters[0])
	}
}

// TestInvalidStays: an invalid version leaves the last good one.
func TestInvalidStays(t *testing.T) {
	x := NewIndex(Here{})
	x.Put(translated(aService("a", 1, nil)))
	x.Flush()
	bad := aService("a", 1, nil)
	bad.GetService().Ports[0].ServicePort = 0
	x.Put(translated(bad))
	if got := x.Flush(); len(got) != 0 || len(x.Announced("default/a")) != 1 {
		t.Errorf("changed %q to %v", got, x.Announced("default/a"))
	}
}

// TestEnrolled: what is not enforced for workloads that are not enrolled is nobody's business.
func TestEnrolled(t *testing.T) {
	x := NewIndex(Here{Node: "n"})
	for _, uid := range []string{"in", "out"} {
		w := aWorkload(uid, 0, 1)
		w.GetWorkload().Node = "n"
		w.GetWorkload().AuthorizationPolicies = []string{"default/" + uid}
		x.Put(translated(w))
	}
	if got := x.Unenforced(nil); len(got) != 2 {
		t.Errorf("of all: %v", got)
	}
	got := x.Unenforced(func(w *mesh.Workload) bool { return w.UID == "in" })
	if len(got) != 1 || got[0].Resource != "default/in" {
		t.Errorf("of those that are enrolled: %v", got)
	}
}

// TestPoliciesOf: every policy that is not enforced is its workloads', whatever selects it.
func TestPoliciesOf(t *testing.T) {
	x := NewIndex(Here{Node: "n"})
	put := func(uid, namespace, node string, policies ...string) {
		w := aWorkload(uid, 0, 1)
		w.GetWorkload().Namespace, w.GetWorkload().Node, w.GetWorkload().AuthorizationPolicies = namespace, node, policies
		x.Put(translated(w))
	}
	put("one", "shop", "n", "shop/chosen", "shop/unsent", "shop/tried")
	put("two", "till", "n")
	put("far", "shop", "m", "shop/chosen")
	for name, p := range map[string]*mesh.Authorization{
		"shop/chosen": {Scope: mesh.AuthSelector, Namespace: "shop"},
		"shop/all":    {Scope: mesh.AuthNamespace, Namespace: "shop"},
		"root/all":    {Scope: mesh.AuthGlobal, Namespace: "root"},
		"shop/tried":  {Scope: mesh.AuthSelector, Namespace: "shop", DryRun: true},
	} {
		x.PutAuthorization(&Authorization{Name: name, Policy: p}, "server")
	}
	want := map[string][]string{"shop/one": {"root/all", "shop/all", "shop/chosen", "shop/unsent"}, "till/two": {"root/all"}}
	if got := x.PoliciesOf(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
}

// TestSelection: a policy keeps out the pods that it selects, where it is known whom; and
// where it goes by labels, the namespaces in which it may.
func TestSelection(t *testing.T) {
	x := NewIndex(Here{Node: "n"})
	put := func(uid, namespace, node string, policies ...string) {
		w := aWorkload(uid, 0, 1)
		w.GetWorkload().Namespace, w.GetWorkload().Node, w.GetWorkload().AuthorizationPolicies = namespace, node, policies
		x.Put(translated(w))
	}
	put("one", "shop", "n", "shop/chosen", "shop/unsent", "shop/tried", "shop/chosen")
	put("two", "till", "n")
	put("far", "bank", "m", "root/strict") // of another node: its namespace has pods here at any time
	for name, p := range map[string]*mesh.Authorization{
		"shop/chosen": {Scope: mesh.AuthSelector, Namespace: "shop"},
		"farm/chosen": {Scope: mesh.AuthSelector, Namespace: "farm"}, // of which nothing is known yet
		"shop/all":    {Scope: mesh.AuthNamespace, Namespace: "shop"},
		"root/all":    {Scope: mesh.AuthGlobal, Namespace: "root"},
		"root/strict": {Scope: mesh.AuthSelector, Namespace: "root"},
		"root/trial":  {Scope: mesh.AuthGlobal, Namespace: "root", DryRun: true},
		"shop/tried":  {Scope: mesh.AuthSelector, Namespace: "shop", DryRun: true},
	} {
		x.PutAuthorization(&Authorization{Name: name, Policy: p}, "server")
	}
	at := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	want := Selection{
		Everywhere: []string{"root/all"},
		Namespaces: map[string][]string{"shop": {"shop/all"}},
		Some:       map[string][]string{"shop": {"shop/chosen", "shop/unsent"}, "farm": {"farm/chosen"}, "root": {"root/strict"}, "bank": {"root/strict"}},
		Local: map[string]Selected{
			"shop/one": {at, []string{"root/all", "shop/all", "shop/chosen", "shop/unsent"}},
			"till/two": {at, []string{"root/all"}},
		},
	}
	if got := x.Selection(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	// With what names it the policy of the whole mesh is gone from a namespace.
	x.Remove("far")
	if got := x.Selection().Some["bank"]; got != nil {
		t.Errorf("no workload of the namespace is left, and it has %q", got)
	}
}

func TestBehind(t *testing.T) {
	x := NewIndex(Here{Network: "net"})
	put := func(uid string, y byte, change func(*address.Workload)) {
		w := aWorkload(uid, 0, y)
		change(w.GetWorkload())
		x.Put(translated(w))
	}
	put("pod", 1, func(w *address.Workload) { w.TrustDomain, w.ServiceAccount = "td", "sa" })
	put("host", 2, func(w *address.Workload) { w.NetworkMode = address.NetworkMode_HOST_NETWORK })
	put("far", 3, func(w *address.Workload) { w.Network = "far" })
	put("plain", 4, func(w *address.Workload) {})
	for last, want := range map[byte]string{1: "td/ns/default/sa/sa", 2: "", 3: "", 4: "cluster.local/ns/default/sa/default", 5: ""} {
		got := ""
		if w := x.Behind(netip.AddrFrom16(netip.AddrFrom4([4]byte{10, 0, 0, last}).As16())); w != nil {
			got = w.TrustDomain + "/ns/" + w.Namespace + "/sa/" + w.ServiceAccount
		}
		if got != want {
			t.Errorf("10.0.0.%d is %q, want %q", last, got, want)
		}
	}
}

// large is a mesh of 10,000 services with 10 workloads each.
func large(b *testing.B) *Index {
	b.Helper()
	x := NewIndex(Here{Node: "n0"})
	for i := range 10_000 {
		s := aService(fmt.Sprintf("s%d.test", i), 0, nil)
		s.GetService().Addresses[0].Address = []byte{10, 96, byte(i >> 8), byte(i)}
		x.Put(translated(s))
		for j := range 10 {
			n := i*10 + j
			w := aWorkload(fmt.Sprintf("Kubernetes//Pod/default/w%d", n), 0, 0, fmt.Sprintf("s%d.test", i))
			w.GetWorkload().Addresses[0] = []byte{10, byte(n >> 16), byte(n >> 8), byte(n)}
			w.GetWorkload().Node = fmt.Sprintf("n%d", n%1000)
			x.Put(translated(w))
		}
	}
	if got := x.Flush(); len(got) != 10_000 {
		b.Fatalf("%d services", len(got))
	}
	return x
}

// BenchmarkChange is one workload of 100,000 that changes its health and back:
// translation, index, the service that is made anew.
func BenchmarkChange(b *testing.B) {
	x := large(b)
	w := aWorkload("Kubernetes//Pod/default/w77", 0, 77, "s7.test")
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		w.GetWorkload().Status = address.WorkloadStatus(1 - i%2)
		x.Put(translated(w))
		if got := x.Flush(); len(got) != 1 {
			b.Fatalf("changed %q", got)
		}
	}
}

// BenchmarkWhole is the whole mesh at once.
func BenchmarkWhole(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		large(b)
	}
}
