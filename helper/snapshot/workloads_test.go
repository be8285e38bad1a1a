// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload"
	"kmesh/helper/translate/workload/address"
	"kmesh/helper/translate/workload/policy"
	"kmesh/helper/xds"
)

// wire makes a resource as it comes from a server.
func wire(t testing.TB, name string, m proto.Message) xds.Resource {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: name, Version: "v", Source: "server", Message: m, Hash: sha256.Sum256(data)}
}

const inDefault = "default/"

// wService is a service at 10.96.0.n.
func wService(host string, n byte, ports ...uint32) *address.Address {
	s := &address.Service{Namespace: "default", Hostname: host, Addresses: []*address.NetworkAddress{{Address: []byte{10, 96, 0, n}}}}
	for _, p := range ports {
		s.Ports = append(s.Ports, &address.Port{ServicePort: p, TargetPort: 8000 + p})
	}
	return &address.Address{Type: &address.Address_Service{Service: s}}
}

// wPod is a workload of node n1 at 10.0.0.n that serves services, with policies.
func wPod(uid string, n byte, hosts string, policies ...string) *address.Address {
	w := &address.Workload{Uid: uid, Name: uid, Namespace: "default", Node: "n1", Addresses: [][]byte{{10, 0, 0, n}}, Services: map[string]*address.PortList{}, AuthorizationPolicies: policies}
	for h := range strings.FieldsSeq(hosts) {
		w.Services[inDefault+h] = &address.PortList{}
	}
	return &address.Address{Type: &address.Address_Workload{Workload: w}}
}

