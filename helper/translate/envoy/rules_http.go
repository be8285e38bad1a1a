// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// Messages that are given by more than one HTTP field.
const (
	msgHead     = "the request's head is not changed: it reaches the endpoint as the client sent it"
	msgResponse = "the response's head is not changed"
	msgTracing  = "no traces are made"
	msgRuntime  = "there is no runtime: the value given here counts"
	msgMirror   = "requests are not mirrored"
	msgRate     = "rate limits are not enforced"
	msgRawPath  = "the path is matched and forwarded as the client sent it"
	msgUnknown  = "what it would do to requests is not known here"
	msgPeers    = "telemetry labels come from the mesh's own records"
	msgNoFault  = "the fault is not injected"
)

// httpTable is the part of the table that the HTTP connection manager needs.
var httpTable = map[protoreflect.FullName]rules{
	typeHCM: {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"stat_prefix":                        harmless,
		"codec_type":                         whenEnum(map[protoreflect.EnumNumber]rule{0: harmless, 1: harmless}, condition("only HTTP/1 is routed")),
		"rds":                                inside,
		"route_config":                       inCode("a RouteConfiguration as below, with the listener's name"),
		"scoped_routes":                      condition("scoped routes are not supported: use rds or route_config"),
		"http_filters":                       inside,
		"strip_any_host_port":                boolIs(true, enforced, harmless),
		"strip_matching_host_port":           boolIs(false, harmless, condition("the port is not stripped by the listener's: use strip_any_host_port or ignore_port_in_host_matching")),
		"strip_trailing_host_dot":            boolIs(false, harmless, condition("a host is compared with its trailing dot: list both as domains")),
		"early_header_mutation_extensions":   condition("headers would be changed before routes are matched"),
		"tracing":                            ignored(msgTracing),
		"access_log":                         ignored(msgLog),
		"access_log_options":                 ignored(msgLog),
		"access_log_flush_interval":          ignored(msgLog),
		"flush_access_log_on_new_request":    ignored(msgLog),
		"common_http_protocol_options":       inside,
		"http_protocol_options":              inside,
		"http2_protocol_options":             benign("HTTP/2 is not read: its connections are balanced as they are"),
		"http3_protocol_options":             benign("HTTP/3 is not read"),
		"http1_safe_max_connection_duration": ignored(msgTimer),
		"stream_idle_timeout":                timer,
		"stream_flush_timeout":               timer,
		"request_timeout":                    timer,
		"request_headers_timeout":            timer,
		"drain_timeout":                      benign("there is no proxy that drains"),
		"drain_timeout_jitter":               benign("there is no proxy that drains"),
		"delayed_close_timeout":              benign("connections are the client's and the endpoint's own"),
		"add_user_agent":                     boolIs(false, harmless, ignored(msgHead)),
		"server_name":                        benign(msgResponse),
		"server_header_transformation":       whenEnum(map[protoreflect.EnumNumber]rule{2: benign(msgResponse)}, ignored(msgResponse)),
		"scheme_header_transformation":       benign("HTTP/1 requests carry no scheme"),
		"max_request_headers_kb":             ignored("a request's head may have 8 KiB"),
		"use_remote_address":                 boolIs(false, harmless, ignored("x-forwarded-for is not written: "+msgHead)),
		"xff_num_trusted_hops":               benign("x-forwarded-for is not read"),
		"original_ip_detection_extensions":   benign("the client's address is the connection's"),
		"internal_address_config":            benign("x-envoy-internal is not written"),
		"skip_xff_append":                    boolIs(true, harmless, benign("x-forwarded-for is not written")),
		"via":                                ignored(msgHead),
		"generate_request_id":                boolIs(false, harmless, ignored("request ids are not made")),
		"preserve_external_request_id":       benign(msgHead),
		"always_set_request_id_in_response":  boolIs(false, harmless, ignored(msgResponse)),
		"request_id_extension":               benign("request ids are not made"),
		"forward_client_cert_details":        benign("there is no client certificate on a plain connection"),
		"set_current_client_cert_details":    benign("there is no client certificate on a plain connection"),
		"forward_client_cert_matcher":        benign("there is no client certificate on a plain connection"),
		"proxy_100_continue":                 benign("100 Continue is the endpoint's own answer"),
		"represent_ipv4_remote_address_as_ipv4_mapped_ipv6": harmless,
		"upgrade_configs":                      inside,
		"normalize_path":                       boolIs(false, harmless, ignored(msgRawPath)),
		"merge_slashes":                        boolIs(false, harmless, ignored(msgRawPath)),
		"path_with_escaped_slashes_action":     whenEnum(map[protoreflect.EnumNumber]rule{0: harmless, 1: harmless}, ignored(msgRawPath)),
		"path_normalization_options":           ignored(msgRawPath),
		"local_reply_config":                   ignored("local answers have a plain text body"),
		"stream_error_on_invalid_http_message": benign("a malformed head is refused and its connection closed"),
		"proxy_status_config":                  ignored(msgResponse),
		"typed_header_validation_config":       ignored("heads are checked by rules of their own"),
		"append_x_forwarded_port":              boolIs(false, harmless, ignored(msgHead)),
		"append_local_overload":                benign("there is no overload manager"),
		"add_proxy_protocol_connection_state":  harmless,
		"record_route_resolution_stats":        harmless,
	}},
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"config_source":     inside,
		"route_config_name": enforced,
	}},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":             harmless,
		"typed_config":     inside,
		"config_discovery": ignored("filters by discovery are not run"),
		"is_optional":      harmless,
		"disabled":         enforced,
	}},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"upgrade_type": upgradeType,
		"enabled":      boolIs(true, harmless, ignored("upgrades are not refused")),
		"filters":      ignored("filters of upgraded streams are not run"),
	}},
	"envoy.config.core.v3.HttpProtocolOptions": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"idle_timeout":                    timer,
		"max_connection_duration":         timer,
		"max_connection_duration_jitter":  benign("no duration to vary"),
		"max_stream_duration":             timer,
		"max_headers_count":               ignored("a request may have 100 headers"),
		"max_response_headers_kb":         benign("the response's head is the client's to judge"),
		"headers_with_underscores_action": whenEnum(map[protoreflect.EnumNumber]rule{0: harmless}, ignored("headers with underscores pass")),
		"max_requests_per_connection":     maxRequests,
	}},
	"envoy.config.core.v3.Http1ProtocolOptions": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"allow_absolute_url":                            boolIs(true, harmless, ignored("an absolute target is routed by its authority")),
		"accept_http_10":                                boolIs(true, harmless, ignored("HTTP/1.0 is not refused")),
		"default_host_for_http_10":                      ignored("a request without a host has none"),
		"header_key_format":                             benign(msgHead),
		"enable_trailers":                               benign("trailers pass"),
		"allow_chunked_length":                          boolIs(false, harmless, ignored("a request with both lengths is refused")),
		"send_fully_qualified_url":                      boolIs(false, harmless, ignored(msgHead)),
		"use_balsa_parser":                              harmless,
		"allow_custom_methods":                          harmless,
		"ignore_http_11_upgrade":                        ignored("upgrades pass"),
		"override_stream_error_on_invalid_http_message": benign("a malformed head is refused and its connection closed"),
	}},
	"envoy.extensions.filters.http.fault.v3.HTTPFault": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"abort":                               inside,
		"delay":                               ignored("delays are not injected"),
		"response_rate_limit":                 ignored("responses are not slowed down"),
		"upstream_cluster":                    ignored("faults by cluster are not supported: " + msgNoFault),
		"headers":                             ignored("faults by header are not supported: " + msgNoFault),
		"downstream_nodes":                    ignored("faults by node are not supported: " + msgNoFault),
		"max_active_faults":                   ignored("faults are not limited in number"),
		"delay_percent_runtime":               benign(msgRuntime),
		"abort_percent_runtime":               benign(msgRuntime),
		"delay_duration_runtime":              benign(msgRuntime),
		"abort_http_status_runtime":           benign(msgRuntime),
		"max_active_faults_runtime":           benign(msgRuntime),
		"response_rate_limit_percent_runtime": benign(msgRuntime),
		"abort_grpc_status_runtime":           benign(msgRuntime),
		"disable_downstream_cluster_stats":    harmless,
		"filter_metadata":                     harmless,
	}},
	"envoy.extensions.filters.http.fault.v3.FaultAbort": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"http_status":   enforced,
		"percentage":    enforced,
		"grpc_status":   ignored("gRPC is not read: " + msgNoFault),
		"header_abort":  ignored("faults that the client asks for by header are not supported: " + msgNoFault),
		"response_body": ignored("the answer has no body"),
	}},
}

