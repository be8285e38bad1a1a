// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"kmesh/helper/mesh"

	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
)

func TestCluster(t *testing.T) {
	lb := func(name, options string) string {
		return "{typed_extension_config: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies." + name + options + "}}}"
	}
	const policy0 = "load_balancing_policy.policies[0].typed_extension_config.typed_config"
	static := `
type: STATIC
load_assignment:
  cluster_name: c
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.1.0.1, port_value: 8080}}}}]}]
`
	tlsSocket := "{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}"
	raw := "{name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}"
	tests := map[string]struct {
		yaml       string
		kind       mesh.ClusterKind
		policy     mesh.Policy
		assignment string
		endpoints  string
		weighted   bool
		table      uint32
		verdicts   []want
	}{
		"eds": {yaml: "type: EDS\neds_cluster_config: {eds_config: {ads: {}}}", assignment: "c",
			verdicts: []want{{"type", mesh.Enforced, ""}, {"eds_cluster_config.eds_config.ads", mesh.Enforced, ""}}},
		"eds service name": {yaml: "type: EDS\neds_cluster_config: {service_name: other, eds_config: {ads: {}}}", assignment: "other"},
		"eds own server": {yaml: "type: EDS\neds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC}}}", assignment: "c",
			verdicts: []want{{"eds_cluster_config.eds_config.api_config_source", mesh.UnsupportedAction, ""}}},
		"eds path": {yaml: "type: EDS\neds_cluster_config: {eds_config: {path_config_source: {path: /x}}}", assignment: "c",
			verdicts: []want{{"eds_cluster_config.eds_config.path_config_source", mesh.Default, ""}}},
		"static": {yaml: static, endpoints: "10.1.0.1:8080*1",
			verdicts: []want{{"load_assignment.endpoints[].lb_endpoints[].endpoint.address.socket_address.address", mesh.Enforced, ""}}},
		"blackhole":          {yaml: "type: STATIC\nload_assignment: {cluster_name: c}", kind: mesh.Blackhole},
		"blackhole, nothing": {yaml: "type: STATIC", kind: mesh.Blackhole},
		"passthrough":        {yaml: "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED", kind: mesh.Passthrough},
		"passthrough plain":  {yaml: "type: ORIGINAL_DST", kind: mesh.Passthrough},
		"passthrough override": {yaml: "type: ORIGINAL_DST\noriginal_dst_lb_config: {use_http_header: true}", kind: mesh.Passthrough,
			verdicts: []want{{"original_dst_lb_config", mesh.UnsupportedAction, ""}}},
		"passthrough with endpoints": {yaml: strings.Replace(static, "STATIC", "ORIGINAL_DST", 1),
			verdicts: []want{{"load_assignment", mesh.Invalid, "no endpoints"}}},
		"static port 0": {yaml: strings.Replace(static, "8080", "0", 1),
			verdicts: []want{{"load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value", mesh.Invalid, "0 is not a port"}}},
		"custom type": {yaml: "cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a]}}", kind: mesh.Refused,
			verdicts: []want{{"cluster_type", mesh.UnsupportedAction, "custom"}}},

		"least request": {yaml: static + "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 3}", endpoints: "10.1.0.1:8080*1", policy: mesh.LeastRequest,
			verdicts: []want{{"lb_policy", mesh.Enforced, ""}, {"least_request_lb_config.choice_count", mesh.UnsupportedAction, "two"}}},
		"least request of two": {yaml: static + "lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 2}", endpoints: "10.1.0.1:8080*1", policy: mesh.LeastRequest,
			verdicts: []want{{"least_request_lb_config.choice_count", mesh.Default, ""}}},
		"random": {yaml: static + "lb_policy: RANDOM", endpoints: "10.1.0.1:8080*1", policy: mesh.Random},
		"maglev": {yaml: static + "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 251}", endpoints: "10.1.0.1:8080*1", policy: mesh.Maglev, table: 251,
			verdicts: []want{{"maglev_lb_config.table_size", mesh.Enforced, ""}}},
		"maglev not prime": {yaml: static + "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 250}",
			verdicts: []want{{"maglev_lb_config.table_size", mesh.Invalid, "prime"}}},
		"maglev too large": {yaml: static + "lb_policy: MAGLEV\nmaglev_lb_config: {table_size: 5000077}",
			verdicts: []want{{"maglev_lb_config.table_size", mesh.Invalid, "more than"}}},
		"ring hash": {yaml: static + "lb_policy: RING_HASH\nring_hash_lb_config: {minimum_ring_size: 10}", endpoints: "10.1.0.1:8080*1", policy: mesh.Maglev,
			verdicts: []want{{"lb_policy", mesh.UnsupportedAction, "approximated"}, {"ring_hash_lb_config", mesh.UnsupportedAction, ""}}},
		"cluster provided": {yaml: static + "lb_policy: CLUSTER_PROVIDED", verdicts: []want{{"lb_policy", mesh.Invalid, "ORIGINAL_DST"}}},
		"config missing":   {yaml: static + "lb_policy: LOAD_BALANCING_POLICY_CONFIG", verdicts: []want{{"load_balancing_policy", mesh.Invalid, "missing"}}},

		"typed round robin": {yaml: static + "lb_policy: RANDOM\nload_balancing_policy: {policies: [" + lb("round_robin.v3.RoundRobin", ", slow_start_config: {}") + "]}", endpoints: "10.1.0.1:8080*1",
			verdicts: []want{{policy0 + ".slow_start_config", mesh.UnsupportedAction, "slow start"}}},
		"typed random": {yaml: static + "load_balancing_policy: {policies: [" + lb("random.v3.Random", "") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.Random,
			verdicts: []want{{policy0, mesh.Enforced, ""}}},
		"typed least request": {yaml: static + "load_balancing_policy: {policies: [" + lb("least_request.v3.LeastRequest", ", locality_lb_config: {locality_weighted_lb_config: {}}") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.LeastRequest, weighted: true,
			verdicts: []want{{policy0 + ".locality_lb_config.locality_weighted_lb_config", mesh.Enforced, ""}}},
		"typed maglev": {yaml: static + "load_balancing_policy: {policies: [" + lb("maglev.v3.Maglev", ", table_size: 65537") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.Maglev, table: 65537},
		"typed ring hash": {yaml: static + "load_balancing_policy: {policies: [" + lb("ring_hash.v3.RingHash", "") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.Maglev,
			verdicts: []want{{policy0, mesh.UnsupportedAction, "approximated"}}},
		"typed wrr": {yaml: static + "load_balancing_policy: {policies: [" + lb("wrr_locality.v3.WrrLocality", ", endpoint_picking_policy: {policies: ["+lb("least_request.v3.LeastRequest", "")+"]}") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.LeastRequest, weighted: true,
			verdicts: []want{{policy0 + ".endpoint_picking_policy.policies[0].typed_extension_config.typed_config", mesh.Enforced, ""}}},
		"typed first supported": {yaml: static + "load_balancing_policy: {policies: [" + lb("pick_first.v3.PickFirst", "") + "," + lb("random.v3.Random", "") + "," + lb("maglev.v3.Maglev", "") + "]}", endpoints: "10.1.0.1:8080*1", policy: mesh.Random,
			verdicts: []want{{policy0, mesh.UnsupportedAction, "next one"}, {strings.Replace(policy0, "[0]", "[2]", 1), mesh.Default, "not used"}}},
		"typed none": {yaml: static + "load_balancing_policy: {policies: [" + lb("pick_first.v3.PickFirst", "") + "]}", endpoints: "10.1.0.1:8080*1",
			verdicts: []want{{"load_balancing_policy", mesh.UnsupportedAction, "round robin"}}},

		"locality weighted": {yaml: "type: EDS\ncommon_lb_config: {locality_weighted_lb_config: {}}", assignment: "c", weighted: true,
			verdicts: []want{{"common_lb_config.locality_weighted_lb_config", mesh.Enforced, ""}}},
		"panic default": {yaml: "type: EDS\ncommon_lb_config: {healthy_panic_threshold: {}}", assignment: "c",
			verdicts: []want{{"common_lb_config.healthy_panic_threshold", mesh.Default, ""}}},
		"panic": {yaml: "type: EDS\ncommon_lb_config: {healthy_panic_threshold: {value: 50}, zone_aware_lb_config: {}}", assignment: "c",
			verdicts: []want{{"common_lb_config.healthy_panic_threshold", mesh.UnsupportedAction, "panic"}, {"common_lb_config.zone_aware_lb_config", mesh.UnsupportedAction, ""}}},
		"istio thresholds": {yaml: "type: EDS\ncircuit_breakers: {thresholds: [{max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295, track_remaining: true}]}", assignment: "c",
			verdicts: []want{{"circuit_breakers.thresholds[0].max_connections", mesh.Default, "no limit"}, {"circuit_breakers.thresholds[0].max_retries", mesh.Default, ""}}},
		"thresholds": {yaml: "type: EDS\ncircuit_breakers: {thresholds: [{max_connections: 10}]}\noutlier_detection: {}\nconnect_timeout: 1s\nhealth_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]", assignment: "c",
			verdicts: []want{{"circuit_breakers.thresholds[0].max_connections", mesh.Enforced, ""}, {"outlier_detection", mesh.UnsupportedAction, ""},
				{"connect_timeout", mesh.UnsupportedAction, ""}, {"health_checks", mesh.UnsupportedAction, ""}}},

		"connect timeout above the kernel's": {yaml: "type: EDS\nconnect_timeout: 127s", assignment: "c", verdicts: []want{{"connect_timeout", mesh.Default, "gives up before"}}},
		"connect timeout below the kernel's": {yaml: "type: EDS\nconnect_timeout: 126.9s", assignment: "c", verdicts: []want{{"connect_timeout", mesh.UnsupportedAction, "not enforced"}}},

		"tls": {yaml: "type: EDS\ntransport_socket: " + tlsSocket, kind: mesh.Refused, assignment: "c",
			verdicts: []want{{"transport_socket", mesh.UnsupportedAction, "refused"}}},
		"raw": {yaml: "type: EDS\ntransport_socket: " + raw, assignment: "c",
			verdicts: []want{{"transport_socket", mesh.Default, ""}}},
		"auto mtls": {yaml: "type: EDS\ntransport_socket_matches: [{name: tlsMode-istio, match: {tlsMode: istio}, transport_socket: " + tlsSocket + "}, {name: tlsMode-disabled, match: {}, transport_socket: " + raw + "}]", assignment: "c",
			verdicts: []want{{"transport_socket_matches[0]", mesh.Default, "their assignment"}, {"transport_socket_matches[1]", mesh.Default, "in clear"}}},
		"tunnel": {yaml: "type: EDS\ntransport_socket_matches: [{name: hbone, match: {tunnel: http}, transport_socket: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport}}}, {name: tlsMode-disabled, match: {}, transport_socket: " + raw + "}]", assignment: "c",
			verdicts: []want{{"transport_socket_matches[0]", mesh.Default, "their assignment"}, {"transport_socket_matches[1]", mesh.Default, "in clear"}}},
		"istio's own filter": {yaml: "type: EDS\nfilters: [{name: istio.metadata_exchange, typed_config: {'@type': type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, value: {protocol: istio-peer-exchange}}}]", assignment: "c",
			verdicts: []want{{"filters[0].typed_config", mesh.Default, "labels"}}},
		"a filter as a struct": {yaml: "type: EDS\nfilters: [{name: x, typed_config: {'@type': type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/some.Filter}}]", assignment: "c",
			verdicts: []want{{"filters[0].typed_config", mesh.UnsupportedAction, "some.Filter"}}},
		"another filter": {yaml: "type: EDS\nfilters: [{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC}}]", assignment: "c",
			verdicts: []want{{"filters[0].typed_config", mesh.UnsupportedAction, "NOT ENFORCED"}}},
		"tls for all": {yaml: "type: EDS\ntransport_socket_matches: [{name: all, match: {}, transport_socket: " + tlsSocket + "}]", assignment: "c", kind: mesh.Refused,
			verdicts: []want{{"transport_socket_matches[0]", mesh.UnsupportedAction, "refused"}}},
		"http options": {yaml: "type: EDS\ntyped_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions}}\nmax_requests_per_connection: 3", assignment: "c",
			verdicts: []want{{typedHTTP[:len(typedHTTP)-1], mesh.Default, "is empty"}, {"max_requests_per_connection", mesh.Enforced, ""}}},
		"http options by fields": {yaml: "type: EDS\n" + httpOptions("common_http_protocol_options: {max_requests_per_connection: 3, idle_timeout: 5s}, explicit_http_config: {http2_protocol_options: {}}"), assignment: "c",
			verdicts: []want{{typedHTTP + "common_http_protocol_options.max_requests_per_connection", mesh.Enforced, ""},
				{typedHTTP + "common_http_protocol_options.idle_timeout", mesh.UnsupportedAction, "timers"},
				{typedHTTP + "explicit_http_config.http2_protocol_options", mesh.UnsupportedAction, "by HTTP/1"}}},
		"subsets": {yaml: "type: EDS\nlb_subset_config: {fallback_policy: ANY_ENDPOINT}", assignment: "c",
			verdicts: []want{{"lb_subset_config", mesh.UnsupportedAction, ""}}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := TranslateCluster(message(t, &clusterv3.Cluster{}, "name: c\n"+tc.yaml), "server")
			checkVerdicts(t, got.Verdicts, tc.verdicts)
			if len(Invalid(got.Verdicts)) > 0 {
				if got.Cluster != nil {
					t.Error("an invalid cluster has a result")
				}
				return
			}
			c := got.Cluster
			if c.Name != "c" || c.Kind != tc.kind || c.Policy != tc.policy || c.LocalityWeighted != tc.weighted || c.MaglevTableSize != tc.table {
				t.Errorf("got %+v", *c)
			}
			if got.Assignment != tc.assignment {
				t.Errorf("assignment %q, want %q", got.Assignment, tc.assignment)
			}
			if s := endpointList(c.Localities); s != tc.endpoints {
				t.Errorf("endpoints %q, want %q", s, tc.endpoints)
			}
		})
	}
}

