// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

// takenApart are the virtual hosts and the rest of a RouteConfiguration.
func takenApart(rc *routev3.RouteConfiguration) (rest *routev3.RouteConfiguration, hosts []*Host) {
	rest = proto.Clone(rc).(*routev3.RouteConfiguration)
	rest.VirtualHosts = nil
	for _, vh := range rc.GetVirtualHosts() {
		hosts = append(hosts, TranslateHost(rest, vh))
	}
	return rest, hosts
}

// laidOut is all of a translation, with what is known of a route at the route's place.
func laidOut(rc *RouteConfig) []any {
	out := []any{rc.Name, rc.Verdicts, rc.HTTP}
	rc.EachReference(func(cluster string, at Place) { out = append(out, cluster, at.Reference()) })
	if rc.HTTP != nil {
		known := 0
		for i, vh := range rc.HTTP.VirtualHosts {
			for j, r := range vh.Routes {
				if f := rc.faults[r]; f != nil {
					out = append(out, fmt.Sprint(i, " ", j), f)
					known++
				}
			}
		}
		if known != len(rc.faults) {
			out = append(out, "faults of routes that are not there")
		}
	}
	return out
}

// checkApart: by its virtual hosts a RouteConfiguration becomes what it becomes as a whole,
// also where what cannot be enforced is refused; and it does, unless something is wrong.
func checkApart(t *testing.T, m *routev3.RouteConfiguration) {
	t.Helper()
	whole := TranslateRoutes(m, "s")
	rest, hosts := takenApart(m)
	parts, ok := JoinHosts(rest, hosts, "s")
	if !ok {
		refused := whole.HTTP != nil && len(whole.HTTP.VirtualHosts) == 1 && whole.HTTP.VirtualHosts[0].Name == m.GetName()
		if whole.HTTP != nil && len(whole.Verdicts) <= maxRouteVerdicts && !refused {
			t.Fatalf("it is not translated by its virtual hosts: %v", whole.Verdicts)
		}
		return
	}
	if got, want := laidOut(parts), laidOut(whole); !reflect.DeepEqual(got, want) {
		t.Fatalf("by its virtual hosts\n%+v\nas a whole\n%+v", got, want)
	}
	other, _ := JoinHosts(rest, hosts, "s")
	parts.Refuse()
	whole.Refuse()
	if got, want := laidOut(parts), laidOut(whole); !reflect.DeepEqual(got, want) {
		t.Fatalf("refused by its virtual hosts\n%+v\nas a whole\n%+v", got, want)
	}
	if !reflect.DeepEqual(laidOut(other), laidOut(TranslateRoutes(m, "s"))) {
		t.Fatal("what others hold too was changed")
	}
}

// pieces of RouteConfigurations: what is enforced, what is not, what is invalid.
var (
	routePieces = []string{
		"{name: a, match: {prefix: /a}, route: {cluster: c%d}}",
		"{match: {path: /b}, route: {weighted_clusters: {clusters: [{name: c%d, weight: 1}, {name: d, weight: 3}]}}}",
		"{name: e, match: {prefix: /}, redirect: {host_redirect: h%d}}",
		"{match: {prefix: /, headers: [{name: x, string_match: {exact: y%d}}]}, route: {cluster: d, timeout: 5s}}",
		"{match: {prefix: /, grpc: {}}, route: {cluster: c%d}}",
		"{match: {prefix: /}, route: {cluster: c%d, prefix_rewrite: /z}}",
		"{match: {prefix: /}, route: {cluster_header: x%d}}",
		"{match: {prefix: /}, route: {cluster: c%d, hash_policy: [{header: {header_name: x}}, {connection_properties: {source_ip: true}}]}}",
		"{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: 'body %d'}}}",
		"{match: {prefix: /}, route: {cluster: c%d}, typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 503, percentage: {numerator: 5}}}}}",
		"{match: {prefix: /}, route: {cluster: c%d}, typed_per_filter_config: {cors: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy}}}",
	}
	hostPieces = []string{"", "", "", "require_tls: ALL, ", "cors: {}, ", "request_headers_to_remove: [x], ",
		"typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}}, "}
	wholePieces = []string{"", "", "", "", "ignore_port_in_host_matching: true, ", "max_direct_response_body_size_bytes: 3, ", "validate_clusters: true, ",
		"request_headers_to_remove: [hx], ", "vhds: {config_source: {ads: {}}}, ",
		"typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 500, percentage: {numerator: 1}}}}, "}
)

