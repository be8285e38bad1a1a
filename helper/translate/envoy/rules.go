// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// rule says what becomes of one field when it is populated.
type rule struct {
	class mesh.Class
	msg   string
	// walk: a container; its own fields get the verdicts.
	walk bool
	// skip: the translation code gives the verdict itself, because it depends on
	// more than the field's value.
	skip bool
	// eval decides by the value; it returns a rule with class and msg.
	eval func(r *report, v protoreflect.Value) rule
	// cases say for the documentation what eval decides; doc says it for skip.
	cases []ruleCase
	doc   string
}

// ruleCase is one answer of a rule that depends on the value.
type ruleCase struct {
	when string
	rule rule
}

// value applies eval.
func (rl rule) value(r *report, v protoreflect.Value) rule {
	if rl.eval == nil {
		return rl
	}
	return rl.eval(r, v)
}

// rules is what is known about one message: its fields, and the class of a
// populated field that is not listed.
type rules struct {
	other  mesh.Class
	fields map[protoreflect.Name]rule
}

// The short forms that keep the table readable.
var (
	enforced = rule{class: mesh.Enforced}
	harmless = rule{class: mesh.Default}
	inside   = rule{walk: true}
	code     = rule{skip: true}
)

func benign(msg string) rule    { return rule{class: mesh.Default, msg: msg} }
func ignored(msg string) rule   { return rule{class: mesh.UnsupportedAction, msg: msg} }
func condition(msg string) rule { return rule{class: mesh.UnsupportedCondition, msg: msg} }
func inCode(doc string) rule    { return rule{skip: true, doc: doc} }

// byCase is a rule that depends on the value, with what it answers in which case:
// pairs of a text and a rule, the rule that f returns then.
func byCase(f func(r *report, v protoreflect.Value) rule, cases ...any) rule {
	rl := rule{eval: f}
	for i := 0; i+1 < len(cases); i += 2 {
		rl.cases = append(rl.cases, ruleCase{when: cases[i].(string), rule: cases[i+1].(rule)})
	}
	return rl
}

// whenEnum gives the rule of an enum's value, and otherwise the last.
func whenEnum(want map[protoreflect.EnumNumber]rule, otherwise rule) rule {
	var cases []any
	for _, n := range slices.Sorted(maps.Keys(want)) {
		cases = append(cases, "enum "+strconv.Itoa(int(n)), want[n])
	}
	return byCase(func(_ *report, v protoreflect.Value) rule {
		if rl, ok := want[v.Enum()]; ok {
			return rl
		}
		return otherwise
	}, append(cases, "otherwise", otherwise)...)
}

// uint32Is gives yes for a wrapped or plain number that equals want.
func uint32Is(want uint64, yes, no rule) rule {
	return byCase(func(_ *report, v protoreflect.Value) rule {
		if wrapped(v) == want {
			return yes
		}
		return no
	}, strconv.FormatUint(want, 10), yes, "otherwise", no)
}

// boolIs gives yes for a wrapped or plain bool that equals want.
func boolIs(want bool, yes, no rule) rule {
	return byCase(func(_ *report, v protoreflect.Value) rule {
		got := false
		switch x := v.Interface().(type) {
		case bool:
			got = x
		case protoreflect.Message:
			got = x.Get(x.Descriptor().Fields().ByName("value")).Bool()
		}
		if got == want {
			return yes
		}
		return no
	}, strconv.FormatBool(want), yes, strconv.FormatBool(!want), no)
}

// wrapped returns the number in a UInt32Value, a UInt64Value or a plain field.
func wrapped(v protoreflect.Value) uint64 {
	if m, ok := v.Interface().(protoreflect.Message); ok {
		return m.Get(m.Descriptor().Fields().ByName("value")).Uint()
	}
	return v.Uint()
}

// Messages that are given by more than one field.
const (
	msgTimer    = "not enforced: the kernel's own timers apply"
	msgLog      = "not enforced: access logs come from kmesh's own counters and ring buffer"
	msgSubset   = "subsets of a cluster cannot be selected here: use one cluster per subset"
	msgHTTP     = "requests reach the endpoint as the client sent them"
	msgHTTP2    = "requests are not translated: a client that speaks HTTP/1 reaches the endpoint by HTTP/1"
	msgHash     = "only source_ip is supported"
	msgBuffer   = "there is no proxy that buffers"
	msgBind     = "there is no socket to bind: connections are governed where the client makes them"
	msgSlow     = "slow start is not enforced"
	msgPanic    = "panic mode is not enforced: unhealthy endpoints are never chosen"
	msgZone     = "zone aware routing is not enforced: localities carry priorities and weights only"
	msgHashLoad = "bounded loads and hashing by hostname are not enforced"
)