const typedHTTP = `typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].`

func httpOptions(fields string) string {
	const name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	return "typed_extension_protocol_options: {" + name + ": {'@type': type.googleapis.com/" + name + ", " + fields + "}}\n"
}

// TestConnectionLimit: the first thresholds of the default priority say it, else it is Envoy's default.
func TestConnectionLimit(t *testing.T) {
	const none = -1
	limits := func(thresholds string) string {
		return "type: EDS\ncircuit_breakers: {thresholds: [" + thresholds + "]}"
	}
	at := func(i int) string { return fmt.Sprintf("circuit_breakers.thresholds[%d].max_connections", i) }
	for name, tc := range map[string]struct {
		yaml     string
		want     int
		verdicts []want
	}{
		"absent":                  {yaml: "type: EDS", want: 1024},
		"no thresholds":           {yaml: "type: EDS\ncircuit_breakers: {}", want: 1024},
		"thresholds without it":   {yaml: limits("{max_retries: 4294967295}"), want: 1024},
		"istiod's":                {yaml: limits("{max_connections: 4294967295}"), want: none, verdicts: []want{{at(0), mesh.Default, "no limit"}}},
		"a number":                {yaml: limits("{max_connections: 7}"), want: 7, verdicts: []want{{at(0), mesh.Enforced, ""}}},
		"none allowed":            {yaml: limits("{max_connections: 0}"), want: 0, verdicts: []want{{at(0), mesh.Enforced, ""}}},
		"the greatest":            {yaml: limits("{max_connections: 4294967294}"), want: 4294967294, verdicts: []want{{at(0), mesh.Enforced, ""}}},
		"of the high priority":    {yaml: limits("{priority: HIGH, max_connections: 7}"), want: 1024, verdicts: []want{{at(0), mesh.UnsupportedAction, "priority"}}},
		"none of the high":        {yaml: limits("{priority: HIGH, max_connections: 4294967295}, {max_connections: 8}"), want: 8, verdicts: []want{{at(0), mesh.Default, "no limit"}, {at(1), mesh.Enforced, ""}}},
		"the first one":           {yaml: limits("{max_connections: 7}, {max_connections: 8}"), want: 7, verdicts: []want{{at(0), mesh.Enforced, ""}, {at(1), mesh.Default, "never used"}}},
		"the first one has none":  {yaml: limits("{max_requests: 4294967295}, {max_connections: 8}"), want: 1024, verdicts: []want{{at(1), mesh.Default, "never used"}}},
		"to the destination":      {yaml: "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\ncircuit_breakers: {thresholds: [{max_connections: 7}]}", want: none, verdicts: []want{{at(0), mesh.UnsupportedAction, "original destination"}}},
		"to the destination, all": {yaml: "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED", want: none},
		"nowhere":                 {yaml: "type: STATIC\ncircuit_breakers: {thresholds: [{max_connections: 7}]}", want: none, verdicts: []want{{at(0), mesh.Default, "nothing is connected"}}},
		"of each endpoint": {yaml: "type: EDS\ncircuit_breakers: {per_host_thresholds: [{max_connections: 7}, {max_connections: 4294967295}]}", want: 1024,
			verdicts: []want{{"circuit_breakers.per_host_thresholds[0].max_connections", mesh.UnsupportedAction, "one endpoint"}, {"circuit_breakers.per_host_thresholds[1].max_connections", mesh.Default, "no limit"}}},
	} {
		got := TranslateCluster(message(t, &clusterv3.Cluster{}, "name: c\n"+tc.yaml), "x")
		checkVerdicts(t, got.Verdicts, tc.verdicts)
		switch limit := got.Cluster.MaxConnections; {
		case limit == nil && tc.want != none:
			t.Errorf("%s: no limit, want %d", name, tc.want)
		case limit != nil && int(*limit) != tc.want:
			t.Errorf("%s: %d connections, want %d", name, *limit, tc.want)
		}
	}
}