// httpExtensions says what becomes of HTTP filters and their options per route.
var httpExtensions = map[protoreflect.FullName]rule{
	"envoy.extensions.filters.http.router.v3.Router":                    enforced,
	"envoy.extensions.filters.http.cors.v3.Cors":                        benign("does nothing without a policy of a route"),
	"envoy.extensions.filters.http.cors.v3.CorsPolicy":                  ignored("CORS is NOT ENFORCED: preflight requests reach the endpoint, answers get no headers"),
	"envoy.extensions.filters.http.grpc_stats.v3.FilterConfig":          benign("statistics only"),
	"envoy.extensions.filters.http.rbac.v3.RBAC":                        ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.http.rbac.v3.RBACPerRoute":                ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":               ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute":       ignored("authorization is NOT ENFORCED here"),
	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication":      ignored("authentication is NOT ENFORCED here"),
	"envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig":         ignored("authentication is NOT ENFORCED here"),
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit":   ignored(msgRate),
	"envoy.extensions.filters.http.ratelimit.v3.RateLimit":              ignored(msgRate),
	"envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute":      ignored(msgRate),
	"envoy.extensions.filters.http.buffer.v3.Buffer":                    ignored(msgBuffer),
	"envoy.extensions.filters.http.compressor.v3.Compressor":            ignored("bodies are not changed"),
	"envoy.extensions.filters.http.lua.v3.Lua":                          ignored("scripts are not run: " + msgUnknown),
	"envoy.extensions.filters.http.wasm.v3.Wasm":                        ignored("scripts are not run: " + msgUnknown),
	"envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor":       ignored("requests are not sent to a processor: " + msgUnknown),
	"envoy.extensions.filters.http.stateful_session.v3.StatefulSession": ignored("sessions are not kept on one endpoint"),
	// Istio's own.
	"io.istio.http.peer_metadata.Config":                        benign(msgPeers),
	"istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": benign("TLS is not originated here"),
	"stats.PluginConfig":                                        benign("metrics come from kmesh's own counters"),
}

