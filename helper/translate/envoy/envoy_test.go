// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"kmesh/helper/mesh"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/echo/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/pick_first/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// message reads a protobuf from YAML.
func message[T proto.Message](t testing.TB, m T, text string) T {
	t.Helper()
	raw, err := yaml.YAMLToJSONStrict([]byte(strings.ReplaceAll(text, "\t", "  ")))
	if err != nil {
		t.Fatalf("yaml: %v\n%s", err, text)
	}
	if err := protojson.Unmarshal(raw, m); err != nil {
		t.Fatalf("protojson: %v\n%s", err, raw)
	}
	return m
}

// want is one expected verdict.
type want struct {
	field string
	class mesh.Class
	text  string // part of the message
}

// checkVerdicts looks for expected verdicts, and refuses invalid ones that are not
// expected.
func checkVerdicts(t *testing.T, got []mesh.Verdict, wants []want) {
	t.Helper()
	for _, w := range wants {
		if !slices.ContainsFunc(got, func(v mesh.Verdict) bool {
			return v.Field == w.field && v.Class == w.class && strings.Contains(v.Message, w.text)
		}) {
			t.Errorf("no verdict %s %s %q in:\n%s", w.field, w.class, w.text, list(got))
		}
	}
	for _, v := range Invalid(got) {
		if !slices.ContainsFunc(wants, func(w want) bool { return w.field == v.Field && w.class == mesh.Invalid }) {
			t.Errorf("unexpected: %v", v)
		}
	}
}

func list(verdicts []mesh.Verdict) string {
	var b strings.Builder
	for _, v := range verdicts {
		fmt.Fprintf(&b, "  %s: %s: %s\n", v.Field, v.Class, v.Message)
	}
	return b.String()
}

// services writes services in one line each.
func services(list []*mesh.Service) []string {
	var out []string
	for _, s := range list {
		text := s.Name + ":"
		for _, f := range s.Frontends {
			text += fmt.Sprintf(" %s %s:%d", f.Protocol, f.Prefix, f.Port)
		}
		text += " ->"
		for _, c := range s.Clusters {
			text += fmt.Sprintf(" %s*%d", c.Cluster, c.Weight)
		}
		if s.HashSource {
			text += " by source"
		}
		out = append(out, text)
	}
	return out
}

const (
	tcpType   = "'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	udpType   = "'@type': type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig"
	routeType = "'@type': type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route"
	vip       = "address: {socket_address: {address: 10.0.0.1, port_value: 80}}\n"
)

// tcp is a filter with a tcp_proxy.
func tcp(config string) string {
	return "{name: p, typed_config: {" + tcpType + ", stat_prefix: x, " + config + "}}"
}

// chainTo is a filter chain that leads to a cluster.
func chainTo(cluster string) string { return "{filters: [" + tcp("cluster: "+cluster) + "]}" }

// any is an extension without options.
func anyOf(name string) string {
	return "{'@type': type.googleapis.com/" + name + "}"
}

const typedTCP = "filter_chains[0].filters[0].typed_config"

// endpointList writes endpoints as address*weight.
func endpointList(localities []mesh.Locality) string {
	var out []string
	for _, l := range localities {
		for _, e := range l.Endpoints {
			out = append(out, fmt.Sprintf("%s*%d", e.Addr, e.Weight))
		}
	}
	return strings.Join(out, " ")
}
