// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/prototext"

	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/helper/xds"

	// What is inside what istiod sends; what is not here stays bytes, as on the wire.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
)

var update = flag.Bool("update", false, "write the golden file again")

// delivered are the resources of one type that a real istiod sent (test/istiod writes them), as a server's.
func delivered(t *testing.T, file, typ string) xds.Update {
	t.Helper()
	text, err := os.ReadFile("testdata/istiod/" + file + ".textproto")
	if err != nil {
		t.Fatal(err)
	}
	r := &discoveryv3.DiscoveryResponse{}
	if err := prototext.Unmarshal(text, r); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if r.GetTypeUrl() != typ {
		t.Fatalf("%s has type %s, want %s", file, r.GetTypeUrl(), typ)
	}
	out := xds.Update{Type: typ, Complete: true}
	for _, packed := range r.GetResources() {
		m, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out.Resources = append(out.Resources, given(t, m))
	}
	return out
}

// TestIstiod: what becomes of a real istiod's resources as a whole, for the world of test/istiod.
func TestIstiod(t *testing.T) {
	b := newBench(t, Options{})
	b.apply(
		delivered(t, "clusters", xds.ClusterType), delivered(t, "endpoints", xds.AssignmentType),
		delivered(t, "listeners", xds.ListenerType), delivered(t, "routes", xds.RouteType),
	)
	if b.last == nil {
		t.Fatalf("no snapshot: %s", b.problem())
	}
	if p := b.problem(); p != "" {
		t.Errorf("problems: %s", p)
	}
	scope := b.last.Scopes[0]

	const file = "testdata/istiod.golden"
	got := whole(scope, b.Status())
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		if i >= len(gotLines) || i >= len(wantLines) || gotLines[i] != wantLines[i] {
			t.Errorf("%s differs at line %d (write it again with -update, and read the difference)", file, i+1)
			break
		}
	}

	for request, want := range map[string]string{
		"GET / catalog.shop":                    "outbound|80|v1|catalog.shop.svc.cluster.local",
		"GET /api/x catalog.shop":               "outbound|80|v2|catalog.shop.svc.cluster.local",
		"GET /orders/42 catalog.shop":           "outbound|80|v2|catalog.shop.svc.cluster.local",
		"GET /orders/42/x 10.79.0.20":           "outbound|80|v1|catalog.shop.svc.cluster.local",
		"GET / quote.shop.svc.cluster.local:80": "outbound|80||quote.shop.svc.cluster.local",
		"GET /beta/x quote.shop":                "outbound|80||quote-2.shop.svc.cluster.local",
		"GET / partner.example.com":             "outbound|80||partner.example.com",
		"GET / elsewhere.example.com":           "PassthroughCluster",
	} {
		words := strings.Fields(request)
		q, out := head.ParseRequest([]byte(words[0] + " " + words[1] + " HTTP/1.1\r\nHost: " + words[2] + "\r\n\r\n"))
		if out.Kind != head.Route {
			t.Fatalf("%s: %v", request, out)
		}
		i := slices.IndexFunc(scope.HTTP, func(s *mesh.Service) bool { return strings.HasPrefix(s.Name, "0.0.0.0_80") && s.HTTP != nil })
		if i < 0 {
			t.Fatal("no service of the listener 0.0.0.0_80")
		}
		vh := explain.FindVirtualHost(scope.HTTP[i].HTTP, q.Authority)
		if vh == nil {
			t.Errorf("%s: no virtual host", request)
			continue
		}
		at, _ := explain.Match(vh, &q, func(mesh.Fraction) bool { return false })
		if at < 0 || len(vh.Routes[at].Clusters) == 0 || vh.Routes[at].Clusters[0].Cluster != want {
			t.Errorf("%s: route %d of %s, want %s", request, at, vh.Name, want)
		}
	}
}

