// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

// outcomes writes what becomes of requests, route by route: R refused, S served.
func outcomes(h *mesh.HTTP) string {
	if h == nil {
		return "none"
	}
	var out []string
	for _, vh := range h.VirtualHosts {
		text := strings.Join(vh.Domains, ",") + ":"
		for _, r := range vh.Routes {
			if r.Unsupported {
				text += "R"
			} else {
				text += "S"
			}
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// actionsLeft are verdicts that say that something is served without an action.
func actionsLeft(verdicts []mesh.Verdict) bool {
	return slices.ContainsFunc(verdicts, func(v mesh.Verdict) bool { return v.Class == mesh.UnsupportedAction })
}

func TestRefuseRoutes(t *testing.T) {
	const vh = "{name: %s, domains: [%s], routes: [{match: {prefix: /a}, route: {cluster: a%s}}, {match: {prefix: /}, route: {cluster: b}}]%s}"
	host := func(name, route, rest string) string { return fmt.Sprintf(vh, name, name, route, rest) }
	const mirror, cors = ", request_mirror_policies: [{cluster: m}]", ", cors: {}"
	for name, tt := range map[string]struct {
		yaml, want, refs string
	}{
		"nothing to refuse":   {"virtual_hosts: [" + host("x", "", "") + "]", "x:SS", "a b"},
		"a route":             {"virtual_hosts: [" + host("x", "", "") + ", " + host("z", mirror, "") + "]", "x:SS z:RS", "a b b"},
		"a virtual host":      {"virtual_hosts: [" + host("x", "", cors) + ", " + host("z", "", "") + "]", "x:R z:SS", "a b"},
		"both":                {"virtual_hosts: [" + host("x", mirror, cors) + ", " + host("z", "", "") + "]", "x:R z:SS", "a b"},
		"the configuration":   {"virtual_hosts: [" + host("x", "", "") + "]\nrequest_mirror_policies: [{cluster: m}]", "*:R", ""},
		"the tenth and later": {"virtual_hosts: [{name: x, domains: [x], routes: [" + strings.Repeat("{match: {prefix: /}, route: {cluster: a}}, ", 11) + "{match: {prefix: /}, route: {cluster: c" + mirror + "}}]}]", "x:" + strings.Repeat("S", 11) + "R", strings.TrimSpace(strings.Repeat("a ", 11))},
	} {
		t.Run(name, func(t *testing.T) {
			rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, "name: r\n"+tt.yaml), "test")
			rc.Refuse()
			var refs []string
			for _, ref := range rc.References {
				refs = append(refs, ref.Cluster)
			}
			if got := outcomes(rc.HTTP); got != tt.want || strings.Join(refs, " ") != tt.refs {
				t.Errorf("%s with references %q, want %s with %q; verdicts:\n%s", got, refs, tt.want, tt.refs, list(rc.Verdicts))
			}
			if actionsLeft(rc.Verdicts) {
				t.Errorf("still said to be served:\n%s", list(rc.Verdicts))
			}
		})
	}
}

func TestRefuseListeners(t *testing.T) {
	hcm := func(rest string) string {
		return "{filters: [{name: h, typed_config: {'@type': type.googleapis.com/" + typeHCM + ", stat_prefix: x, " + rest + "}}]}"
	}
	const inline = "route_config: {name: r, virtual_hosts: [{name: x, domains: [x], routes: [{match: {prefix: /a}, route: {cluster: a%s}}, {match: {prefix: /}, route: {cluster: b}}]}]}"
	for name, tt := range map[string]struct {
		yaml string
		want []string // services with their clusters, and routes
	}{
		"tcp":              {vip + "filter_chains: [" + chainTo("c") + "]", []string{"l -> c none"}},
		"tcp, logged":      {vip + "filter_chains: [" + chainTo("c") + "]\naccess_log: [{name: x}]", []string{"l -> " + RefusedCluster + " none"}},
		"proxy, logged":    {vip + "filter_chains: [{filters: [" + tcp("cluster: c, access_log: [{name: x}]") + "]}]", []string{"l -> " + RefusedCluster + " none"}},
		"http":             {vip + "filter_chains: [" + hcm(fmt.Sprintf(inline, "")) + "]", []string{"l -> b x:SS"}},
		"http, a route":    {vip + "filter_chains: [" + hcm(fmt.Sprintf(inline, ", request_mirror_policies: [{cluster: m}]")) + "]", []string{"l -> b x:RS"}},
		"http, logged":     {vip + "filter_chains: [" + hcm(fmt.Sprintf(inline, "")+", access_log: [{name: x}]") + "]", []string{"l -> " + RefusedCluster + " *:R"}},
		"http, by RDS":     {vip + "filter_chains: [" + hcm("rds: {route_config_name: r, config_source: {ads: {}}}, access_log: [{name: x}]") + "]", []string{"l -> " + RefusedCluster + " *:R"}},
		"http, one filter": {vip + "filter_chains: [" + hcm(fmt.Sprintf(inline, "")+", http_filters: [{name: f, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}]") + "]", []string{"l -> " + RefusedCluster + " *:R"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := TranslateListener(message(t, &listenerv3.Listener{}, "name: l\n"+tt.yaml), "test")
			l.Refuse()
			var got []string
			for _, s := range l.Services {
				got = append(got, s.Name+" -> "+s.Clusters[0].Cluster+" "+outcomes(s.HTTP))
			}
			for _, h := range l.HTTP {
				s := h.Join(nil)
				got = append(got, s.Name+" -> "+s.Clusters[0].Cluster+" "+outcomes(s.HTTP))
				if refused := s.Clusters[0].Cluster == RefusedCluster; refused && (h.RouteConfig != "" || len(l.References) > 0) {
					t.Errorf("what is refused waits for routes %q and clusters %v", h.RouteConfig, l.References)
				}
			}
			if !slices.Equal(got, tt.want) || actionsLeft(l.Verdicts) {
				t.Errorf("%q, want %q; verdicts:\n%s", got, tt.want, list(l.Verdicts))
			}
		})
	}
}

func TestRefuseClusters(t *testing.T) {
	const static = "type: STATIC\nload_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}%s]}]}\n"
	for name, tt := range map[string]struct {
		yaml string
		want mesh.ClusterKind
	}{
		"plain":       {fmt.Sprintf(static, ""), mesh.Endpoints},
		"an action":   {fmt.Sprintf(static, "") + "slow_start_config: {}\nround_robin_lb_config: {slow_start_config: {slow_start_window: 5s}}", mesh.Refused},
		"passed on":   {"type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\nconnect_timeout: 10s", mesh.Passthrough},
		"an endpoint": {fmt.Sprintf(static, ", {endpoint: {address: {pipe: {path: /x}}}}"), mesh.Endpoints},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(tt.yaml, "slow_start_config: {}\n", "", 1)
			c := TranslateCluster(message(t, &clusterv3.Cluster{}, "name: c\n"+text), "test")
			had := actionsLeft(c.Verdicts)
			c.Refuse()
			if c.Cluster == nil || c.Cluster.Kind != tt.want || tt.want == mesh.Refused && (len(c.Cluster.Localities) > 0 || !had) || actionsLeft(c.Verdicts) {
				t.Errorf("%+v, want %s; verdicts:\n%s", c.Cluster, tt.want, list(c.Verdicts))
			}
		})
	}
}