// listenerTable is the part of the table that listeners need.
var listenerTable = map[protoreflect.FullName]rules{
	"envoy.config.listener.v3.Listener": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                              enforced,
		"address":                           inside,
		"additional_addresses":              inside,
		"filter_chains":                     code,
		"default_filter_chain":              code,
		"listener_filters":                  inside,
		"stat_prefix":                       harmless,
		"stats_matcher":                     harmless,
		"metadata":                          harmless,
		"fcds_config":                       condition("filter chains by discovery are not supported: put them into the listener"),
		"filter_chain_matcher":              condition("a filter chain matcher is not supported: use filter_chain_match"),
		"use_original_dst":                  byCase(originalDst, "false", harmless, "true, for every address and without HTTP", rest, "otherwise", notRest),
		"api_listener":                      condition("an API listener (proxyless gRPC) is not governed"),
		"internal_listener":                 benign("no connection reaches it: what would lead one here has a verdict"),
		"traffic_direction":                 byCase(direction, "UNSPECIFIED", harmless, "OUTBOUND", enforced, "INBOUND", condition(msgInbound), "INBOUND, with an RBAC filter", condition(msgInbound+msgUnenforced)),
		"bind_to_port":                      benign(msgBind),
		"deprecated_v1":                     benign(msgBind),
		"transparent":                       benign(msgBind),
		"freebind":                          benign(msgBind),
		"reuse_port":                        benign(msgBind),
		"enable_reuse_port":                 benign(msgBind),
		"tcp_backlog_size":                  benign(msgBind),
		"connection_balance_config":         benign(msgBind),
		"drain_type":                        benign(msgBind),
		"tcp_fast_open_queue_length":        benign(msgBind),
		"ignore_global_conn_limit":          benign(msgBind),
		"bypass_overload_manager":           benign(msgBind),
		"udp_listener_config":               benign(msgBind),
		"per_connection_buffer_limit_bytes": benign(msgBuffer),
		"per_connection_buffer_high_watermark_timeout": benign(msgBuffer),
		"max_connections_to_accept_per_socket_event":   benign(msgBind),
		"listener_filters_timeout":                     benign("no listener filter waits for bytes"),
		"continue_on_listener_filters_timeout":         benign("no listener filter waits for bytes"),
		"socket_options":                               ignored("socket options are the client's own"),
		"enable_mptcp":                                 ignored("MPTCP is the client's own choice"),
		"tcp_keepalive":                                ignored("keepalive is the client's own choice"),
		"access_log":                                   ignored(msgLog),
	}},
	"envoy.config.listener.v3.AdditionalAddress": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"address":        inside,
		"socket_options": ignored("socket options are the client's own"),
		"tcp_keepalive":  ignored("keepalive is the client's own choice"),
	}},
	"envoy.config.listener.v3.FilterChain": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":                             harmless,
		"metadata":                         harmless,
		"filter_chain_match":               inside,
		"filters":                          inside,
		"use_proxy_proto":                  boolIs(false, harmless, ignored("the PROXY protocol is not read")),
		"transport_socket":                 byCase(downstreamSocket, "raw_buffer", harmless, "otherwise", condition(msgTermination)),
		"transport_socket_connect_timeout": benign("there is no handshake to wait for"),
	}},
	"envoy.config.listener.v3.FilterChainMatch": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"destination_port":            enforced,
		"prefix_ranges":               enforced,
		"transport_protocol":          byCase(transportProtocol, "raw_buffer, without a tls_inspector or on an HTTP chain", benign(msgPlain), "otherwise", condition(msgTransport)),
		"application_protocols":       byCase(applicationProtocols, "http/1.1, http/1.0 on an HTTP chain with an http_inspector", enforced, "these and h2c", ignored(msgH2C), "otherwise", condition(msgALPN)),
		"server_names":                condition("the server name (SNI) is not known when a connection is made"),
		"source_type":                 condition("the source is not matched: use one scope per kind of client"),
		"source_prefix_ranges":        condition("the source address is not matched"),
		"direct_source_prefix_ranges": condition("the source address is not matched"),
		"source_ports":                condition("the source port is not known when a connection is made"),
		"address_suffix":              condition("address suffixes are not matched: use prefix_ranges"),
		"suffix_len":                  condition("address suffixes are not matched: use prefix_ranges"),
	}},
	"envoy.config.listener.v3.Filter": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":             harmless,
		"typed_config":     inside,
		"config_discovery": condition("filters by discovery are not supported: what they do is not known here"),
	}},
	"envoy.config.listener.v3.ListenerFilter": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":             harmless,
		"typed_config":     inside,
		"filter_disabled":  ignored("listener filters are not run"),
		"config_discovery": ignored("listener filters by discovery are not supported"),
	}},
	"envoy.config.core.v3.Address": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"socket_address":         inside,
		"pipe":                   condition("a unix socket cannot be governed"),
		"envoy_internal_address": condition("an internal address is not reachable from here"),
	}},
	"envoy.config.core.v3.SocketAddress": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"protocol":                   enforced,
		"address":                    enforced,
		"port_value":                 enforced,
		"ipv4_compat":                enforced,
		"named_port":                 condition("a named port cannot be resolved: use port_value"),
		"resolver_name":              condition("custom resolvers are not supported: use an IP address"),
		"network_namespace_filepath": condition("listeners in other network namespaces are not supported"),
	}},
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"stat_prefix":                        harmless,
		"cluster":                            enforced,
		"weighted_clusters":                  inside,
		"metadata_match":                     condition(msgSubset),
		"tunneling_config":                   condition("tunnels over HTTP CONNECT are not supported"),
		"hash_policy":                        byCase(hashPolicy, "source_ip only", enforced, "otherwise", ignored(msgHash)),
		"access_log":                         ignored(msgLog),
		"access_log_options":                 ignored(msgLog),
		"access_log_flush_interval":          ignored(msgLog),
		"flush_access_log_on_connected":      ignored(msgLog),
		"idle_timeout":                       ignored(msgTimer),
		"downstream_idle_timeout":            ignored(msgTimer),
		"upstream_idle_timeout":              ignored(msgTimer),
		"max_downstream_connection_duration": ignored(msgTimer),
		"max_downstream_connection_duration_jitter_percentage": ignored(msgTimer),
		"max_connect_attempts":                                 uint32Is(1, harmless, ignored("a refused connection is not tried again: the client sees the refusal")),
		"backoff_options":                                      ignored("a refused connection is not tried again: the client sees the refusal"),
		"proxy_protocol_tlvs":                                  ignored("the PROXY protocol is not written"),
		"proxy_protocol_tlv_merge_policy":                      ignored("the PROXY protocol is not written"),
		"upstream_connect_mode":                                benign("a connection goes to its endpoint at once"),
		"max_early_data_bytes":                                 benign(msgBuffer),
		"check_drain_close":                                    benign("there is no proxy that drains"),
		"on_demand":                                            ignored("clusters on demand are not supported: the cluster must be announced"),
	}},
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"clusters": inside,
	}},
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":           enforced,
		"weight":         enforced,
		"metadata_match": condition(msgSubset),
	}},
	"envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"stat_prefix":                   harmless,
		"cluster":                       enforced,
		"matcher":                       inside,
		"idle_timeout":                  ignored(msgTimer),
		"use_original_src_ip":           benign("the endpoint sees the client's own address"),
		"hash_policies":                 byCase(hashPolicy, "source_ip only", enforced, "otherwise", ignored(msgHash)),
		"upstream_socket_config":        benign(msgBuffer),
		"use_per_packet_load_balancing": boolIs(false, harmless, ignored("an endpoint is chosen per socket and destination, not per datagram")),
		"access_log":                    ignored(msgLog),
		"proxy_access_log":              ignored(msgLog),
		"access_log_options":            ignored(msgLog),
		"session_filters":               ignored("session filters are not run"),
		"tunneling_config":              condition("tunnels over HTTP are not supported"),
	}},
	"xds.type.matcher.v3.Matcher": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"on_no_match":  inside,
		"matcher_list": condition("only on_no_match with a Route is supported"),
		"matcher_tree": condition("only on_no_match with a Route is supported"),
	}},
	"xds.type.matcher.v3.Matcher.OnMatch": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"action":        inside,
		"matcher":       condition("nested matchers are not supported"),
		"keep_matching": condition("keep_matching is not supported"),
	}},
	"xds.core.v3.TypedExtensionConfig": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":         harmless,
		"typed_config": inside,
	}},
	"envoy.extensions.filters.udp.udp_proxy.v3.Route": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"cluster": enforced,
	}},
}