// said are services by what they lead to: "a:80>8080@1,2".
func said(a *Announced) string {
	var out []string
	for one := range a.All() {
		text := strings.TrimSuffix(strings.TrimPrefix(one.Service.Name, workload.Prefix+inDefault), "/ipv4") + ">"
		for _, c := range one.Clusters {
			for _, l := range c.Localities {
				for i, e := range l.Endpoints {
					if i == 0 {
						text += fmt.Sprintf("%d@", e.Addr.Port())
					} else {
						text += ","
					}
					text += fmt.Sprint(e.Addr.Addr().As4()[3])
				}
			}
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func addressed(resources ...xds.Resource) xds.Update {
	return xds.Update{Type: AddressType, Resources: resources}
}

func policed(resources ...xds.Resource) xds.Update {
	return xds.Update{Type: AuthorizationType, Resources: resources}
}

// told tells whether there is a word of a change.
func told(w *Workloads) bool {
	select {
	case <-w.Changed():
		return true
	default:
		return false
	}
}

func TestWorkloads(t *testing.T) {
	w := NewWorkloads(WorkloadsOptions{Here: workload.Here{Node: "n1"}})
	apply := func(updates ...xds.Update) xds.Rejected {
		t.Helper()
		err := w.Apply(t.Context(), updates...)
		var bad xds.Rejected
		if err != nil && !errors.As(err, &bad) {
			t.Fatal(err)
		}
		return bad
	}
	want := func(changed bool, text string) {
		t.Helper()
		if got := told(w); got != changed {
			t.Errorf("told of a change: %v, want %v", got, changed)
		}
		if got := said(w.Announced()); got != text {
			t.Errorf("announced %s\nwant      %s", got, text)
		}
	}
	pod := func(uid string, n byte, hosts string, policies ...string) xds.Resource {
		return wire(t, uid, wPod(uid, n, hosts, policies...))
	}
	service := func(host string, n byte, ports ...uint32) xds.Resource {
		return wire(t, inDefault+host, wService(host, n, ports...))
	}
	want(false, "")
	if w.Heard() {
		t.Error("it has heard of services before there was any word")
	}
	if got := w.Status().Waiting; got != "no word yet about resources of type Address and Authorization" {
		t.Errorf("waiting: %q", got)
	}

	// What is put is announced; what is the same is no change.
	first := addressed(service("a", 1, 80), service("b", 2, 80, 81), pod("p", 1, "a b"), pod("q", 2, "b"))
	if bad := apply(first); bad != nil {
		t.Fatal(bad)
	}
	want(true, "a:80>8080@1 b:80>8080@1,2 b:81>8081@1,2")
	before := w.Announced()
	apply(first)
	if want(false, "a:80>8080@1 b:80>8080@1,2 b:81>8081@1,2"); w.Announced() != before {
		t.Error("the same again is another list")
	}
	if got := w.Behind(netip.MustParseAddr("10.0.0.2")); got == nil || got.UID != "q" {
		t.Errorf("behind 10.0.0.2: %v", got)
	}

	// What is removed is gone; what nobody knows may be removed.
	apply(xds.Update{Type: AddressType, Removed: []string{"q", "unheard of"}})
	want(true, "a:80>8080@1 b:80>8080@1 b:81>8081@1")
	if got := w.Behind(netip.MustParseAddr("10.0.0.2")); got != nil {
		t.Errorf("behind 10.0.0.2: %v", got)
	}
	if after := w.Announced(); after.list[0] != before.list[0] || after.list[1].Service != before.list[1].Service || after.list[1] == before.list[1] {
		t.Error("more has changed than the endpoints of b")
	}

	// The invalid keeps its last good version, and is told of by the name that it was sent
	// under; the rest is used.
	nameless := wService("", 3, 80)
	bad := apply(addressed(service("a", 1, 0), pod("q", 3, "a"), wire(t, "other", wService("c", 4, 80)), wire(t, "default/nameless", nameless)))
	want(true, "a:80>8080@1,3 b:80>8080@1 b:81>8081@1")
	for _, text := range []string{`Service "default/a": ports[0].service_port: 0 is not a port`, `"other": name: is called "other" in the envelope and "default/c" inside`, `Service "default/nameless": hostname`} {
		if !strings.Contains(bad.Error(), text) {
			t.Errorf("rejected: %v, want %s", bad, text)
		}
	}
	if st := w.Status(); len(bad) != 3 || len(st.Problems) != 3 || st.Rejected != 3 || st.Services != 2 || st.Workloads != 2 || st.Announced != 3 || st.Waiting != "no word yet about resources of type Authorization" {
		t.Errorf("rejected %v; status %+v", bad, st)
	}
	states := map[string]State{}
	for _, r := range w.Resources() {
		states[r.Type+" "+r.Name] = r.State
	}
	if want := (map[string]State{"Service default/a": LastGood, "Service default/b": Live, "Workload p": Live, "Workload q": Live, "Address other": LeftOut, "Address default/nameless": LeftOut}); !maps.Equal(states, want) {
		t.Errorf("states %v", states)
	}
	// A source may know itself that something is invalid.
	refused := service("b", 2, 80)
	refused.Invalid = []mesh.Verdict{{Resource: refused.Name, Class: mesh.Invalid, Message: "twice"}}
	if bad := apply(addressed(refused)); len(bad) != 1 || bad[0].Message != "twice" {
		t.Errorf("rejected %v", bad)
	}
	if want(true, "a:80>8080@1,3 b:80>8080@1 b:81>8081@1"); w.Status().Rejected != 4 {
		t.Errorf("status %+v", w.Status())
	}
	apply(addressed(service("a", 1, 80), service("b", 2, 80, 81)), xds.Update{Type: AddressType, Removed: []string{"other", "default/nameless"}})
	if st := w.Status(); len(st.Problems) != 0 || st.Rejected != 0 {
		t.Errorf("status %+v", st)
	}

	// A name that is another kind of thing now is the old one no longer.
	told(w)
	apply(addressed(wire(t, inDefault+"b", wPod(inDefault+"b", 9, "a"))))
	want(true, "a:80>8080@9,1,3")
	apply(addressed(service("b", 2, 80, 81)))
	want(true, "a:80>8080@1,3 b:80>8080@1 b:81>8081@1")

	// A complete update is all that there is, of its type; what it has stays even if invalid.
	apply(policed(wire(t, "default/p", &policy.Authorization{Namespace: "default", Name: "p", Scope: policy.Scope_WORKLOAD_SELECTOR})))
	told(w)
	whole := addressed(service("a", 1, 0), pod("p", 1, "a b"))
	whole.Complete = true
	apply(whole)
	want(true, "a:80>8080@1")
	if st := w.Status(); st.Authorizations != 1 || st.Services != 1 || st.Workloads != 1 || st.Waiting != "" {
		t.Errorf("status %+v", st)
	}
	if w.Wanted(AddressType) != nil {
		t.Error("something is asked for by name")
	}
	apply(xds.Update{Type: AddressType, Complete: true}, xds.Update{Type: AuthorizationType, Complete: true})
	want(true, "")
	if st := w.Status(); st.Services+st.Workloads+st.Authorizations+len(st.Problems) != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestWorkloadsUnenforced: policies that select pods of this node which are enrolled.
func TestWorkloadsUnenforced(t *testing.T) {
	w := NewWorkloads(WorkloadsOptions{Here: workload.Here{Node: "n1"}})
	deny := &policy.Authorization{Namespace: "default", Name: "deny", Scope: policy.Scope_WORKLOAD_SELECTOR, Action: policy.Action_DENY, Rules: []*policy.Rule{{}}}
	elsewhere := wPod("r", 3, "", "default/other")
	elsewhere.GetWorkload().Node = "n2"
	hbone := wPod("q", 2, "")
	hbone.GetWorkload().TunnelProtocol = address.TunnelProtocol_HBONE
	if err := w.Apply(t.Context(), addressed(wire(t, "p", wPod("p", 1, "", "default/deny")), wire(t, "q", hbone), wire(t, "r", elsewhere)),
		policed(wire(t, "default/deny", deny), wire(t, "default/other", &policy.Authorization{Namespace: "default", Name: "other", Scope: policy.Scope_WORKLOAD_SELECTOR}))); err != nil {
		t.Fatal(err)
	}
	all := w.Unenforced(nil)
	if len(all) != 1 || all[0].Resource != "default/deny" || all[0].Class != mesh.UnsupportedAction || !strings.Contains(all[0].Message, "NOT ENFORCED: connections to default/p") || all[0].Source != "server" {
		t.Errorf("unenforced %+v", all)
	}
	if got := w.Unenforced(func(w *mesh.Workload) bool { return w.UID == "q" }); len(got) != 0 {
		t.Errorf("unenforced for a pod that it does not select: %+v", got)
	}
	st := w.Status()
	if len(st.NotEnforced) != 1 || st.NotEnforced[0].Resource != "q" || st.NotEnforced[0].Resources != 1 || st.NotEnforced[0].Field != "tunnel_protocol" {
		t.Errorf("not enforced %+v", st.NotEnforced)
	}
	bad := &policy.Authorization{Namespace: "default", Name: "deny", Action: 77}
	var rejected xds.Rejected
	if err := w.Apply(t.Context(), policed(wire(t, "default/deny", bad))); !errors.As(err, &rejected) || rejected[0].Resource != "default/deny" || rejected[0].Field != "action" {
		t.Errorf("rejected %v", err)
	}
	if got := w.Unenforced(nil); !slices.Equal(got, all) {
		t.Errorf("an invalid version changes %v", got)
	}
	if err := w.Apply(t.Context(), xds.Update{Type: AuthorizationType, Removed: []string{"default/deny"}}); err != nil {
		t.Fatal(err)
	}
	if got := w.Unenforced(nil); len(got) != 1 || !strings.Contains(got[0].Message, "names it, and it is not known") {
		t.Errorf("after it is gone: %+v", got)
	}
}

// TestWorkloadsHistory: whatever has come, in whatever parts, what is announced is what a
// store announces that was given the last good versions at once; others may ask meanwhile.
func TestWorkloadsHistory(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		w := NewWorkloads(WorkloadsOptions{Here: workload.Here{Node: "n1"}})
		stop := make(chan struct{})
		var asking sync.WaitGroup
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = said(w.Announced()) + fmt.Sprint(w.Behind(netip.MustParseAddr("10.0.0.1")), w.Unenforced(nil), w.Status(), len(w.Resources()))
					runtime.Gosched()
				}
			}
		})
		good := map[string]xds.Resource{}
		hosts := []string{"a", "b", "c"}
		for range 40 {
			u := addressed()
			whole := r.IntN(8) == 0
			last := good
			if whole {
				u.Complete = true
				good = map[string]xds.Resource{}
				for _, name := range slices.Sorted(maps.Keys(last)) {
					if r.IntN(4) > 0 {
						u.Resources, good[name] = append(u.Resources, last[name]), last[name]
					}
				}
			}
			for range r.IntN(4) {
				if host := hosts[r.IntN(3)]; r.IntN(2) == 0 {
					u.Resources = append(u.Resources, wire(t, inDefault+host, wService(host, byte(r.IntN(3)), uint32(r.IntN(3))))) // port 0 is invalid
				} else {
					uid := fmt.Sprint("p", r.IntN(5))
					u.Resources = append(u.Resources, wire(t, uid, wPod(uid, byte(r.IntN(5)), host+" "+hosts[r.IntN(3)])))
				}
			}
			for _, one := range u.Resources {
				if s := one.Message.(*address.Address).GetService(); s == nil || s.Ports[0].ServicePort != 0 {
					good[one.Name] = one
				} else if before, had := last[one.Name]; had && good[one.Name].Message == nil {
					good[one.Name] = before // it is there still, if only in its last good version
				}
			}
			if !whole && r.IntN(3) == 0 {
				u.Removed = []string{inDefault + hosts[r.IntN(3)], "nobody"}
				u.Resources = slices.DeleteFunc(u.Resources, func(one xds.Resource) bool { return one.Name == u.Removed[0] })
				delete(good, u.Removed[0])
			}
			_ = w.Apply(context.Background(), u) // what is invalid is told of, and not used
		}
		fresh := NewWorkloads(WorkloadsOptions{Here: workload.Here{Node: "n1"}})
		if err := fresh.Apply(t.Context(), addressed(slices.Collect(maps.Values(good))...)); err != nil {
			t.Fatal(err)
		}
		if got, want := said(w.Announced()), said(fresh.Announced()); got != want {
			t.Fatalf("seed %d:\n%s\nwant\n%s", seed, got, want)
		}
		close(stop)
		asking.Wait()
	}
}