func randomRoutes(r *rand.Rand) string {
	pick := func(of []string) string { return of[r.IntN(len(of))] }
	var b strings.Builder
	fmt.Fprintf(&b, "{name: '80', %svirtual_hosts: [", pick(wholePieces))
	for i := range r.IntN(6) {
		domains := fmt.Sprintf("h%d, H%d.ns", i, i)
		if r.IntN(12) == 0 {
			domains = fmt.Sprintf("h%d", r.IntN(6)) // may be another's
		}
		fmt.Fprintf(&b, "{name: v%d, domains: [%s], %sroutes: [", i, domains, pick(hostPieces))
		for range r.IntN(4) {
			fmt.Fprintf(&b, pick(routePieces)+", ", r.IntN(3))
		}
		b.WriteString("]}, ")
	}
	b.WriteString("]}")
	return b.String()
}

func TestHostsApart(t *testing.T) {
	apart := 0
	for seed := range uint64(800) {
		text := randomRoutes(rand.New(rand.NewPCG(seed, 1)))
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := message(t, &routev3.RouteConfiguration{}, text)
			rest, hosts := takenApart(m)
			if _, ok := JoinHosts(rest, hosts, "s"); ok {
				apart++
			}
			checkApart(t, m)
			if t.Failed() {
				t.Log(text)
			}
		})
	}
	if apart < 300 {
		t.Errorf("only %d of them were translated by their virtual hosts", apart)
	}
}

// More verdicts than are shown: the same ones are, and the same number is not.
func TestHostsApartMany(t *testing.T) {
	var b strings.Builder
	b.WriteString("{name: '80', virtual_hosts: [")
	for i := range 900 {
		fmt.Fprintf(&b, "{name: v%d, domains: [h%d], cors: {}, routes: [{match: {prefix: /}, route: {cluster: c, prefix_rewrite: /z, timeout: 3s}}, {match: {prefix: /}, route: {cluster: c, host_rewrite_literal: z}}]}, ", i, i)
	}
	m := message(t, &routev3.RouteConfiguration{}, b.String()+"]}")
	whole := TranslateRoutes(m, "s")
	rest, hosts := takenApart(m)
	parts, ok := JoinHosts(rest, hosts, "s")
	if !ok || len(whole.Verdicts) != maxRouteVerdicts+1 || !reflect.DeepEqual(whole.Verdicts, parts.Verdicts) {
		t.Errorf("%v, %d verdicts, %d by the virtual hosts", ok, len(whole.Verdicts), len(parts.Verdicts))
	}
}

// What a virtual host takes of the configuration around it is in its key.
func TestHostSettings(t *testing.T) {
	keys := map[string]string{}
	for _, piece := range wholePieces[3:] {
		rest := message(t, &routev3.RouteConfiguration{}, "{name: '80', "+piece+"}")
		key, err := HostSettings(rest)
		if err != nil {
			t.Fatal(err)
		}
		h := TranslateHost(rest, message(t, &routev3.VirtualHost{}, "{name: v, domains: [a], routes: ["+
			"{match: {prefix: /}, route: {cluster: c}}, {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: abcde}}}]}"))
		text := fmt.Sprint(h.bad, h.notes.Verdicts("", ""))
		for i, r := range h.vh.Routes {
			text += fmt.Sprintf(" %d %+v %+v %+v", i, r.Match, r.Direct, h.faults[r])
		}
		if was, ok := keys[key]; ok && was != text {
			t.Errorf("%q: two translations with one key:\n%s\n%s", piece, was, text)
		}
		keys[key] = text
	}
	if len(keys) != 3 {
		t.Errorf("%d keys", len(keys))
	}
}

func TestNotes(t *testing.T) {
	list := []mesh.Verdict{
		{Source: "s", Type: TypeCluster, Resource: "n", Field: "a.b", Class: mesh.Enforced},
		{Source: "s", Type: TypeCluster, Resource: "n", Field: strings.Repeat("x", 300), Class: mesh.Invalid, Message: "\x00\xff, " + strings.Repeat("y", 70000)},
		{Source: "s", Type: "", Resource: "n"},
	}
	n := NotesOf(list)
	if got := n.Verdicts("s", "n"); !reflect.DeepEqual(got, list) {
		t.Errorf("got %v", got)
	}
	if n != NotesOf(list) || n == NotesOf(list[1:]) {
		t.Error("equal notes are not one, or others are")
	}
	if (Notes{}).Verdicts("s", "n") != nil || NotesOf(nil).Verdicts("s", "n") != nil {
		t.Error("verdicts of nothing")
	}
}
