// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// named is a DNS cluster: its endpoints are names at port 80.
func named(t testing.TB, name string, hosts ...string) xds.Resource {
	text := "{name: " + name + ", type: STRICT_DNS, load_assignment: {endpoints: [{lb_endpoints: ["
	for _, h := range hosts {
		text += fmt.Sprintf("{endpoint: {address: {socket_address: {address: %s, port_value: 80}}}}, ", h)
	}
	return res(t, &clusterv3.Cluster{}, text+"]}]}}")
}

// resolver is what a store asks for.
type resolver struct {
	asked [][]string // each set, sorted
	all   map[string]mesh.Lookup
}

func (r *resolver) watch(list []mesh.Lookup) {
	var names []string
	r.all = map[string]mesh.Lookup{}
	for _, l := range list {
		names = append(names, l.Name)
		r.all[l.Name] = l
	}
	slices.Sort(names)
	r.asked = append(r.asked, names)
}

// found tells the store about a name: addresses, which end in these numbers.
func (r *resolver) found(b *bench, name, problem string, last ...byte) string {
	b.t.Helper()
	lookup, ok := r.all[name]
	if !ok {
		b.t.Fatalf("nobody asks for %q", name)
	}
	a := mesh.Answer{Problem: problem}
	for _, n := range last {
		a.Addrs = append(a.Addrs, netip.AddrFrom4([4]byte{10, 7, 0, n}))
	}
	b.Resolved(map[mesh.Lookup]mesh.Answer{lookup: a})
	return b.built()
}

// addresses are those of a cluster in the last snapshot.
func addresses(b *bench, cluster string) string {
	var out []string
	for _, l := range b.last.Scopes[0].Clusters[cluster].Localities {
		for _, e := range l.Endpoints {
			out = append(out, e.Addr.Addr().String())
		}
	}
	return strings.Join(out, " ")
}

func TestNames(t *testing.T) {
	r := &resolver{}
	b := newBench(t, Options{Resolve: r.watch})
	b.want(b.apply(clusters(named(t, "a", "x.test", "y.test"), static(t, "s", 9)), listeners(lis(t, "l", "10.0.0.1", "a"), lis(t, "m", "10.0.0.2", "s"))), "=")
	if b.state("Cluster", "a") != Warming || !strings.Contains(b.Status().Holding, "names") {
		t.Errorf("state %s, %q", b.state("Cluster", "a"), b.Status().Holding)
	}
	b.want(r.found(b, "x.test", "", 1, 2), "=") // y.test is missing
	b.want(r.found(b, "y.test", ""), "l@10.0.0.1>a(80,80) m@10.0.0.2>s(9)")
	if got := addresses(b, "a"); got != "10.7.0.1 10.7.0.2" || b.state("Cluster", "a") != Live {
		t.Errorf("addresses %s, state %s", got, b.state("Cluster", "a"))
	}

	// What changes is one cluster; the others keep their identity.
	before := b.last.Scopes[0]
	r.found(b, "y.test", "", 3)
	if got := addresses(b, "a"); got != "10.7.0.1 10.7.0.2 10.7.0.3" {
		t.Errorf("addresses %s", got)
	}
	if now := b.last.Scopes[0]; now.Clusters["s"] != before.Clusters["s"] || !slices.Equal(now.Services, before.Services) {
		t.Error("more has changed than one cluster")
	}
	b.want(r.found(b, "y.test", "", 3), "=")

	// A failure changes nothing but the status.
	b.want(r.found(b, "y.test", "SERVFAIL: the last known addresses stay", 3), "=")
	if want := `Cluster "a": load_assignment.endpoints[0].lb_endpoints[1].endpoint.address.socket_address.address: "y.test" is not resolved: SERVFAIL`; !strings.Contains(b.problem(), want) {
		t.Errorf("problems %s, want %s", b.problem(), want)
	}
	b.want(r.found(b, "y.test", "", 3), "=")
	if b.problem() != "" {
		t.Errorf("problems %s", b.problem())
	}

	// Another cluster of the same name shares the answer; a new name is waited for,
	// and the old endpoints stay.
	b.want(b.apply(clusters(named(t, "a", "x.test"), named(t, "b", "x.test"), static(t, "s", 9)), listeners(lis(t, "l", "10.0.0.1", "a", "b"))), "l@10.0.0.1>a(80,80)>b(80,80)")
	b.want(b.apply(clusters(named(t, "a", "z.test"), named(t, "b", "x.test"), static(t, "s", 9))), "=")
	b.want(r.found(b, "x.test", "", 5), "l@10.0.0.1>a(80,80)>b(80)")
	b.want(r.found(b, "z.test", "NXDOMAIN"), "l@10.0.0.1>a()>b(80)")
	if want := [][]string{{"x.test", "y.test"}, {"x.test"}, {"x.test", "z.test"}}; !slices.EqualFunc(r.asked, want, slices.Equal[[]string]) {
		t.Errorf("asked for %q, want %q", r.asked, want)
	}
	// An answer that nobody waits for any more is ignored.
	b.Resolved(map[mesh.Lookup]mesh.Answer{{Name: "y.test"}: {Problem: "late"}})
	b.want(b.built(), "=")
}

// TestNamesOffline: where nobody resolves, endpoints that are addresses are used.
func TestNamesOffline(t *testing.T) {
	b := newBench(t, Options{})
	b.want(b.apply(clusters(named(t, "a", "x.test", "10.1.1.1")), listeners(lis(t, "l", "10.0.0.1", "a"))), "l@10.0.0.1>a(80)")
}

// TestNamesHold: a name that is not resolved holds the first snapshot back like any
// problem, since an earlier run may know better; but not for ever.
func TestNamesHold(t *testing.T) {
	for name, tc := range map[string]struct {
		hold, at time.Duration
	}{
		"files":  {-1, holdNames},
		"server": {10 * time.Second, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &resolver{}
				b := newBench(t, Options{Resolve: r.watch, HoldFirst: tc.hold})
				b.want(b.apply(clusters(named(t, "a", "x.test")), listeners(lis(t, "l", "10.0.0.1", "a"))), "=")
				b.want(r.found(b, "x.test", "SERVFAIL"), "=")
				if _, again := b.step(); again < tc.at || again > tc.at+time.Second {
					t.Errorf("looks again in %v", again)
				}
				if why := b.Status().Holding; !strings.Contains(why, "x.test") {
					t.Errorf("holding: %q", why)
				}
				time.Sleep(tc.at - time.Second)
				b.want(b.built(), "=")
				time.Sleep(time.Second)
				b.want(b.built(), "l@10.0.0.1>a()")
			})
		})
	}
	// The name is resolved: nothing holds it any more.
	r := &resolver{}
	b := newBench(t, Options{Resolve: r.watch, HoldFirst: -1})
	b.apply(clusters(named(t, "a", "x.test")), listeners(lis(t, "l", "10.0.0.1", "a")))
	r.found(b, "x.test", "SERVFAIL")
	b.want(r.found(b, "x.test", "", 4), "l@10.0.0.1>a(80)")
}