// TestIstiodRegistryOnly: the same, where pods may reach the mesh only.
func TestIstiodRegistryOnly(t *testing.T) {
	for _, to := range []string{"BlackHoleCluster", "PassthroughCluster"} {
		t.Run(to, func(t *testing.T) {
			b := newBench(t, Options{})
			listeners := delivered(t, "listeners", xds.ListenerType)
			i := slices.IndexFunc(listeners.Resources, func(r xds.Resource) bool { return r.Name == "virtualOutbound" })
			if i < 0 {
				t.Fatal("no listener virtualOutbound")
			}
			chains := listeners.Resources[i].Message.(*listenerv3.Listener).GetFilterChains()
			proxy := &tcpv3.TcpProxy{StatPrefix: to, ClusterSpecifier: &tcpv3.TcpProxy_Cluster{Cluster: to}}
			if err := chains[len(chains)-1].GetFilters()[0].GetTypedConfig().MarshalFrom(proxy); err != nil {
				t.Fatal(err)
			}
			b.apply(delivered(t, "clusters", xds.ClusterType), delivered(t, "endpoints", xds.AssignmentType), listeners, delivered(t, "routes", xds.RouteType))
			if b.last == nil || b.problem() != "" {
				t.Fatalf("snapshot %v, problems: %s", b.last, b.problem())
			}
			scope := b.last.Scopes[0]
			var got []string
			for _, svc := range scope.Services {
				for _, f := range svc.Frontends {
					if f.Prefix.Bits() == 0 {
						got = append(got, fmt.Sprintf("%s %d %s to %s, %s", f.Prefix, f.Port, f.Protocol, svc.Clusters[0].Cluster, scope.Clusters[svc.Clusters[0].Cluster].Kind))
					}
				}
			}
			var want []string // what only passes costs nothing
			if to == "BlackHoleCluster" {
				want = []string{"0.0.0.0/0 0 TCP to BlackHoleCluster, blackhole", "::/0 0 TCP to BlackHoleCluster, blackhole"}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// whole writes a scope, what each resource is doing, and every verdict that somebody should know.
func whole(scope mesh.Scope, status Status) string {
	var w strings.Builder
	for _, svc := range slices.Concat(scope.Services, scope.HTTP) {
		fmt.Fprintf(&w, "service %s\n", svc.Name)
		for _, f := range svc.Frontends {
			fmt.Fprintf(&w, "  at %s %d %s\n", f.Prefix, f.Port, f.Protocol)
		}
		for _, c := range svc.Clusters {
			fmt.Fprintf(&w, "  to %s %d\n", c.Cluster, c.Weight)
		}
		if svc.HTTP == nil {
			continue
		}
		for _, vh := range svc.HTTP.VirtualHosts {
			fmt.Fprintf(&w, "  virtual host %s: %s\n", vh.Name, strings.Join(vh.Domains, " "))
			for i, r := range vh.Routes {
				fmt.Fprintf(&w, "    %d %q unsupported %t %s -> %v\n", i, r.Name, r.Unsupported, matchOf(r.Match), r.Clusters)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(scope.Clusters)) {
		c := scope.Clusters[name]
		fmt.Fprintf(&w, "cluster %s %s %s\n", name, c.Kind, c.Policy)
		for _, l := range c.Localities {
			for _, e := range l.Endpoints {
				fmt.Fprintf(&w, "  %s/%s/%s %d: %s %d %s\n", l.Region, l.Zone, l.SubZone, l.Priority, e.Addr, e.Weight, e.Health)
			}
		}
	}
	for _, r := range status.Resources {
		fmt.Fprintf(&w, "%s %s is %s\n", r.Type, r.Name, r.State)
		for _, v := range r.Verdicts {
			if v.Class != mesh.Enforced && v.Class != mesh.Default {
				fmt.Fprintf(&w, "  %s %s: %s\n", v.Field, v.Class, v.Message)
			}
		}
	}
	return w.String()
}

func matchOf(m mesh.RouteMatch) string {
	text := fmt.Sprintf("%+v", m.Path)
	for _, h := range m.Headers {
		text += fmt.Sprintf(" header %+v", h)
	}
	for _, q := range m.Query {
		text += fmt.Sprintf(" query %+v", q)
	}
	if m.Fraction != nil {
		text += fmt.Sprintf(" fraction %+v", *m.Fraction)
	}
	return text
}