// FuzzRefuse: whatever a resource holds, what has nothing to refuse is as it was, and of the other nothing is said to
// be served without an action.
func FuzzRefuse(f *testing.F) {
	for seed := range uint64(30) {
		g := newGenerator(seed)
		m := []proto.Message{&listenerv3.Listener{}, &clusterv3.Cluster{}, &routev3.RouteConfiguration{}}[seed%3]
		g.fill(m.ProtoReflect(), 4)
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(seed%3), data)
	}
	for _, m := range goldenMessages(f) {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		kind := uint8(0)
		if _, ok := m.(*routev3.RouteConfiguration); ok {
			kind = 2
		}
		f.Add(kind, data)
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		var now, was any
		var verdicts []mesh.Verdict
		had := false
		switch kind % 3 {
		case 0:
			m := &listenerv3.Listener{}
			if proto.Unmarshal(data, m) != nil {
				return
			}
			a, b := TranslateListener(m, "f"), TranslateListener(m, "f")
			had = actionsLeft(a.Verdicts)
			a.Refuse()
			now, was, verdicts = a, b, a.Verdicts
		case 1:
			m := &clusterv3.Cluster{}
			if proto.Unmarshal(data, m) != nil {
				return
			}
			a, b := TranslateCluster(m, "f"), TranslateCluster(m, "f")
			had = actionsLeft(a.Verdicts)
			a.Refuse()
			now, was, verdicts = a, b, a.Verdicts
		case 2:
			m := &routev3.RouteConfiguration{}
			if proto.Unmarshal(data, m) != nil {
				return
			}
			a, b := TranslateRoutes(m, "f"), TranslateRoutes(m, "f")
			had = actionsLeft(a.Verdicts)
			a.Refuse()
			now, was, verdicts = a, b, a.Verdicts
			if a.HTTP != nil && had && !strings.Contains(outcomes(a.HTTP), "R") {
				t.Errorf("nothing is refused: %s", outcomes(a.HTTP))
			}
		}
		if actionsLeft(verdicts) {
			t.Errorf("still said to be served:\n%s", list(verdicts))
		}
		if !had && kind%3 == 1 && !reflect.DeepEqual(now, was) {
			t.Errorf("nothing is to be refused, and it changed: %+v, was %+v", now, was)
		}
	})
}