// timer is a duration: 0 asks for what happens anyway.
var timer = byCase(func(_ *report, v protoreflect.Value) rule {
	if empty(v.Message()) {
		return benign("none")
	}
	return ignored(msgTimer)
}, "0", benign("none"), "otherwise", ignored(msgTimer))

// upgradeType: an upgraded connection is pinned whatever it speaks.
var upgradeType = byCase(func(_ *report, v protoreflect.Value) rule {
	if v.String() == "websocket" {
		return benign("an upgraded connection stays on its endpoint")
	}
	return ignored("upgrades are not told apart: all of them stay on their endpoint")
}, "websocket", benign("an upgraded connection stays on its endpoint"),
	"otherwise", ignored("upgrades are not told apart: all of them stay on their endpoint"))

// sniffed are the application protocols that a connection shows by its first bytes.
var sniffed = []string{"http/1.0", "http/1.1", "h2c"}

const msgALPN = "the application protocol is not known when a connection is made"

// applicationProtocols: HTTP/1 is known by its first bytes.
func applicationProtocols(r *report, v protoreflect.Value) rule {
	list := v.List()
	var names []string
	for i := range list.Len() {
		names = append(names, list.Get(i).String())
	}
	unknown := slices.ContainsFunc(names, func(s string) bool { return !slices.Contains(sniffed, s) })
	if !r.httpChain || !r.httpInspector || unknown || !slices.Contains(names, "http/1.1") {
		return condition(msgALPN)
	}
	if slices.Contains(names, "h2c") {
		return ignored(msgH2C)
	}
	return enforced
}

const msgH2C = "HTTP/1 is known by its first bytes; HTTP/2 is not routed by request: its connections go where those go that are not HTTP"
