// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

const (
	msgNotTested = "cannot be tested in the kernel: what matches the rest is answered 503"
	msgNoCluster = "the cluster is not known beforehand: answered 503"
	msgLocation  = "the Location cannot be made here: answered 503"
	msgRewrite   = "rewrites are NOT ENFORCED: " + msgHead
	msgHeaders   = "header changes are NOT ENFORCED: "
)

// routeTable is the part of the table that route configurations need.
var routeTable = map[protoreflect.FullName]rules{
	"envoy.config.route.v3.RouteConfiguration": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                                enforced,
		"virtual_hosts":                       inCode("each is a VirtualHost as below"),
		"ignore_port_in_host_matching":        enforced,
		"max_direct_response_body_size_bytes": enforced,
		"vhds":                                condition("virtual hosts on demand are not supported: every request is answered 503"),
		"vhost_header":                        condition("virtual hosts by another header than Host are not supported: every request is answered 503"),
		"ignore_path_parameters_in_path_matching": boolIs(false, harmless, condition("path parameters take part in matching: every request is answered 503")),
		"validate_clusters":                       benign("a route to a cluster that does not exist is never used"),
		"internal_only_headers":                   ignored(msgHeaders + msgHead),
		"request_headers_to_add":                  ignored(msgHeaders + msgHead),
		"request_headers_to_remove":               ignored(msgHeaders + msgHead),
		"response_headers_to_add":                 ignored(msgHeaders + msgResponse),
		"response_headers_to_remove":              ignored(msgHeaders + msgResponse),
		"most_specific_header_mutations_wins":     benign("no header is changed"),
		"cluster_specifier_plugins":               benign("routes that use one say so"),
		"request_mirror_policies":                 ignored(msgMirror),
		"typed_per_filter_config":                 perFilter,
		"metadata":                                harmless,
		"route_specifiers":                        condition("route specifiers are not supported: every request is answered 503"),
	}},
	"envoy.config.route.v3.VirtualHost": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                              enforced,
		"domains":                           enforced,
		"routes":                            inCode("each is a Route as below"),
		"matcher":                           condition("a matcher is not supported: give routes; every request is answered 503"),
		"require_tls":                       whenEnum(map[protoreflect.EnumNumber]rule{0: harmless}, condition("TLS is not terminated here: every request is answered 503")),
		"virtual_clusters":                  benign("statistics only"),
		"rate_limits":                       ignored(msgRate),
		"request_headers_to_add":            ignored(msgHeaders + msgHead),
		"request_headers_to_remove":         ignored(msgHeaders + msgHead),
		"response_headers_to_add":           ignored(msgHeaders + msgResponse),
		"response_headers_to_remove":        ignored(msgHeaders + msgResponse),
		"cors":                              ignored("CORS is NOT ENFORCED"),
		"typed_per_filter_config":           perFilter,
		"include_request_attempt_count":     boolIs(false, harmless, benign("the header x-envoy-attempt-count is not written")),
		"include_attempt_count_in_response": boolIs(false, harmless, benign("the header x-envoy-attempt-count is not written")),
		"include_is_timeout_retry_header":   boolIs(false, harmless, benign("the header x-envoy-is-timeout-retry is not written")),
		"retry_policy":                      retryPolicy,
		"retry_policy_typed_config":         ignored(msgRetry),
		"hedge_policy":                      ignored("requests are not hedged"),
		"per_request_buffer_limit_bytes":    benign(msgBuffer),
		"request_body_buffer_limit":         benign(msgBuffer),
		"request_mirror_policies":           ignored(msgMirror),
		"metadata":                          harmless,
		"route_specifiers":                  condition("route specifiers are not supported: every request is answered 503"),
	}},
	"envoy.config.route.v3.Route": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                           harmless,
		"match":                          inside,
		"route":                          inside,
		"redirect":                       inside,
		"direct_response":                inside,
		"filter_action":                  condition("actions by a filter are not supported: answered 503"),
		"non_forwarding_action":          condition("a route without an action: answered 503"),
		"metadata":                       harmless,
		"decorator":                      benign("names spans: " + msgTracing),
		"typed_per_filter_config":        perFilter,
		"request_headers_to_add":         ignored(msgHeaders + msgHead),
		"request_headers_to_remove":      ignored(msgHeaders + msgHead),
		"response_headers_to_add":        ignored(msgHeaders + msgResponse),
		"response_headers_to_remove":     ignored(msgHeaders + msgResponse),
		"tracing":                        ignored(msgTracing),
		"per_request_buffer_limit_bytes": benign(msgBuffer),
		"request_body_buffer_limit":      benign(msgBuffer),
		"stat_prefix":                    harmless,
		"route_specifiers":               condition("route specifiers are not supported: answered 503"),
	}},
	"envoy.config.route.v3.RouteMatch": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"prefix":                enforced,
		"path":                  enforced,
		"path_separated_prefix": enforced,
		"safe_regex":            inside,
		"case_sensitive":        enforced,
		"runtime_fraction":      inside,
		"headers":               inside,
		"query_parameters":      inside,
		"connect_matcher":       condition("CONNECT " + msgNotTested),
		"path_match_policy":     condition("path templates are not supported, use safe_regex: what matches the rest is answered 503"),
		"cookies":               condition("cookies are not supported, use a header match on cookie: what matches the rest is answered 503"),
		"grpc":                  condition("gRPC " + msgNotTested),
		"tls_context":           condition("the TLS context " + msgNotTested),
		"dynamic_metadata":      condition("dynamic metadata " + msgNotTested),
		"filter_state":          condition("filter state " + msgNotTested),
	}},
	"envoy.config.route.v3.HeaderMatcher": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":                          byCase(headerName, "a header, :method or :authority", enforced, "another name that begins with a colon", condition(msgNotTested)),
		"exact_match":                   enforced,
		"prefix_match":                  enforced,
		"suffix_match":                  enforced,
		"contains_match":                enforced,
		"safe_regex_match":              inside,
		"range_match":                   enforced,
		"present_match":                 enforced,
		"string_match":                  inside,
		"invert_match":                  enforced,
		"treat_missing_header_as_empty": inCode("enforced; with present_match an unsupported condition"),
	}},
	"envoy.config.route.v3.QueryParameterMatcher": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"name":          enforced,
		"string_match":  inside,
		"present_match": boolIs(true, enforced, condition("the absence of a parameter "+msgNotTested)),
	}},
	"envoy.type.matcher.v3.StringMatcher": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"exact":       enforced,
		"prefix":      enforced,
		"suffix":      enforced,
		"contains":    enforced,
		"safe_regex":  inside,
		"ignore_case": enforced,
		"custom":      condition("custom matchers are not supported: what matches the rest is answered 503"),
	}},
	"envoy.type.matcher.v3.RegexMatcher": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"regex":      enforced,
		"google_re2": harmless,
	}},
	"envoy.config.core.v3.RuntimeFractionalPercent": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"default_value": enforced,
		"runtime_key":   benign(msgRuntime),
	}},
	"envoy.config.route.v3.RouteAction": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"cluster":                         enforced,
		"weighted_clusters":               inside,
		"cluster_header":                  condition(msgNoCluster),
		"cluster_specifier_plugin":        condition(msgNoCluster),
		"inline_cluster_specifier_plugin": condition(msgNoCluster),
		"metadata_match":                  condition(msgSubset + ": answered 503"),
		"cluster_not_found_response_code": benign("a route to a cluster that does not exist is never used"),
		"prefix_rewrite":                  ignored(msgRewrite),
		"regex_rewrite":                   ignored(msgRewrite),
		"path_rewrite_policy":             ignored(msgRewrite),
		"path_rewrite":                    ignored(msgRewrite),
		"host_rewrite_literal":            ignored(msgRewrite),
		"auto_host_rewrite":               boolIs(false, harmless, ignored(msgRewrite)),
		"host_rewrite_header":             ignored(msgRewrite),
		"host_rewrite_path_regex":         ignored(msgRewrite),
		"host_rewrite":                    ignored(msgRewrite),
		"append_x_forwarded_host":         boolIs(false, harmless, benign("the host is not rewritten")),
		"timeout":                         timer,
		"idle_timeout":                    timer,
		"flush_timeout":                   timer,
		"early_data_policy":               benign("there is no TLS here"),
		"retry_policy":                    retryPolicy,
		"retry_policy_typed_config":       ignored(msgRetry),
		"request_mirror_policies":         ignored(msgMirror),
		"priority":                        whenEnum(map[protoreflect.EnumNumber]rule{0: harmless}, benign("there are no circuit breakers per priority")),
		"rate_limits":                     ignored(msgRate),
		"include_vh_rate_limits":          benign(msgRate),
		"hash_policy":                     inCode("the first header (of a name of at most 40 bytes) or source_ip is enforced, where the cluster is MAGLEV; all others are not enforced"),
		"cors":                            ignored("CORS is NOT ENFORCED"),
		"max_grpc_timeout":                benign("for gRPC, which is not routed by request"),
		"grpc_timeout_offset":             benign("for gRPC, which is not routed by request"),
		"max_stream_duration":             inside,
		"upgrade_configs":                 inside,
		"internal_redirect_policy":        ignored("redirects go to the client"),
		"internal_redirect_action":        whenEnum(map[protoreflect.EnumNumber]rule{0: harmless}, ignored("redirects go to the client")),
		"max_internal_redirects":          benign("redirects go to the client"),
		"hedge_policy":                    ignored("requests are not hedged"),
	}},
	"envoy.config.route.v3.RouteAction.MaxStreamDuration": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"max_stream_duration":        timer,
		"grpc_timeout_header_max":    benign("for gRPC, which is not routed by request"),
		"grpc_timeout_header_offset": benign("for gRPC, which is not routed by request"),
	}},
	"envoy.config.route.v3.RouteAction.UpgradeConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"upgrade_type":   upgradeType,
		"enabled":        boolIs(true, harmless, ignored("upgrades are not refused")),
		"connect_config": ignored("CONNECT is not terminated here"),
	}},
	"envoy.config.route.v3.WeightedCluster": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"clusters":           inside,
		"total_weight":       enforced,
		"runtime_key_prefix": benign(msgRuntime),
		"header_name":        ignored("the cluster is drawn at random, not by a header"),
		"use_hash_policy":    boolIs(false, harmless, ignored("the cluster is drawn at random, not by a hash")),
	}},
	"envoy.config.route.v3.WeightedCluster.ClusterWeight": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                       enforced,
		"weight":                     enforced,
		"cluster_header":             condition(msgNoCluster),
		"metadata_match":             condition(msgSubset + ": answered 503"),
		"host_rewrite_literal":       ignored(msgRewrite),
		"request_headers_to_add":     ignored(msgHeaders + msgHead),
		"request_headers_to_remove":  ignored(msgHeaders + msgHead),
		"response_headers_to_add":    ignored(msgHeaders + msgResponse),
		"response_headers_to_remove": ignored(msgHeaders + msgResponse),
		"typed_per_filter_config":    ignored("filters cannot be configured per weighted cluster: use one route each"),
	}},
	"envoy.config.route.v3.RedirectAction": {other: mesh.UnsupportedCondition, fields: map[protoreflect.Name]rule{
		"https_redirect":  enforced,
		"scheme_redirect": enforced,
		"host_redirect":   enforced,
		"port_redirect":   enforced,
		"path_redirect":   enforced,
		"prefix_rewrite":  enforced,
		"response_code":   enforced,
		"strip_query":     enforced,
		"regex_rewrite":   condition(msgLocation),
		"path_rewrite":    condition(msgLocation),
	}},
	"envoy.config.route.v3.DirectResponseAction": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"status":      enforced,
		"body":        inCode("inline_string and inline_bytes of at most 4096 bytes are enforced; any other body is left out (not enforced)"),
		"body_format": ignored("the body is sent as it is"),
	}},
}