// walked are the extensions that are looked into, by the message that may hold
// them; load balancing policies are read where one of them is chosen.
var walked = map[protoreflect.FullName][]protoreflect.FullName{
	"envoy.config.listener.v3.Filter":                                        {"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", typeHCM},
	"envoy.config.listener.v3.ListenerFilter":                                {"envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig"},
	"envoy.config.cluster.v3.Cluster":                                        {typeHTTPOptions},
	"envoy.config.cluster.v3.Cluster.CustomClusterType":                      {typeDNS},
	"xds.core.v3.TypedExtensionConfig":                                       {"envoy.extensions.filters.udp.udp_proxy.v3.Route"},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": {"envoy.extensions.filters.http.fault.v3.HTTPFault"},
}

// extensions says what becomes of an extension as a whole, by the type of its
// configuration. Those that are walked are in the table.
var extensions = func() map[protoreflect.FullName]rule {
	all := maps.Clone(listenerExtensions)
	maps.Copy(all, httpExtensions)
	return all
}()

// listenerExtensions are those of listeners.
var listenerExtensions = map[protoreflect.FullName]rule{
	// Listener filters.
	"envoy.extensions.filters.listener.original_dst.v3.OriginalDst":       benign("the destination is the one that the client asked for"),
	"envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":   enforced,
	"envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":     benign("no chain that would need it is served"),
	"envoy.extensions.filters.listener.original_src.v3.OriginalSrc":       benign("the endpoint sees the client's own address"),
	"envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol":   ignored("the PROXY protocol is not read"),
	"envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit": ignored("rate limits are not enforced"),
	// Network filters.
	"envoy.extensions.filters.network.sni_cluster.v3.SniCluster":                 condition("the server name (SNI) is not known when a connection is made"),
	"envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig": condition("the server name (SNI) is not known when a connection is made"),
	"envoy.extensions.filters.network.rbac.v3.RBAC":                              ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.network.ext_authz.v3.ExtAuthz":                     ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit":         ignored("rate limits are not enforced"),
	"envoy.extensions.filters.network.ratelimit.v3.RateLimit":                    ignored("rate limits are not enforced"),
	"envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit":       ignored("connection limits are not enforced"),
	// Istio's own, of listeners and of clusters.
	"envoy.tcp.metadataexchange.config.MetadataExchange": benign(msgPeers),
}

