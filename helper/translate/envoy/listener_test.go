// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"kmesh/helper/mesh"
)

func TestListener(t *testing.T) {
	hcm := "{name: h, typed_config: {'@type': type.googleapis.com/" + typeHCM + ", stat_prefix: x, rds: {route_config_name: r, config_source: {ads: {}}}}}"
	tests := map[string]struct {
		yaml     string
		services []string
		refs     []string
		verdicts []want
	}{
		"tcp": {
			yaml:     vip + "filter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{
				{"name", mesh.Enforced, ""},
				{"address.socket_address.address", mesh.Enforced, ""},
				{"address.socket_address.port_value", mesh.Enforced, ""},
				{typedTCP + ".cluster", mesh.Enforced, ""},
				{typedTCP + ".stat_prefix", mesh.Default, ""},
			},
		},
		"weights": {
			yaml: vip + "filter_chains: [{filters: [" + tcp("weighted_clusters: {clusters: [{name: a, weight: 4294967294}, {name: b}, {name: c, weight: 1}]}") + "]}]",
			services: []string{
				"l: TCP 10.0.0.1/32:80 -> a*4294967294 b*0 c*1",
			},
			refs: []string{
				typedTCP + ".weighted_clusters.clusters[0].name=a",
				typedTCP + ".weighted_clusters.clusters[1].name=b",
				typedTCP + ".weighted_clusters.clusters[2].name=c",
			},
			verdicts: []want{{typedTCP + ".weighted_clusters.clusters[1].weight", mesh.Enforced, "never drawn"}},
		},
		"weight overflow": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}") + "]}]",
			verdicts: []want{{typedTCP + ".weighted_clusters.clusters", mesh.Invalid, "4294967296"}},
		},
		"weights all zero": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("weighted_clusters: {clusters: [{name: a}, {name: b}]}") + "]}]",
			verdicts: []want{{typedTCP + ".weighted_clusters.clusters", mesh.Invalid, "all weights are 0"}},
		},
		"too many weighted clusters": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("weighted_clusters: {clusters: ["+strings.Repeat("{name: a, weight: 1},", 33)+"]}") + "]}]",
			verdicts: []want{{typedTCP + ".weighted_clusters.clusters", mesh.Invalid, "can have 32"}},
		},
		"no cluster": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("access_log: []") + "]}]",
			verdicts: []want{{typedTCP + ".cluster", mesh.Invalid, "empty"}},
		},
		"tcp_proxy options": {
			yaml: vip + "filter_chains: [{filters: [" + tcp("cluster: c, idle_timeout: 5s, max_connect_attempts: 3, hash_policy: [{source_ip: {}}], access_log: [{name: x}]") + "]}]",
			services: []string{
				"l: TCP 10.0.0.1/32:80 -> c*1 by source",
			},
			refs: []string{typedTCP + ".cluster=c"},
			verdicts: []want{
				{typedTCP + ".idle_timeout", mesh.UnsupportedAction, "timers"},
				{typedTCP + ".max_connect_attempts", mesh.UnsupportedAction, ""},
				{typedTCP + ".hash_policy", mesh.Enforced, ""},
				{typedTCP + ".access_log", mesh.UnsupportedAction, "access logs"},
			},
		},
		"hash by filter state": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("cluster: c, hash_policy: [{filter_state: {key: x}}]") + "]}]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{{typedTCP + ".hash_policy", mesh.UnsupportedAction, "source_ip"}},
		},
		"metadata match": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("cluster: c, metadata_match: {filter_metadata: {a: {}}}") + "]}]",
			verdicts: []want{{typedTCP + ".metadata_match", mesh.UnsupportedCondition, "subset"}},
		},
		"tunnel": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("cluster: c, tunneling_config: {hostname: x}") + "]}]",
			verdicts: []want{{typedTCP + ".tunneling_config", mesh.UnsupportedCondition, "CONNECT"}},
		},
		"wildcard": {
			yaml:     "address: {socket_address: {address: 0.0.0.0, port_value: 80}}\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 0.0.0.0/0:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
		},
		"wildcard v6 with v4": {
			yaml:     "address: {socket_address: {address: '::', port_value: 80, ipv4_compat: true}}\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 0.0.0.0/0:80 TCP ::/0:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
		},
		"v4-mapped": {
			yaml:     "address: {socket_address: {address: '::ffff:10.0.0.1', port_value: 80}}\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
		},
		"additional addresses": {
			yaml: vip + `
additional_addresses:
- address: {socket_address: {address: 'fd00::1', port_value: 80}}
- address: {socket_address: {address: 10.0.0.2, port_value: 81}}
filter_chains: [` + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 TCP 10.0.0.2/32:81 TCP fd00::1/128:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
		},
		"mixed protocols": {
			yaml: vip + `
additional_addresses: [{address: {socket_address: {protocol: UDP, address: 10.0.0.1, port_value: 80}}}]
filter_chains: [` + chainTo("c") + "]",
			verdicts: []want{{"additional_addresses", mesh.Invalid, "mixes"}},
		},
		"same address twice": {
			yaml: vip + `
additional_addresses: [{address: {socket_address: {address: 10.0.0.1, port_value: 80}}}]
filter_chains: [` + chainTo("c") + "]",
			verdicts: []want{{"additional_addresses", mesh.Invalid, "twice"}},
		},
		"port 0": {
			yaml:     "address: {socket_address: {address: 10.0.0.1, port_value: 0}}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address.socket_address.port_value", mesh.Invalid, "0 is not a port"}},
		},
		"not an address": {
			yaml:     "address: {socket_address: {address: example.org, port_value: 80}}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address.socket_address.address", mesh.Invalid, "not an IP"}},
		},
		"zone": {
			yaml:     "address: {socket_address: {address: 'fe80::1%eth0', port_value: 80}}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address.socket_address.address", mesh.Invalid, "zone"}},
		},
		"no address": {
			yaml:     "filter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address", mesh.Invalid, "missing"}},
		},
		"named port": {
			yaml:     "address: {socket_address: {address: 10.0.0.1, named_port: http}}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address.socket_address.named_port", mesh.UnsupportedCondition, ""}},
		},
		"pipe": {
			yaml:     "address: {pipe: {path: /x}}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"address.pipe", mesh.UnsupportedCondition, "unix"}},
		},
		"no chains": {
			yaml:     vip,
			verdicts: []want{{"filter_chains", mesh.Invalid, "no filter chain"}},
		},
		"inbound": {
			yaml:     vip + "traffic_direction: INBOUND\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"traffic_direction", mesh.UnsupportedCondition, "inbound"}},
		},
		"outbound": {
			yaml:     vip + "traffic_direction: OUTBOUND\nbind_to_port: false\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{{"traffic_direction", mesh.Enforced, ""}, {"bind_to_port", mesh.Default, ""}},
		},
		"use_original_dst": {
			yaml:     vip + "use_original_dst: true\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"use_original_dst", mesh.UnsupportedCondition, ""}},
		},
		"the rest": {
			yaml:     "address: {socket_address: {address: 0.0.0.0, port_value: 15001}}\nuse_original_dst: true\ntraffic_direction: OUTBOUND\nfilter_chains: [{name: own, filter_chain_match: {destination_port: 15001}, filters: [" + tcp("cluster: a") + "]}, {name: any, filters: [" + tcp("cluster: b") + "]}]",
			services: []string{"l/any: TCP 0.0.0.0/0:0 TCP ::/0:0 -> b*1"},
			refs:     []string{"filter_chains[1].filters[0].typed_config.cluster=b"},
			verdicts: []want{{"use_original_dst", mesh.Enforced, "no other listener"}, {"filter_chains[0]", mesh.Default, "never reached"}},
		},
		"the rest, by a prefix": {
			yaml:     "address: {socket_address: {address: 0.0.0.0, port_value: 15001}}\nuse_original_dst: true\nfilter_chains: [{filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, filters: [" + tcp("cluster: a") + "]}]\ndefault_filter_chain: " + chainTo("b"),
			services: []string{"l/0: TCP 10.0.0.0/8:0 -> a*1", "l/default: TCP 0.0.0.0/0:0 TCP ::/0:0 -> b*1"},
			refs:     []string{typedTCP + ".cluster=a", "default_filter_chain.filters[0].typed_config.cluster=b"},
		},
		"the rest, inbound": {
			yaml:     "address: {socket_address: {address: 0.0.0.0, port_value: 15006}}\nuse_original_dst: true\ntraffic_direction: INBOUND\nfilter_chains: [" + chainTo("b") + "]",
			verdicts: []want{{"traffic_direction", mesh.UnsupportedCondition, "inbound"}},
		},
		"the rest, another port": {
			yaml:     "address: {socket_address: {address: 0.0.0.0, port_value: 15001}}\nuse_original_dst: true\nfilter_chains: [{filter_chain_match: {destination_port: 80}, filters: [" + tcp("cluster: a") + "]}, {filters: [" + tcp("cluster: b") + "]}]",
			verdicts: []want{{"use_original_dst", mesh.UnsupportedCondition, "other than the listener's"}},
		},
		"use_original_dst false": {
			yaml:     vip + "use_original_dst: false\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{{"use_original_dst", mesh.Default, ""}},
		},
		"api listener": {
			yaml:     "api_listener: {}",
			verdicts: []want{{"api_listener", mesh.UnsupportedCondition, ""}},
		},
		"internal listener": {
			yaml:     "internal_listener: {}",
			verdicts: []want{{"internal_listener", mesh.Default, "not governed"}},
		},
		"filter chain matcher": {
			yaml:     vip + "filter_chain_matcher: {}\nfilter_chains: [" + chainTo("c") + "]",
			verdicts: []want{{"filter_chain_matcher", mesh.UnsupportedCondition, ""}},
		},
		"http": {
			yaml: vip + "filter_chains: [{filters: [" + hcm + "]}]\ndefault_filter_chain: " + chainTo("c"),
			verdicts: []want{
				{typedTCP + ".rds.route_config_name", mesh.Enforced, ""},
				{"default_filter_chain.filters[0].typed_config.cluster", mesh.Enforced, ""},
			},
		},
		"chain names": {
			yaml: vip + `
additional_addresses: [{address: {socket_address: {address: 10.0.0.1, port_value: 81}}}, {address: {socket_address: {address: 10.0.0.1, port_value: 82}}}]
filter_chains:
- {name: first, filter_chain_match: {destination_port: 80}, filters: [` + tcp("cluster: a") + `]}
- {filter_chain_match: {destination_port: 81}, filters: [` + tcp("cluster: b") + `]}
default_filter_chain: ` + chainTo("c"),
			services: []string{
				"l/first: TCP 10.0.0.1/32:80 -> a*1",
				"l/1: TCP 10.0.0.1/32:81 -> b*1",
				"l/default: TCP 10.0.0.1/32:82 -> c*1",
			},
			refs: []string{typedTCP + ".cluster=a", "filter_chains[1].filters[0].typed_config.cluster=b", "default_filter_chain.filters[0].typed_config.cluster=c"},
			verdicts: []want{
				{"filter_chains[0].filter_chain_match.destination_port", mesh.Enforced, ""},
			},
		},
		"equal chain names": {
			yaml: vip + `
additional_addresses: [{address: {socket_address: {address: 10.0.0.1, port_value: 81}}}]
filter_chains:
- {name: x, filter_chain_match: {destination_port: 80}, filters: [` + tcp("cluster: a") + `]}
- {name: x, filter_chain_match: {destination_port: 81}, filters: [` + tcp("cluster: b") + `]}`,
			services: []string{"l/x: TCP 10.0.0.1/32:80 -> a*1", "l/x#2: TCP 10.0.0.1/32:81 -> b*1"},
			refs:     []string{typedTCP + ".cluster=a", "filter_chains[1].filters[0].typed_config.cluster=b"},
		},
		"prefix ranges": {
			yaml: `
address: {socket_address: {address: 0.0.0.0, port_value: 80}}
filter_chains:
- filter_chain_match: {prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 16}, {address_prefix: '::ffff:10.2.0.0', prefix_len: 112}, {address_prefix: 'fd00::', prefix_len: 8}]}
  filters: [` + tcp("cluster: a") + `]
default_filter_chain: ` + chainTo("b"),
			services: []string{
				"l/0: TCP 10.1.0.0/16:80 TCP 10.2.0.0/16:80 -> a*1",
				"l/default: TCP 0.0.0.0/0:80 -> b*1",
			},
			refs:     []string{typedTCP + ".cluster=a", "default_filter_chain.filters[0].typed_config.cluster=b"},
			verdicts: []want{{"filter_chains[0].filter_chain_match.prefix_ranges", mesh.Enforced, ""}},
		},
		"prefix range around a host": {
			yaml: vip + `
filter_chains:
- {filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, filters: [` + tcp("cluster: a") + `]}
- {filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 24}]}, filters: [` + tcp("cluster: b") + `]}
- {filter_chain_match: {prefix_ranges: [{address_prefix: 11.0.0.0, prefix_len: 8}]}, filters: [` + tcp("cluster: c") + `]}`,
			services: []string{"l/1: TCP 10.0.0.1/32:80 -> b*1"},
			refs:     []string{"filter_chains[1].filters[0].typed_config.cluster=b"},
			verdicts: []want{{"filter_chains[0]", mesh.Default, "never reached"}, {"filter_chains[2]", mesh.Default, "never reached"}},
		},
		"bad prefix": {
			yaml: vip + `
filter_chains:
- {filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 33}]}, filters: [` + tcp("cluster: a") + `]}
- {filter_chain_match: {prefix_ranges: [{address_prefix: x, prefix_len: 3}]}, filters: [` + tcp("cluster: a") + `]}`,
			verdicts: []want{
				{"filter_chains[0].filter_chain_match.prefix_ranges[0].prefix_len", mesh.Invalid, "33"},
				{"filter_chains[1].filter_chain_match.prefix_ranges[0].address_prefix", mesh.Invalid, ""},
			},
		},
		"equal matches": {
			yaml:     vip + "filter_chains: [" + chainTo("a") + "," + chainTo("b") + "]",
			verdicts: []want{{"filter_chains[1].filter_chain_match", mesh.Invalid, "same connections as filter_chains[0]"}},
		},
		"exact port hides the others": {
			yaml: vip + `
filter_chains:
- {filter_chain_match: {destination_port: 80, prefix_ranges: [{address_prefix: 10.9.0.0, prefix_len: 16}]}, filters: [` + tcp("cluster: a") + `]}
- ` + chainTo("b") + `
default_filter_chain: ` + chainTo("c"),
			services: []string{"l/default: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{"default_filter_chain.filters[0].typed_config.cluster=c"},
			verdicts: []want{{"filter_chains[0]", mesh.Default, "never reached"}, {"filter_chains[1]", mesh.Default, "never reached"}},
		},
		"condition": {
			yaml: vip + "filter_chains: [{filter_chain_match: {source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, filters: [" + tcp("cluster: a") + "]}]",
			verdicts: []want{
				{"filter_chains[0].filter_chain_match.source_prefix_ranges", mesh.UnsupportedCondition, "source"},
			},
		},
		"condition is not widened": {
			yaml: vip + "filter_chains: [{filter_chain_match: {server_names: [x.org]}, filters: [" + tcp("cluster: a") + "]}]\ndefault_filter_chain: " + chainTo("b"),
			verdicts: []want{
				{"filter_chains[0].filter_chain_match.server_names", mesh.UnsupportedCondition, "SNI"},
				{"default_filter_chain", mesh.UnsupportedCondition, "connections of filter_chains[0]"},
			},
		},
		"condition leaves others alone": {
			yaml: vip + `
additional_addresses: [{address: {socket_address: {address: 10.0.0.2, port_value: 80}}}]
filter_chains:
- {filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.2, prefix_len: 32}], source_ports: [1]}, filters: [` + tcp("cluster: a") + `]}
- {filter_chain_match: {prefix_ranges: [{address_prefix: 10.0.0.1, prefix_len: 32}]}, filters: [` + tcp("cluster: b") + `]}`,
			services: []string{"l/1: TCP 10.0.0.1/32:80 -> b*1"},
			refs:     []string{"filter_chains[1].filters[0].typed_config.cluster=b"},
			verdicts: []want{{"filter_chains[0].filter_chain_match.source_ports", mesh.UnsupportedCondition, ""}},
		},
		"raw_buffer": {
			yaml:     vip + "filter_chains: [{filter_chain_match: {transport_protocol: raw_buffer}, filters: [" + tcp("cluster: a") + "]}]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> a*1"},
			refs:     []string{typedTCP + ".cluster=a"},
			verdicts: []want{{"filter_chains[0].filter_chain_match.transport_protocol", mesh.Default, ""}},
		},
		"raw_buffer with inspector": {
			yaml: vip + "listener_filters: [{name: t, typed_config: " + anyOf(typeTLSInspector) + "}]\nfilter_chains: [{filter_chain_match: {transport_protocol: raw_buffer}, filters: [" + tcp("cluster: a") + "]}]",
			verdicts: []want{
				{"filter_chains[0].filter_chain_match.transport_protocol", mesh.UnsupportedCondition, ""},
				{"listener_filters[0].typed_config", mesh.Default, ""},
			},
		},
		"tls termination": {
			yaml: vip + "filter_chains: [{transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}, filters: [" + tcp("cluster: a") + "]}]",
			verdicts: []want{
				{"filter_chains[0].transport_socket", mesh.UnsupportedCondition, "TLS"},
			},
		},
		"authorization": {
			yaml: vip + "filter_chains: [{filters: [{name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x}}, " + tcp("cluster: a") + "]}]",
			services: []string{
				"l: TCP 10.0.0.1/32:80 -> a*1",
			},
			refs:     []string{"filter_chains[0].filters[1].typed_config.cluster=a"},
			verdicts: []want{{typedTCP, mesh.UnsupportedAction, "NOT ENFORCED"}},
		},
		"sni cluster": {
			yaml: vip + "filter_chains: [{filters: [{name: sni, typed_config: " + anyOf("envoy.extensions.filters.network.sni_cluster.v3.SniCluster") + "}, " + tcp("cluster: a") + "]}]",
			verdicts: []want{
				{typedTCP, mesh.UnsupportedCondition, "SNI"},
			},
		},
		"other terminal filter": {
			yaml: vip + "filter_chains: [{filters: [{name: echo, typed_config: " + anyOf("envoy.extensions.filters.network.echo.v3.Echo") + "}]}]",
			verdicts: []want{
				{typedTCP, mesh.UnsupportedAction, "neither a tcp_proxy"},
			},
		},
		"no filter": {
			yaml:     vip + "filter_chains: [{name: x}]",
			verdicts: []want{{"filter_chains[0]", mesh.UnsupportedAction, "no filter"}},
		},
		"config discovery": {
			yaml:     vip + "filter_chains: [{filters: [{name: x, config_discovery: {config_source: {ads: {}}, type_urls: [x]}}, " + tcp("cluster: a") + "]}]",
			verdicts: []want{{"filter_chains[0].filters[0].config_discovery", mesh.UnsupportedCondition, ""}},
		},
		"harmless options": {
			yaml: vip + "bind_to_port: true\nfreebind: true\ntransparent: true\nreuse_port: true\nenable_reuse_port: true\nper_connection_buffer_limit_bytes: 5\nstat_prefix: x\nmetadata: {}\nsocket_options: [{level: 1, name: 2, int_value: 3}]\naccess_log: [{name: x}]\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{
				"l: TCP 10.0.0.1/32:80 -> c*1",
			},
			refs: []string{typedTCP + ".cluster=c"},
			verdicts: []want{
				{"bind_to_port", mesh.Default, ""}, {"freebind", mesh.Default, ""}, {"transparent", mesh.Default, ""},
				{"per_connection_buffer_limit_bytes", mesh.Default, ""}, {"metadata", mesh.Default, ""},
				{"socket_options", mesh.UnsupportedAction, ""}, {"access_log", mesh.UnsupportedAction, ""},
			},
		},
		"tcp_proxy before the end": {
			yaml:     vip + "filter_chains: [{filters: [" + tcp("cluster: a") + "," + tcp("cluster: b") + "]}]",
			verdicts: []want{{"filter_chains[0].filters[0]", mesh.Invalid, "last"}},
		},
		"filter in the wrong place": {
			yaml:     vip + "listener_filters: [" + tcp("cluster: a") + ", {name: u, typed_config: {" + udpType + ", stat_prefix: x, cluster: c}}]\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{
				{"listener_filters[0].typed_config", mesh.UnsupportedAction, "not supported"},
				{"listener_filters[1].typed_config", mesh.UnsupportedAction, "not used"},
			},
		},
		"udp cluster": {
			yaml:     "address: {socket_address: {protocol: UDP, address: 10.0.0.1, port_value: 53}}\nlistener_filters: [{name: u, typed_config: {" + udpType + ", stat_prefix: x, cluster: dns}}]",
			services: []string{"l: UDP 10.0.0.1/32:53 -> dns*1"},
			refs:     []string{"listener_filters[0].typed_config.cluster=dns"},
			verdicts: []want{{"listener_filters[0].typed_config.cluster", mesh.Enforced, ""}},
		},
		"udp route": {
			yaml:     "address: {socket_address: {protocol: UDP, address: 0.0.0.0, port_value: 53}}\nlistener_filters: [{name: u, typed_config: {" + udpType + ", stat_prefix: x, use_per_packet_load_balancing: true, hash_policies: [{source_ip: true}], matcher: {on_no_match: {action: {name: r, typed_config: {" + routeType + ", cluster: dns}}}}}}]",
			services: []string{"l: UDP 0.0.0.0/0:53 -> dns*1 by source"},
			refs:     []string{"listener_filters[0].typed_config.matcher.on_no_match.action.typed_config.cluster=dns"},
			verdicts: []want{
				{"listener_filters[0].typed_config.matcher.on_no_match.action.typed_config.cluster", mesh.Enforced, ""},
				{"listener_filters[0].typed_config.use_per_packet_load_balancing", mesh.UnsupportedAction, "per datagram"},
				{"listener_filters[0].typed_config.hash_policies", mesh.Enforced, ""},
			},
		},
		"udp matcher": {
			yaml: "address: {socket_address: {protocol: UDP, address: 10.0.0.1, port_value: 53}}\nlistener_filters: [{name: u, typed_config: {" + udpType + ", stat_prefix: x, matcher: {matcher_tree: {}, on_no_match: {action: {name: r, typed_config: {" + routeType + ", cluster: dns}}}}}}]",
			verdicts: []want{
				{"listener_filters[0].typed_config.matcher.matcher_tree", mesh.UnsupportedCondition, ""},
			},
		},
		"udp without route": {
			yaml:     "address: {socket_address: {protocol: UDP, address: 10.0.0.1, port_value: 53}}\nlistener_filters: [{name: u, typed_config: {" + udpType + ", stat_prefix: x}}]",
			verdicts: []want{{"listener_filters[0].typed_config", mesh.Invalid, "neither"}},
		},
		"udp without proxy": {
			yaml:     "address: {socket_address: {protocol: UDP, address: 10.0.0.1, port_value: 53}}\nfilter_chains: [{}]",
			verdicts: []want{{"listener_filters", mesh.UnsupportedAction, "no udp_proxy"}, {"filter_chains[0]", mesh.UnsupportedAction, "QUIC"}},
		},
		"proxy protocol": {
			yaml:     vip + "listener_filters: [{name: p, typed_config: " + anyOf("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol") + "}]\nfilter_chains: [" + chainTo("c") + "]",
			services: []string{"l: TCP 10.0.0.1/32:80 -> c*1"},
			refs:     []string{typedTCP + ".cluster=c"},
			verdicts: []want{{"listener_filters[0].typed_config", mesh.UnsupportedAction, "PROXY"}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			in := message(t, &listenerv3.Listener{}, "name: l\n"+tc.yaml)
			got := TranslateListener(in, "f.yaml")
			if !slices.Equal(services(got.Services), tc.services) {
				t.Errorf("services:\n%q\nwant:\n%q\n%s", services(got.Services), tc.services, list(got.Verdicts))
			}
			var refs []string
			for _, r := range got.References {
				refs = append(refs, r.Field+"="+r.Cluster)
			}
			if !slices.Equal(refs, tc.refs) {
				t.Errorf("references:\n%q\nwant:\n%q", refs, tc.refs)
			}
			checkVerdicts(t, got.Verdicts, tc.verdicts)
			for _, v := range got.Verdicts {
				if v.Source != "f.yaml" || v.Type != "Listener" || v.Resource != "l" {
					t.Errorf("verdict of %q %q %q", v.Source, v.Type, v.Resource)
				}
			}
		})
	}
	t.Run("no name", func(t *testing.T) {
		got := TranslateListener(message(t, &listenerv3.Listener{}, vip+"filter_chains: ["+chainTo("c")+"]"), "")
		checkVerdicts(t, got.Verdicts, []want{{"name", mesh.Invalid, "empty"}})
	})
}