// perFilter is the verdict of every typed_per_filter_config.
var perFilter = inCode("by the type of each entry: HTTPFault as below, see also Extensions")

const msgRetry = "requests are not tried again, but for a connection that is refused"

// retriable are the conditions of the control plane's default policy: nothing has
// reached an endpoint yet, or the status is the one below.
var retriable = []string{"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes", "reset-before-request"}

// retryPolicy: the policy that istiod gives every route asks for no more than to
// replace an endpoint that could not be reached.
var retryPolicy = byCase(func(_ *report, v protoreflect.Value) rule {
	p, ok := v.Message().Interface().(*routev3.RetryPolicy)
	if !ok {
		return ignored(msgRetry)
	}
	if p.GetNumRetries() != nil && p.GetNumRetries().GetValue() == 0 || p.GetRetryOn() == "" {
		return benign("nothing is retried")
	}
	if p.GetNumRetries().GetValue() <= 2 && p.GetPerTryTimeout() == nil && p.GetPerTryIdleTimeout() == nil &&
		p.GetRetryBackOff() == nil && p.GetRetryPriority() == nil && p.GetRateLimitedRetryBackOff() == nil &&
		len(p.GetRetriableHeaders()) == 0 && len(p.GetRetriableRequestHeaders()) == 0 && len(p.GetRetryOptionsPredicates()) == 0 {
		usual := true
		for _, on := range strings.Split(p.GetRetryOn(), ",") {
			usual = usual && slices.Contains(retriable, strings.TrimSpace(on))
		}
		for _, code := range p.GetRetriableStatusCodes() {
			usual = usual && code == 503
		}
		if usual {
			return benign(msgDefaultRetry)
		}
	}
	return ignored(msgRetry)
}, "none, or the control plane's default (at most 2 retries of what reached no endpoint, or of a 503)", benign(msgDefaultRetry),
	"otherwise", ignored(msgRetry))

const msgDefaultRetry = "the control plane's default: " + msgRetry

// headerName: HTTP/1 has two of the pseudo headers.
func headerName(_ *report, v protoreflect.Value) rule {
	name := strings.ToLower(v.String())
	if strings.HasPrefix(name, ":") && name != ":method" && name != ":authority" {
		return condition(msgNotTested)
	}
	return enforced
}