// transportProtocol: without a TLS inspector every connection is raw_buffer.
func transportProtocol(r *report, v protoreflect.Value) rule {
	if v.String() == "raw_buffer" && (r.httpChain || !r.tlsInspector) {
		return benign(msgPlain)
	}
	return condition(msgTransport)
}

const (
	msgPlain       = "always true without a tls_inspector, and of what begins as HTTP/1"
	msgTransport   = "the transport protocol is not known when a connection is made"
	msgTermination = "TLS is not terminated here: only raw_buffer is supported"
)

// hashPolicy: the source's address is the one key that the data path has.
func hashPolicy(_ *report, v protoreflect.Value) rule {
	list := v.List()
	for i := range list.Len() {
		m := list.Get(i).Message()
		if !m.Has(m.Descriptor().Fields().ByName("source_ip")) {
			return ignored(msgHash)
		}
	}
	return enforced
}

// downstreamSocket: a chain that terminates TLS cannot be served without it.
func downstreamSocket(_ *report, v protoreflect.Value) rule {
	if isRawBuffer(v.Message()) {
		return harmless
	}
	return condition(msgTermination)
}

// isRawBuffer tells whether a core.v3.TransportSocket is the plain one.
func isRawBuffer(socket protoreflect.Message) bool {
	fields := socket.Descriptor().Fields()
	typed := fields.ByName("typed_config")
	if !socket.Has(typed) {
		return socket.Get(fields.ByName("name")).String() == "envoy.transport_sockets.raw_buffer"
	}
	any := socket.Get(typed).Message()
	url := any.Get(any.Descriptor().Fields().ByName("type_url")).String()
	return shortType(url) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
}

// shortType returns the message's name in a type URL.
func shortType(url string) string {
	for i := len(url) - 1; i >= 0; i-- {
		if url[i] == '/' {
			return url[i+1:]
		}
	}
	return url
}
