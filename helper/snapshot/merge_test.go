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
			in := mesh.Scope{Key: mesh.ScopeKey{Namespace: "x"}, Services: tc.services, HTTP: tc.http, Clusters: maps.Clone(clusters)}
			before := fmt.Sprintf("%v %v %v", in, tc.announced, len(in.Services))
			got, verdicts := Merge(in, slices.Values(tc.announced))
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

// BenchmarkMerge merges 10,000 announced services with a scope that routes some ports.
func BenchmarkMerge(b *testing.B) {
	scope := mesh.Scope{Clusters: map[string]*mesh.Cluster{"pass": {Name: "pass", Kind: mesh.Passthrough}}}
	for p := range 100 {
		scope.HTTP = append(scope.HTTP, routed(fmt.Sprint("h", p), fmt.Sprintf("0.0.0.0/0:%d", 9000+p)))
	}
	var list []*mesh.Announced
	for i := range 10_000 {
		list = append(list, announced(fmt.Sprint("s", i), mesh.AppHTTP1, fmt.Sprintf("10.96.%d.%d:%d", i>>8, i&255, 8950+i%100)))
	}
	b.ReportAllocs()
	for b.Loop() {
		got, verdicts := Merge(scope, slices.Values(list))
		if len(got.Services) != 5000 || len(verdicts) != 0 {
			b.Fatalf("%d services, %d verdicts", len(got.Services), len(verdicts))
		}
	}
}
