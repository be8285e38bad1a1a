// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"math"

	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// table is the one place that says what is supported.
var table = func() map[protoreflect.FullName]rules {
	all := maps.Clone(listenerTable)
	maps.Copy(all, clusterTable)
	maps.Copy(all, httpTable)
	maps.Copy(all, routeTable)
	return all
}()

// lbOptions are the fields that several load balancing policies share.
var (
	slowStart   = ignored(msgSlow)
	zoneAware   = ignored(msgZone)
	httpOption  = benign(msgHTTP)
	hashOptions = ignored(msgHashLoad)
	upstreamOpt = ignored("options of the upstream socket are the client's own")
)

// clusterTable is the part of the table that clusters and assignments need.
var clusterTable = map[protoreflect.FullName]rules{
	"envoy.config.cluster.v3.Cluster": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":                                         enforced,
		"type":                                         enforced,
		"cluster_type":                                 inside,
		"eds_cluster_config":                           inside,
		"load_assignment":                              code,
		"lb_policy":                                    byCase(lbPolicy, "ROUND_ROBIN, LEAST_REQUEST, RANDOM, MAGLEV, CLUSTER_PROVIDED", enforced, "RING_HASH", lbPolicyRules[2], "LOAD_BALANCING_POLICY_CONFIG", lbPolicyRules[7]),
		"load_balancing_policy":                        inside,
		"maglev_lb_config":                             inside,
		"ring_hash_lb_config":                          ignored("the ring's size and hash function are not used: Maglev approximates it"),
		"round_robin_lb_config":                        ignored(msgSlow),
		"least_request_lb_config":                      inside,
		"original_dst_lb_config":                       ignored("the original destination is used as it is: no override by header, metadata or port"),
		"common_lb_config":                             inside,
		"circuit_breakers":                             inside,
		"outlier_detection":                            ignored("outlier detection is not enforced"),
		"health_checks":                                ignored("active health checks are not made: health comes from the assignment"),
		"connect_timeout":                              byCase(connectTimeout, "127 s or more", benign(msgSYN), "less", ignored(msgConnect)),
		"transport_socket":                             byCase(upstreamSocket, "raw_buffer", harmless, "otherwise", ignored(msgOrigination)),
		"transport_socket_matches":                     inCode("TLS for every endpoint: connections are refused; for endpoints that ask for it, their assignment says so"),
		"transport_socket_matcher":                     ignored("transport sockets are not chosen by a matcher: connections are refused"),
		"lb_subset_config":                             ignored(msgSubset),
		"upstream_bind_config":                         upstreamOpt,
		"upstream_connection_options":                  upstreamOpt,
		"filters":                                      inside,
		"upstream_config":                              ignored("custom upstreams are not supported"),
		"preconnect_policy":                            benign("connections are made when the client makes them"),
		"queuing_policies":                             benign("connections are made when the client makes them"),
		"max_requests_per_connection":                  maxRequests,
		"upstream_http_protocol_options":               httpOption,
		"common_http_protocol_options":                 inside,
		"http_protocol_options":                        httpOption,
		"http2_protocol_options":                       ignored(msgHTTP2),
		"typed_extension_protocol_options":             inside,
		"protocol_selection":                           httpOption,
		"track_timeout_budgets":                        httpOption,
		"alt_stat_name":                                harmless,
		"stats_matcher":                                harmless,
		"track_cluster_stats":                          harmless,
		"metadata":                                     harmless,
		"lrs_server":                                   ignored("load is not reported"),
		"lrs_report_endpoint_metrics":                  ignored("load is not reported"),
		"per_connection_buffer_limit_bytes":            benign(msgBuffer),
		"per_connection_buffer_high_watermark_timeout": benign(msgBuffer),
		"cleanup_interval":                             benign("there is no host table to clean"),
		"wait_for_warm_on_init":                        benign("a listener always waits for its clusters"),
		"ignore_health_on_host_removal":                benign("an endpoint that is gone is not chosen"),
		"close_connections_on_host_health_failure":     ignored("connections to an endpoint that fails are not closed"),
		"connection_pool_per_downstream_connection":    benign("every client connection has its own"),
		"dns_refresh_rate":                             forNames(refreshRate),
		"dns_jitter":                                   forNames(enforced),
		"dns_failure_refresh_rate":                     forNames(enforced),
		"respect_dns_ttl":                              forNames(boolIs(true, enforced, harmless)),
		"dns_lookup_family":                            forNames(enforced),
		"dns_resolvers":                                forNames(ignored(msgResolver)),
		"use_tcp_for_dns_lookups":                      forNames(boolIs(true, enforced, harmless)),
		"dns_resolution_config":                        forNames(ignored(msgResolver)),
		"typed_dns_resolver_config":                    forNames(ignored(msgResolver)),
	}},
	"envoy.config.cluster.v3.Cluster.CustomClusterType": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":         harmless,
		"typed_config": inside,
	}},
	"envoy.config.cluster.v3.Filter": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":             harmless,
		"typed_config":     inside,
		"config_discovery": ignored("upstream filters are not run"),
	}},
	typeDNS: {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"dns_refresh_rate":                 refreshRate,
		"dns_failure_refresh_rate":         enforced,
		"respect_dns_ttl":                  boolIs(true, enforced, harmless),
		"dns_jitter":                       enforced,
		"typed_dns_resolver_config":        ignored(msgResolver),
		"dns_lookup_family":                enforced,
		"all_addresses_in_single_endpoint": boolIs(true, enforced, harmless),
		"dns_min_refresh_rate":             enforced,
	}},
	typeHTTPOptions: {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"common_http_protocol_options":   inside,
		"upstream_http_protocol_options": httpOption,
		"explicit_http_config":           inside,
		"use_downstream_protocol_config": httpOption,
		"auto_config":                    httpOption,
		"http_filters":                   ignored("upstream filters are not run"),
		"header_validation_config":       benign(msgHead),
		"outlier_detection":              ignored("outlier detection is not enforced"),
		"request_mirror_policies":        ignored(msgMirror),
		"hash_policy":                    ignored("give it at the route: requests are hashed by that one only"),
		"retry_policy":                   retryPolicy,
	}},
	typeHTTPOptions + ".ExplicitHttpConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"http_protocol_options":  httpOption,
		"http2_protocol_options": ignored(msgHTTP2),
		"http3_protocol_options": ignored(msgHTTP2),
	}},
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"service_name": enforced,
		"eds_config":   inside,
	}},
	"envoy.config.core.v3.ConfigSource": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"ads":                   enforced,
		"self":                  enforced,
		"resource_api_version":  harmless,
		"initial_fetch_timeout": benign("an assignment that does not come counts as absent after 15 s"),
		"path":                  benign("assignments are taken from the source that the cluster came from"),
		"path_config_source":    benign("assignments are taken from the source that the cluster came from"),
		"api_config_source":     ignored("assignments are taken from the source that the cluster came from, not from a server of their own"),
		"authorities":           ignored("authorities are not supported"),
	}},
	"envoy.config.cluster.v3.Cluster.MaglevLbConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"table_size": enforced,
	}},
	"envoy.config.cluster.v3.Cluster.LeastRequestLbConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"choice_count":        uint32Is(2, harmless, ignored("always the better of two")),
		"active_request_bias": ignored("the bias is not used: open connections are compared as they are"),
		"slow_start_config":   slowStart,
	}},
	"envoy.config.cluster.v3.Cluster.CommonLbConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"healthy_panic_threshold":              byCase(panicThreshold, "0", benign(msgNoPanic), "otherwise", ignored(msgPanic)),
		"locality_weighted_lb_config":          enforced,
		"zone_aware_lb_config":                 zoneAware,
		"update_merge_window":                  benign("changes are gathered for 50 ms"),
		"ignore_new_hosts_until_first_hc":      benign("active health checks are not made"),
		"close_connections_on_host_set_change": ignored("connections are not closed when endpoints change"),
		"consistent_hashing_lb_config":         hashOptions,
		"override_host_status":                 ignored("hosts are not overridden"),
	}},
	"envoy.config.cluster.v3.CircuitBreakers": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"thresholds":          inside,
		"per_host_thresholds": inside,
	}},
	"envoy.config.cluster.v3.CircuitBreakers.Thresholds": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"priority":             harmless,
		"track_remaining":      harmless,
		"max_connections":      maxConnections,
		"max_pending_requests": unlimited,
		"max_requests":         unlimited,
		"max_retries":          unlimited,
		"max_connection_pools": unlimited,
		"retry_budget":         ignored("nothing is retried"),
	}},

	"envoy.config.endpoint.v3.ClusterLoadAssignment": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"cluster_name":    enforced,
		"endpoints":       inside,
		"named_endpoints": inside,
		"policy":          inside,
	}},
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"drop_overloads":           ignored("overload drops are not enforced"),
		"endpoint_stale_after":     ignored("endpoints do not become stale: the last known ones stay"),
		"overprovisioning_factor":  ignored("a lower priority is used only while no endpoint of a higher one is healthy"),
		"weighted_priority_health": ignored("a lower priority is used only while no endpoint of a higher one is healthy"),
	}},
	"envoy.config.endpoint.v3.LocalityLbEndpoints": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"locality":                     enforced,
		"priority":                     enforced,
		"load_balancing_weight":        benign("counts where the cluster is locality weighted"),
		"lb_endpoints":                 inside,
		"metadata":                     harmless,
		"load_balancer_endpoints":      ignored("use lb_endpoints"),
		"leds_cluster_locality_config": ignored("endpoints by LEDS are not supported: use lb_endpoints"),
		"proximity":                    ignored("proximity is not used"),
	}},
	"envoy.config.endpoint.v3.LbEndpoint": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"endpoint":              inside,
		"endpoint_name":         enforced,
		"health_status":         enforced,
		"load_balancing_weight": enforced,
		"metadata":              inCode("asks for automatic mTLS or a tunnel: not-enforced, once for the assignment; default otherwise"),
	}},
	"envoy.config.endpoint.v3.Endpoint": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"address":              inside,
		"hostname":             benign("for HTTP only"),
		"observability_name":   harmless,
		"health_check_config":  ignored("active health checks are not made"),
		"additional_addresses": ignored("the first address is used"),
	}},

	"envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"slow_start_config":  slowStart,
		"locality_lb_config": inside,
	}},
	"envoy.extensions.load_balancing_policies.random.v3.Random": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"locality_lb_config": inside,
	}},
	"envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"choice_count":        uint32Is(2, harmless, ignored("always the better of two")),
		"active_request_bias": ignored("the bias is not used: open connections are compared as they are"),
		"slow_start_config":   slowStart,
		"locality_lb_config":  inside,
		"enable_full_scan":    boolIs(false, harmless, ignored("always the better of two")),
		"selection_method":    ignored("always the better of two"),
	}},
	"envoy.extensions.load_balancing_policies.maglev.v3.Maglev": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"table_size":                   enforced,
		"consistent_hashing_lb_config": hashOptions,
		"locality_weighted_lb_config":  enforced,
	}},
	"envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash": {
		other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
			"hash_function":                ignored("Maglev's own is used"),
			"minimum_ring_size":            ignored("Maglev's table is used"),
			"maximum_ring_size":            ignored("Maglev's table is used"),
			"use_hostname_for_hashing":     hashOptions,
			"hash_balance_factor":          hashOptions,
			"consistent_hashing_lb_config": hashOptions,
			"locality_weighted_lb_config":  enforced,
		}},
	"envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"endpoint_picking_policy": inside,
	}},
	"envoy.config.cluster.v3.LoadBalancingPolicy": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"policies": inside,
	}},
	"envoy.config.cluster.v3.LoadBalancingPolicy.Policy": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"typed_extension_config": inside,
	}},
	"envoy.config.core.v3.TypedExtensionConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"name":         harmless,
		"typed_config": code, // a list of choices: the first that is supported is used
	}},
	"envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided": {other: mesh.UnsupportedAction},
	"envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig": {other: mesh.UnsupportedAction, fields: map[protoreflect.Name]rule{
		"zone_aware_lb_config":        zoneAware,
		"locality_weighted_lb_config": enforced,
	}},
}