// TestRequestLimit: the extension says it where there is one.
func TestRequestLimit(t *testing.T) {
	common := func(n int) string {
		return fmt.Sprintf("common_http_protocol_options: {max_requests_per_connection: %d}", n)
	}
	for name, tc := range map[string]struct {
		yaml string
		want uint16
	}{
		"none":                       {"", 0},
		"deprecated":                 {"max_requests_per_connection: 7\n", 7},
		"deprecated options":         {common(9) + "\nmax_requests_per_connection: 7\n", 9},
		"extension":                  {httpOptions(common(1)), 1},
		"extension and deprecated":   {httpOptions(common(1)) + common(9) + "\n", 1},
		"extension that has no word": {httpOptions("upstream_http_protocol_options: {auto_sni: true}") + common(9) + "\n", 0},
		"extension and the field":    {httpOptions("upstream_http_protocol_options: {auto_sni: true}") + common(9) + "\nmax_requests_per_connection: 7\n", 7},
		"more than fits":             {httpOptions(common(1000000)), 65535},
	} {
		c := message(t, &clusterv3.Cluster{}, "name: c\ntype: EDS\n"+tc.yaml)
		if got := TranslateCluster(c, "x").Cluster.MaxRequests; got != tc.want {
			t.Errorf("%s: %d requests, want %d", name, got, tc.want)
		}
	}
}
