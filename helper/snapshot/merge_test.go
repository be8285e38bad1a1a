// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"kmesh/helper/mesh"
)

func frontends(texts ...string) []mesh.Frontend {
	var out []mesh.Frontend
	for _, text := range texts {
		var port uint16
		addr, rest, _ := strings.Cut(text, ":")
		if _, err := fmt.Sscan(rest, &port); err != nil {
			panic(err)
		}
		if !strings.Contains(addr, "/") {
			addr += "/32"
		}
		out = append(out, mesh.Frontend{Prefix: netip.MustParsePrefix(addr), Port: port, Protocol: mesh.TCP})
	}
	return out
}

// service is one of Envoy's types: it leads to a cluster.
func service(name, cluster string, to ...string) *mesh.Service {
	return &mesh.Service{Name: name, Frontends: frontends(to...), Clusters: []mesh.WeightedCluster{{Cluster: cluster, Weight: 1}}}
}

// routed is one with HTTP routes.
func routed(name string, to ...string) *mesh.Service {
	s := service(name, "pass", to...)
	s.HTTP = &mesh.HTTP{}
	return s
}

func announced(host string, app mesh.AppProtocol, to ...string) *mesh.Announced {
	name := "workload/ns/" + host
	return &mesh.Announced{
		Service:   service(name, name, to...),
		Clusters:  []*mesh.Cluster{{Name: name}},
		Namespace: "ns", Hostname: host, App: app,
	}
}