// maxRequests is a limit of the requests of one connection.
var maxRequests = byCase(func(r *report, v protoreflect.Value) rule {
	switch n := wrapped(v); {
	case r.typ != TypeCluster:
		return ignored("connections of clients are not limited in requests")
	case n == 0:
		return benign("no limit")
	case n > math.MaxUint16:
		return benign("taken as 65535")
	}
	return enforced
}, "of a cluster, up to 65535", enforced, "0", benign("no limit"), "greater", benign("taken as 65535"),
	"of a listener", ignored("connections of clients are not limited in requests"))

// maxConnections is in code: it depends on what it is a threshold of.
var maxConnections = inCode("of the first thresholds of the default priority: enforced, for each pod; 4294967295: default, " + msgNoLimit +
	". A cluster that does not say it: 1024, as in Envoy. TCP: what is too much is refused at connect (Envoy accepts it, and closes). " +
	"HTTP: a connection of a client has connections to endpoints of its own, which are not shared as Envoy's are; a request that needs one too many is " +
	"answered 503 (overflow) at once, where Envoy lets it wait (max_pending_requests) and allows each endpoint one in any case. " +
	"Of the high priority: not-enforced, " + msgPriority + ". Of ORIGINAL_DST: not-enforced, " + msgPassed + ". Of per_host_thresholds: not-enforced, " + msgPerHost)