// largeMesh is 10,000 services with 10 workloads each, as resources.
func largeMesh(b testing.TB) []xds.Resource {
	var out []xds.Resource
	for i := range 10_000 {
		host := fmt.Sprintf("s%d.default.svc.cluster.local", i)
		s := wService(host, 0, 80, 81)
		s.GetService().Addresses[0].Address = []byte{10, 96, byte(i >> 8), byte(i)}
		out = append(out, wire(b, inDefault+host, s))
		for j := range 10 {
			n := i*10 + j
			uid := fmt.Sprintf("Kubernetes//Pod/default/w%d", n)
			w := wPod(uid, 0, host)
			w.GetWorkload().Addresses[0] = []byte{10, byte(n >> 16), byte(n >> 8), byte(n)}
			w.GetWorkload().Node = fmt.Sprintf("n%d", n%1000)
			w.GetWorkload().TunnelProtocol = address.TunnelProtocol_HBONE
			out = append(out, wire(b, uid, w))
		}
	}
	return out
}

// BenchmarkWorkloads: the whole mesh at once, and then one workload that changes its health,
// up to what is merged with a scope.
func BenchmarkWorkloads(b *testing.B) {
	resources := largeMesh(b)
	scope := mesh.Scope{Clusters: map[string]*mesh.Cluster{}}
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w := NewWorkloads(WorkloadsOptions{})
			if err := w.Apply(b.Context(), addressed(resources...)); err != nil {
				b.Fatal(err)
			}
			if n := w.Announced().Len(); n != 20_000 {
				b.Fatalf("%d services", n)
			}
		}
	})
	b.Run("change", func(b *testing.B) {
		w := NewWorkloads(WorkloadsOptions{})
		if err := w.Apply(b.Context(), addressed(resources...)); err != nil {
			b.Fatal(err)
		}
		last := w.Announced()
		change := proto.CloneOf(resources[78].Message.(*address.Address))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			change.GetWorkload().Status = address.WorkloadStatus(1 - i%2)
			if err := w.Apply(b.Context(), addressed(wire(b, resources[78].Name, change))); err != nil {
				b.Fatal(err)
			}
			next := w.Announced()
			if next == last {
				b.Fatal("the change is not seen")
			}
			last = next
			Merge(scope, next)
		}
	})
}