func TestMerge(t *testing.T) {
	clusters := map[string]*mesh.Cluster{
		"c": {Name: "c"}, "pass": {Name: "pass", Kind: mesh.Passthrough},
		"black": {Name: "black", Kind: mesh.Blackhole}, "refused": {Name: "refused", Kind: mesh.Refused},
	}
	for name, tc := range map[string]struct {
		services, http []*mesh.Service
		announced      []*mesh.Announced
		want           string   // services and where they are, without HTTP
		verdicts       []string // parts of them
	}{
		"nothing of Envoy's": {
			announced: []*mesh.Announced{announced("a", mesh.AppHTTP1, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.2:80")},
			want:      "workload/ns/a@10.0.0.1/32:80 workload/ns/b@10.0.0.2/32:80",
		},
		"nothing announced": {services: []*mesh.Service{service("l", "c", "10.0.0.1:80")}, want: "l@10.0.0.1/32:80"},
		"the same destination is Envoy's": {
			services:  []*mesh.Service{service("l", "c", "10.0.0.1:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.1:81")},
			want:      "l@10.0.0.1/32:80 workload/ns/b@10.0.0.1/32:81",
		},
		"the same destination is routed": {
			http:      []*mesh.Service{routed("h", "10.0.0.1:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80")},
		},
		"one of two addresses": {
			services:  []*mesh.Service{service("l", "c", "10.0.0.1:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80", "10.0.0.2:80")},
			want:      "l@10.0.0.1/32:80 workload/ns/a@10.0.0.2/32:80",
		},
		"a routed wildcard takes HTTP/1 and what is not declared": {
			http: []*mesh.Service{routed("h", "0.0.0.0/0:80")},
			announced: []*mesh.Announced{
				announced("http", mesh.AppHTTP1, "10.0.0.1:80"), announced("unknown", mesh.AppUnknown, "10.0.0.2:80"),
				announced("grpc", mesh.AppGRPC, "10.0.0.3:80"), announced("h2", mesh.AppHTTP2, "10.0.0.4:80"),
				announced("tcp", mesh.AppTCP, "10.0.0.5:80"), announced("tls", mesh.AppTLS, "10.0.0.6:80"),
				announced("port", mesh.AppHTTP1, "10.0.0.7:81"),
			},
			want: "workload/ns/grpc@10.0.0.3/32:80 workload/ns/h2@10.0.0.4/32:80 workload/ns/port@10.0.0.7/32:81 workload/ns/tcp@10.0.0.5/32:80 workload/ns/tls@10.0.0.6/32:80",
		},
		"a wildcard passes on": {
			services:  []*mesh.Service{service("virtualOutbound", "pass", "0.0.0.0/0:0")},
			announced: []*mesh.Announced{announced("a", mesh.AppHTTP1, "10.0.0.1:80")},
			want:      "virtualOutbound@0.0.0.0/0:0 workload/ns/a@10.0.0.1/32:80",
		},
		"a wildcard leads nowhere": {
			services:  []*mesh.Service{service("virtualOutbound", "black", "0.0.0.0/0:0")},
			announced: []*mesh.Announced{announced("a", mesh.AppHTTP1, "10.0.0.1:80")},
			want:      "virtualOutbound@0.0.0.0/0:0",
		},
		"a wildcard refuses": {
			services:  []*mesh.Service{service("w", "refused", "10.0.0.0/8:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.1:81"), announced("c", mesh.AppTCP, "11.0.0.1:80")},
			want:      "w@10.0.0.0/8:80 workload/ns/b@10.0.0.1/32:81 workload/ns/c@11.0.0.1/32:80",
		},
		"the longest prefix counts": {
			services:  []*mesh.Service{service("w", "black", "0.0.0.0/0:80"), service("v", "pass", "10.0.0.0/8:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "11.0.0.1:80")},
			want:      "v@10.0.0.0/8:80 w@0.0.0.0/0:80 workload/ns/a@10.0.0.1/32:80",
		},
		"the port counts before": {
			services:  []*mesh.Service{service("w", "pass", "0.0.0.0/0:80"), service("v", "black", "10.0.0.0/8:0")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.1:81")},
			want:      "v@10.0.0.0/8:0 w@0.0.0.0/0:80 workload/ns/a@10.0.0.1/32:80",
		},
		"a routed wildcard, of another family": {
			http:      []*mesh.Service{{Name: "h", HTTP: &mesh.HTTP{}, Frontends: []mesh.Frontend{{Prefix: netip.MustParsePrefix("::/0"), Port: 80, Protocol: mesh.TCP}}}},
			announced: []*mesh.Announced{announced("a", mesh.AppHTTP1, "10.0.0.1:80")},
			want:      "workload/ns/a@10.0.0.1/32:80",
		},
		"one destination announced twice": {
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.1:80", "10.0.0.2:80")},
			want:      "workload/ns/a@10.0.0.1/32:80 workload/ns/b@10.0.0.2/32:80",
			verdicts:  []string{`Service "ns/b": addresses: workload/ns/b is left out: workload/ns/a has 10.0.0.1/32 port 80 too`},
		},
		"a name that is taken": {
			services:  []*mesh.Service{service("workload/ns/a", "c", "10.0.0.9:80")},
			announced: []*mesh.Announced{announced("a", mesh.AppTCP, "10.0.0.1:80")},
			want:      "workload/ns/a@10.0.0.9/32:80",
			verdicts:  []string{"of its name"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			sortServices(tc.services) // as in every scope
			in := mesh.Scope{Key: mesh.ScopeKey{Namespace: "x"}, Services: tc.services, HTTP: tc.http, Clusters: maps.Clone(clusters)}
			before := fmt.Sprintf("%v %v %v", in, tc.announced, len(in.Services))
			got, verdicts := Merge(in, NewAnnounced(slices.Values(tc.announced), nil))
			if after := fmt.Sprintf("%v %v %v", in, tc.announced, len(in.Services)); after != before {
				t.Error("an input was changed")
			}
			var list []string
			for _, s := range got.Services {
				one := s.Name + "@"
				for i, f := range s.Frontends {
					if i > 0 {
						one += ","
					}
					one += fmt.Sprintf("%s:%d", f.Prefix, f.Port)
				}
				list = append(list, one)
				for _, c := range s.Clusters {
					if got.Clusters[c.Cluster] == nil {
						t.Errorf("%s: cluster %q is missing", s.Name, c.Cluster)
					}
				}
			}
			if s := strings.Join(list, " "); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
			if !slices.IsSortedFunc(got.Services, func(a, b *mesh.Service) int { return strings.Compare(a.Name, b.Name) }) {
				t.Error("not sorted")
			}
			if got.Key != in.Key || !slices.Equal(got.HTTP, in.HTTP) {
				t.Errorf("key %v, HTTP %v", got.Key, got.HTTP)
			}
			if len(verdicts) != len(tc.verdicts) {
				t.Fatalf("verdicts %v, want %q", verdicts, tc.verdicts)
			}
			for i, v := range verdicts {
				if v.Class != mesh.Invalid || !strings.Contains(v.Error(), tc.verdicts[i]) {
					t.Errorf("verdict %v, want %q", v.Error(), tc.verdicts[i])
				}
			}
		})
	}
}

// TestMergeSame: what has not changed is the same object, from one call to the next, from
// one scope to another, and beside what has changed.
func TestMergeSame(t *testing.T) {
	list := []*mesh.Announced{
		announced("a", mesh.AppTCP, "10.0.0.1:80"), announced("b", mesh.AppTCP, "10.0.0.2:80", "10.0.0.3:80"),
		announced("c", mesh.AppTCP, "10.0.0.4:80", "10.0.0.5:80", "10.0.0.6:80"),
	}
	scope := mesh.Scope{
		Services: []*mesh.Service{service("l", "c", "10.0.0.2:80"), service("m", "c", "10.0.0.5:80")},
		Clusters: map[string]*mesh.Cluster{"c": {Name: "c"}},
	}
	other := scope
	other.Key.Namespace = "other"
	one := NewAnnounced(slices.Values(list), nil)
	merge := func(s mesh.Scope, a *Announced) mesh.Scope {
		got, verdicts := Merge(s, a)
		if len(verdicts) > 0 {
			t.Fatal(verdicts)
		}
		return got
	}
	first := merge(scope, one)
	if len(first.Services) != 5 || len(first.Services[3].Frontends) != 1 || len(first.Services[4].Frontends) != 2 {
		t.Fatalf("%+v", first)
	}
	same := func(what string, got mesh.Scope) {
		t.Helper()
		if !slices.Equal(got.Services, first.Services) || !maps.Equal(got.Clusters, first.Clusters) {
			t.Errorf("%s: %v, want the same objects as in %v", what, got, first)
		}
	}
	same("again", merge(scope, one))
	same("another scope", merge(other, one))
	if NewAnnounced(slices.Values(slices.Clone(list)), one) != one {
		t.Error("the same services are another list")
	}

	// Endpoints change: the cluster is another one, and nothing else.
	next := *list[1]
	next.Clusters = []*mesh.Cluster{{Name: next.Clusters[0].Name, Policy: mesh.Random}}
	list[1] = &next
	two := NewAnnounced(slices.Values(list), one)
	second := merge(scope, two)
	if second.Clusters[next.Service.Name] != next.Clusters[0] {
		t.Error("the cluster has not changed")
	}
	second.Clusters[next.Service.Name] = first.Clusters[next.Service.Name]
	same("beside an endpoint", second)

	// A service comes, and one changes.
	list = append(list, announced("d", mesh.AppTCP, "10.0.0.7:80"))
	list[0] = announced("a", mesh.AppTCP, "10.0.0.9:80")
	list[1] = announced("b", mesh.AppTCP, "10.0.0.2:80", "10.0.0.3:80")
	three := NewAnnounced(slices.Values(list), two)
	third := merge(scope, three)
	for i, want := range []bool{true, true, false, false, true} {
		if got := third.Services[i] == first.Services[i]; got != want {
			t.Errorf("%s is the same object: %v, want %v", third.Services[i].Name, got, want)
		}
	}
	if n := len(three.parts.made); n != 2 {
		t.Errorf("%d parts are remembered, want those of the two services that are in use", n)
	}
	if got := slices.Collect(one.All()); len(got) != 3 || one.Len() != 3 || got[0].Service != first.Services[2] {
		t.Error("the first list has changed")
	}
}

// BenchmarkMerge merges 10,000 announced services of two ports each with a scope of nothing
// but wildcards that pass on, of as many listeners as there are services, and of wildcards
// that route what half of the services are.
func BenchmarkMerge(b *testing.B) {
	pass := map[string]*mesh.Cluster{"pass": {Name: "pass", Kind: mesh.Passthrough}}
	var list []*mesh.Announced
	for i := range 20_000 {
		list = append(list, announced(fmt.Sprintf("s%d.namespace.svc.cluster.local:%d/ipv4", i/2, 80+i%2), mesh.AppHTTP1, fmt.Sprintf("10.96.%d.%d:%d", i>>9, i>>1&255, 80+i%2)))
	}
	plain := mesh.Scope{Clusters: pass, Services: []*mesh.Service{service("virtualOutbound", "pass", "0.0.0.0/0:0")}}
	listeners := mesh.Scope{Clusters: maps.Clone(pass)}
	for i := range 10_000 {
		name := fmt.Sprintf("outbound|80||s%d.namespace.svc.cluster.local", i)
		listeners.Services = append(listeners.Services, service(name, name, fmt.Sprintf("10.96.%d.%d:80", i>>8, i&255)))
		listeners.Clusters[name] = &mesh.Cluster{Name: name}
	}
	sortServices(listeners.Services)
	half := mesh.Scope{Clusters: pass, HTTP: []*mesh.Service{routed("80", "0.0.0.0/0:80")}}
	for p := range 100 {
		half.HTTP = append(half.HTTP, routed(fmt.Sprint("h", p), fmt.Sprintf("0.0.0.0/0:%d", 9000+p)))
	}
	for _, bb := range []struct {
		name  string
		scope mesh.Scope
		want  int
	}{{"plain", plain, 20_001}, {"listeners", listeners, 20_000}, {"half", half, 10_000}} {
		b.Run(bb.name, func(b *testing.B) {
			all := NewAnnounced(slices.Values(list), nil)
			b.ReportAllocs()
			for b.Loop() {
				got, verdicts := Merge(bb.scope, all)
				if len(got.Services) != bb.want || len(verdicts) != 0 {
					b.Fatalf("%d services, %d verdicts", len(got.Services), len(verdicts))
				}
			}
		})
	}
}

// BenchmarkAnnounced makes the list anew after one service's endpoints have changed, and
// after one service has.
func BenchmarkAnnounced(b *testing.B) {
	var list []*mesh.Announced
	for i := range 20_000 {
		list = append(list, announced(fmt.Sprintf("s%d:%d/ipv4", i/2, 80+i%2), mesh.AppHTTP1, fmt.Sprintf("10.96.%d.%d:%d", i>>9, i>>1&255, 80+i%2)))
	}
	for _, name := range []string{"endpoints", "service"} {
		b.Run(name, func(b *testing.B) {
			last := NewAnnounced(slices.Values(list), nil)
			b.ReportAllocs()
			for b.Loop() {
				next := slices.Clone(last.list)
				one := *next[77]
				if name == "service" {
					svc := *one.Service
					one.Service = &svc
				}
				next[77] = &one
				a := announce(next, last)
				if a == last {
					b.Fatal("the change is not seen")
				}
				last = a
			}
		})
	}
}