// unlimited is a threshold: its greatest value asks for nothing.
var unlimited = uint32Is(math.MaxUint32, benign(msgNoLimit), ignored("not enforced: of circuit breakers only max_connections is"))

// lbPolicy is the verdict of Cluster.lb_policy.
var lbPolicyRules = map[protoreflect.EnumNumber]rule{
	0: enforced,                          // ROUND_ROBIN
	1: enforced,                          // LEAST_REQUEST
	2: ignored("approximated by Maglev"), // RING_HASH
	3: enforced,                          // RANDOM
	5: enforced,                          // MAGLEV
	6: enforced,                          // CLUSTER_PROVIDED
	7: benign("load_balancing_policy says it"),
}

func lbPolicy(_ *report, v protoreflect.Value) rule {
	if rl, ok := lbPolicyRules[v.Enum()]; ok {
		return rl
	}
	return rule{class: mesh.Invalid, msg: "is not a load balancing policy"}
}

// panicThreshold: none, or 0, is what happens anyway.
func panicThreshold(_ *report, v protoreflect.Value) rule {
	percent := v.Message()
	if percent.Get(percent.Descriptor().Fields().ByName("value")).Float() > 0 {
		return ignored(msgPanic)
	}
	return benign(msgNoPanic)
}

// upstreamSocket: what cannot be spoken is refused, never sent in clear.
func upstreamSocket(_ *report, v protoreflect.Value) rule {
	if isRawBuffer(v.Message()) {
		return harmless
	}
	return ignored(msgOrigination)
}

// connectTimeout: what is longer than the kernel tries changes nothing.
func connectTimeout(_ *report, v protoreflect.Value) rule {
	m := v.Message()
	if m.Get(m.Descriptor().Fields().ByName("seconds")).Int() >= synSeconds {
		return benign(msgSYN)
	}
	return ignored(msgConnect)
}

// synSeconds is how long a kernel goes on to send SYNs (net.ipv4.tcp_syn_retries is 6).
const synSeconds = 127

const (
	msgSYN     = "the kernel gives up before"
	msgConnect = "not enforced: a client waits as long as its own timer and its kernel's say"

	msgNoPanic     = "unhealthy endpoints are never chosen"
	msgOrigination = "TLS is not originated here: connections are refused rather than sent in clear"
)
