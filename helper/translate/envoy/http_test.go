// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// oneRoute is a configuration of one virtual host with one route.
func oneRoute(route string) string {
	return "{name: r, virtual_hosts: [{name: v, domains: ['*'], routes: [" + route + "]}]}"
}

func TestRoutesInvalid(t *testing.T) {
	const at = "virtual_hosts[0].routes[0]."
	match := func(m string) string { return oneRoute("{match: {" + m + "}, route: {cluster: c}}") }
	act := func(a string) string { return oneRoute("{match: {prefix: /}, " + a + "}") }
	header := func(h string) string { return match("prefix: /, headers: [{name: h, " + h + "}]") }
	fault := func(f string) string {
		return act("route: {cluster: c}, typed_per_filter_config: {f: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, " + f + "}}")
	}
	var many strings.Builder
	for i := range MaxWeightedClusters + 1 {
		fmt.Fprintf(&many, "{name: c%d, weight: 1},", i)
	}
	tests := map[string]struct{ text, field, msg string }{
		"no name":            {"{virtual_hosts: []}", "name", "is empty"},
		"virtual host name":  {"{name: r, virtual_hosts: [{domains: [a]}]}", "virtual_hosts[0].name", "is empty"},
		"no domain":          {"{name: r, virtual_hosts: [{name: v}]}", "virtual_hosts[0].domains", "is empty"},
		"empty domain":       {"{name: r, virtual_hosts: [{name: v, domains: ['']}]}", "virtual_hosts[0].domains[0]", "is empty"},
		"domain twice":       {"{name: r, virtual_hosts: [{name: v, domains: [a]}, {name: w, domains: [b, A]}]}", "virtual_hosts[1].domains[1]", "virtual_hosts[0].domains[0]"},
		"star twice":         {"{name: r, virtual_hosts: [{name: v, domains: ['*']}, {name: w, domains: ['*']}]}", "virtual_hosts[1].domains[0]", "given twice"},
		"no match":           {oneRoute("{route: {cluster: c}}"), at + "match", "is missing"},
		"no path":            {match("case_sensitive: true"), at + "match", "has no path"},
		"segment slash":      {match("path_separated_prefix: /a/"), at + "match.path_separated_prefix", "use prefix"},
		"segment query":      {match("path_separated_prefix: '/a?b'"), at + "match.path_separated_prefix", "use prefix"},
		"regex":              {match("safe_regex: {regex: '('}"), at + "match.safe_regex.regex", "missing closing )"},
		"regex look-ahead":   {match("safe_regex: {regex: '(?=a)'}"), at + "match.safe_regex.regex", "(?="},
		"regex empty":        {match("safe_regex: {regex: ''}"), at + "match.safe_regex.regex", "is empty"},
		"header name":        {match("prefix: /, headers: [{present_match: true}]"), at + "match.headers[0].name", "is empty"},
		"header regex":       {header("string_match: {safe_regex: {regex: '['}}"), at + "match.headers[0].string_match.safe_regex.regex", "missing closing ]"},
		"header no pattern":  {header("string_match: {}"), at + "match.headers[0].string_match", "has no pattern"},
		"header prefix":      {header("string_match: {prefix: ''}"), at + "match.headers[0].string_match.prefix", "is empty"},
		"old header suffix":  {header("suffix_match: ''"), at + "match.headers[0].suffix_match", "is empty"},
		"query name":         {match("prefix: /, query_parameters: [{present_match: true}]"), at + "match.query_parameters[0].name", "is empty"},
		"fraction":           {match("prefix: /, runtime_fraction: {default_value: {numerator: 1, denominator: 9}}"), at + "match.runtime_fraction.default_value.denominator", "not a denominator"},
		"no action":          {oneRoute("{match: {prefix: /}}"), "virtual_hosts[0].routes[0]", "has no action"},
		"no cluster":         {act("route: {timeout: 0s}"), at + "route", "has no cluster"},
		"empty cluster":      {act("route: {cluster: ''}"), at + "route.cluster", "is empty"},
		"no weights":         {act("route: {weighted_clusters: {}}"), at + "route.weighted_clusters.clusters", "is empty"},
		"weight missing":     {act("route: {weighted_clusters: {clusters: [{name: c}, {name: d, weight: 1}]}}"), at + "route.weighted_clusters.clusters[0].weight", "is missing"},
		"all zero":           {act("route: {weighted_clusters: {clusters: [{name: c, weight: 0}]}}"), at + "route.weighted_clusters.clusters", "all weights are 0"},
		"sum":                {act("route: {weighted_clusters: {clusters: [{name: c, weight: 4294967295}, {name: d, weight: 1}]}}"), at + "route.weighted_clusters.clusters", "sum of weights"},
		"total":              {act("route: {weighted_clusters: {total_weight: 100, clusters: [{name: c, weight: 99}]}}"), at + "route.weighted_clusters.total_weight", "not the sum"},
		"too many":           {act("route: {weighted_clusters: {clusters: [" + many.String() + "]}}"), at + "route.weighted_clusters.clusters", "can have 32"},
		"redirect port":      {act("redirect: {port_redirect: 65536}"), at + "redirect.port_redirect", "not a port"},
		"redirect code":      {act("redirect: {response_code: 9}"), at + "redirect.response_code", "not a redirect"},
		"redirect line":      {act(`redirect: {path_redirect: "/a\r\nb"}`), at + "redirect.path_redirect", "character"},
		"direct status":      {act("direct_response: {status: 199}"), at + "direct_response.status", "not a status"},
		"direct body":        {act("direct_response: {status: 200, body: {inline_string: " + strings.Repeat("x", 4097) + "}}"), at + "direct_response.body", "4097 bytes"},
		"abort status":       {fault("abort: {http_status: 100, percentage: {numerator: 1}}"), at + `typed_per_filter_config["f"].abort.http_status`, "not a status"},
		"abort without kind": {fault("abort: {percentage: {numerator: 1}}"), at + `typed_per_filter_config["f"].abort`, "has no status"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, tc.text), "s")
			checkVerdicts(t, rc.Verdicts, []want{{tc.field, mesh.Invalid, tc.msg}})
			if rc.HTTP != nil || len(rc.References) > 0 {
				t.Error("an invalid configuration has routes")
			}
		})
	}
}

// TestRoutesRefused: what narrows a route, a virtual host or a configuration and
// cannot be tested is answered 503; nothing else is, and nothing is widened.
func TestRoutesRefused(t *testing.T) {
	match := func(m string) string { return oneRoute("{match: {" + m + "}, route: {cluster: c}}") }
	tests := map[string]struct{ text, field, want string }{
		"header :path":    {match("prefix: /a, headers: [{name: ':path', present_match: true}, {name: b, present_match: true}]"), "match.headers[0].name", `/a header b`},
		"connect":         {match("connect_matcher: {}"), "match.connect_matcher", " header :method"},
		"grpc":            {match("prefix: /, grpc: {}"), "match.grpc", "/ header content-type"},
		"tls":             {match("prefix: /, tls_context: {presented: true}"), "match.tls_context", "/"},
		"filter state":    {match("prefix: /, filter_state: [{key: a, string_match: {exact: b}}]"), "match.filter_state", "/"},
		"cookies":         {match("prefix: /, cookies: [{name: a, string_match: {exact: b}}]"), "match.cookies", "/"},
		"absent query":    {match("prefix: /, query_parameters: [{name: a, present_match: false}]"), "match.query_parameters[0].present_match", "/"},
		"present + empty": {match("prefix: /, headers: [{name: a, present_match: true, treat_missing_header_as_empty: true}]"), "match.headers[0].treat_missing_header_as_empty", "/"},
		"metadata match":  {oneRoute("{match: {prefix: /}, route: {cluster: c, metadata_match: {filter_metadata: {envoy.lb: {a: b}}}}}"), "route.metadata_match", "/"},
		"weighted header": {oneRoute("{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 1}, {cluster_header: h, weight: 1}]}}}"), "route.weighted_clusters.clusters[1].cluster_header", "/"},
		"filter action":   {oneRoute("{match: {prefix: /}, filter_action: {}}"), "filter_action", "/"},
		"no forwarding":   {oneRoute("{match: {prefix: /}, non_forwarding_action: {}}"), "non_forwarding_action", "/"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, tc.text), "s")
			checkVerdicts(t, rc.Verdicts, []want{{"virtual_hosts[0].routes[0]." + tc.field, mesh.UnsupportedCondition, ""}})
			r := rc.HTTP.VirtualHosts[0].Routes[0]
			got := r.Match.Path.Value
			for _, h := range r.Match.Headers {
				got += " header " + h.Name
			}
			if !r.Unsupported || got != tc.want || len(r.Clusters) > 0 || len(rc.References) > 0 {
				t.Errorf("route %+v: %q, want %q; references %v", r, got, tc.want, rc.References)
			}
		})
	}
	all := map[string]struct{ text, field string }{
		"require_tls": {"{name: r, virtual_hosts: [{name: v, domains: [a], require_tls: ALL, routes: [{match: {prefix: /x}, route: {cluster: c}}]}, {name: w, domains: [b], routes: [{match: {prefix: /}, route: {cluster: d}}]}]}", "virtual_hosts[0].require_tls"},
		"vhds":        {"{name: r, vhds: {config_source: {ads: {}}}, virtual_hosts: [{name: v, domains: [a], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}", "vhds"},
		"parameters":  {"{name: r, ignore_path_parameters_in_path_matching: true, virtual_hosts: [{name: v, domains: [a], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}", "ignore_path_parameters_in_path_matching"},
	}
	for name, tc := range all {
		t.Run(name, func(t *testing.T) {
			rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, tc.text), "s")
			checkVerdicts(t, rc.Verdicts, []want{{tc.field, mesh.UnsupportedCondition, "503"}})
			vh := rc.HTTP.VirtualHosts[0]
			if len(vh.Routes) != 1 || !vh.Routes[0].Unsupported || vh.Routes[0].Match.Path != (mesh.PathMatch{}) {
				t.Errorf("routes %+v", vh.Routes)
			}
			switch {
			case name == "require_tls":
				if len(rc.HTTP.VirtualHosts) != 2 || !reflect.DeepEqual(rc.References, []RouteReference{{Cluster: "d", Field: "virtual_hosts[1].routes[0].route.cluster", VirtualHost: "w"}}) {
					t.Errorf("the other virtual host: %+v", rc.References)
				}
			case len(rc.HTTP.VirtualHosts) != 1 || vh.Domains[0] != "*" || len(rc.References) > 0:
				t.Errorf("virtual hosts %+v", rc.HTTP.VirtualHosts)
			}
		})
	}
}

// TestRetryPolicy: the control plane's default is no complaint.
func TestRetryPolicy(t *testing.T) {
	for policy, class := range map[string]mesh.Class{
		"{retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', num_retries: 2, host_selection_retry_max_attempts: 5, retriable_status_codes: [503]}": mesh.Default,
		"{retry_on: connect-failure}":                                       mesh.Default,
		"{retry_on: 5xx, num_retries: 0}":                                   mesh.Default,
		"{retry_on: 5xx}":                                                   mesh.UnsupportedAction,
		"{retry_on: connect-failure, num_retries: 3}":                       mesh.UnsupportedAction,
		"{retry_on: connect-failure, per_try_timeout: 1s}":                  mesh.UnsupportedAction,
		"{retry_on: retriable-status-codes, retriable_status_codes: [500]}": mesh.UnsupportedAction,
	} {
		rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, oneRoute("{match: {prefix: /}, route: {cluster: c, retry_policy: "+policy+"}}")), "s")
		i := slices.IndexFunc(rc.Verdicts, func(v mesh.Verdict) bool { return strings.HasSuffix(v.Field, "retry_policy") })
		if i < 0 || rc.Verdicts[i].Class != class {
			t.Errorf("%s: %s", policy, list(rc.Verdicts))
		}
	}
}

// httpChain is a filter chain with a connection manager.
func httpChain(match, routes string) string {
	return "{filter_chain_match: {" + match + "}, filters: [{name: h, typed_config: {'@type': type.googleapis.com/" + typeHCM +
		", stat_prefix: x, " + routes + "}}]}"
}

const (
	sniffHTTP   = "transport_protocol: raw_buffer, application_protocols: [http/1.1, h2c]"
	inspector   = "listener_filters: [{name: i, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}]\n"
	rdsOf80     = "rds: {route_config_name: '80', config_source: {ads: {}}}"
	defaultDown = "default_filter_chain: {name: down, filters: [{name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: down}}]}\n"
)

// TestHTTPChains: which frontends an HTTP chain gets, and where the connections go
// that are not HTTP/1.
func TestHTTPChains(t *testing.T) {
	const wild = "address: {socket_address: {address: 0.0.0.0, port_value: 80}}\n"
	rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, "{name: '80', virtual_hosts: [{name: v, domains: [a], routes: [{match: {prefix: /x}, route: {cluster: x}}, {match: {prefix: /}, route: {cluster: main}}]}]}"), "s")
	two := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, "{name: '80', virtual_hosts: [{name: v, domains: [a], routes: [{match: {prefix: /}, route: {cluster: main}}]}, {name: w, domains: [b]}]}"), "s")
	tests := map[string]struct {
		text string
		rc   *RouteConfig
		want string // services: name frontends > clusters for what is not HTTP
		why  want
	}{
		"sniffed, with a default chain":        {wild + inspector + "filter_chains: [" + httpChain(sniffHTTP, rdsOf80) + "]\n" + defaultDown, rc, "l 0.0.0.0/0 http > down", want{}},
		"without conditions":                   {wild + "filter_chains: [" + httpChain("", rdsOf80) + "]\n", rc, "l 0.0.0.0/0 http > main", want{}},
		"two virtual hosts, none for all":      {wild + "filter_chains: [" + httpChain("", rdsOf80) + "]\n", two, "l 0.0.0.0/0 http >", want{}},
		"a default chain that nothing reaches": {wild + "filter_chains: [" + httpChain("", rdsOf80) + "]\n" + defaultDown, rc, "l 0.0.0.0/0 http > main", want{"default_filter_chain", mesh.Default, "never reached"}},
		"as default chain":                     {wild + "default_filter_chain: " + httpChain("", rdsOf80), rc, "l 0.0.0.0/0 http > main", want{}},
		"a longer prefix": {wild + inspector + "filter_chains: [" + httpChain("prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}], "+sniffHTTP, rdsOf80) + "]\n" + defaultDown, rc,
			"l/0 10.0.0.0/8 http > down | l/down 0.0.0.0/0 > down", want{}},
		"no inspector": {wild + "filter_chains: [" + httpChain(sniffHTTP, rdsOf80) + "]\n" + defaultDown, rc, "",
			want{"filter_chains[0].filter_chain_match.application_protocols", mesh.UnsupportedCondition, ""}},
		"h2 only": {wild + inspector + "filter_chains: [" + httpChain("application_protocols: [h2]", rdsOf80) + "]\n" + defaultDown, rc, "",
			want{"default_filter_chain", mesh.UnsupportedCondition, "cannot be told apart"}},
		"two HTTP chains": {wild + inspector + "filter_chains: [" + httpChain("application_protocols: [http/1.1]", rdsOf80) + "]\ndefault_filter_chain: " + httpChain("", rdsOf80), rc, "",
			want{"default_filter_chain", mesh.UnsupportedCondition, "two HTTP chains"}},
		"TLS beside it": {wild + inspector + "filter_chains: [" + httpChain(sniffHTTP, rdsOf80) + ", {filter_chain_match: {transport_protocol: tls}, filters: [" + tcp("cluster: t") + "]}]\n" + defaultDown, rc, "",
			want{"default_filter_chain", mesh.UnsupportedCondition, "cannot be told apart"}},
		"HTTP/2 codec": {wild + "filter_chains: [" + httpChain("", "codec_type: HTTP2, "+rdsOf80) + "]\n", rc, "",
			want{"filter_chains[0].filters[0].typed_config.codec_type", mesh.UnsupportedCondition, "only HTTP/1"}},
		"scoped routes": {wild + "filter_chains: [" + httpChain("", "scoped_routes: {name: s}") + "]\n", rc, "",
			want{"filter_chains[0].filters[0].typed_config.scoped_routes", mesh.UnsupportedCondition, ""}},
		"inbound": {wild + "traffic_direction: INBOUND\nfilter_chains: [" + httpChain("", rdsOf80) + "]\n", rc, "",
			want{"traffic_direction", mesh.UnsupportedCondition, "inbound"}},
		"redirected": {wild + "use_original_dst: true\nfilter_chains: [" + httpChain("", rdsOf80) + "]\n", rc, "",
			want{"use_original_dst", mesh.UnsupportedCondition, ""}},
		"no routes": {wild + "filter_chains: [" + httpChain("", "codec_type: AUTO") + "]\n", rc, "",
			want{"filter_chains[0].filters[0].typed_config.rds", mesh.Invalid, "is missing"}},
		"no routes' name": {wild + "filter_chains: [" + httpChain("", "rds: {config_source: {ads: {}}}") + "]\n", rc, "",
			want{"filter_chains[0].filters[0].typed_config.rds.route_config_name", mesh.Invalid, "is empty"}},
		"not last": {wild + "filter_chains: [{filters: [{name: h, typed_config: {'@type': type.googleapis.com/" + typeHCM + ", stat_prefix: x, " + rdsOf80 + "}}, " + tcp("cluster: t") + "]}]\n", rc, "",
			want{"filter_chains[0].filters[0]", mesh.Invalid, "must be the last"}},
		"bad inline routes": {wild + "filter_chains: [" + httpChain("", "route_config: {virtual_hosts: [{name: v, domains: [a, a]}]}") + "]\n", rc, "",
			want{"filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].domains[1]", mesh.Invalid, "given twice"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l := message(t, &listenerv3.Listener{}, "name: l\n"+tc.text)
			got := TranslateListener(l, "s")
			wants := []want{}
			if tc.why.field != "" {
				wants = append(wants, tc.why)
			}
			checkVerdicts(t, got.Verdicts, wants)
			var services []string
			for _, h := range got.HTTP {
				svc := h.Join(tc.rc)
				text := svc.Name
				for _, f := range svc.Frontends {
					text += " " + f.Prefix.String()
				}
				if h.RouteConfig != "" {
					text += " http"
				}
				text += " >"
				for _, c := range svc.Clusters {
					text += " " + c.Cluster
				}
				services = append(services, text)
			}
			if text := strings.Join(services, " | "); text != tc.want {
				t.Errorf("got  %s\nwant %s\n%s", text, tc.want, list(got.Verdicts))
			}
			if len(got.Services) > 0 {
				t.Errorf("served as L4: %v", got.Services)
			}
			if names := RouteConfigNames(l); strings.Contains(tc.text, rdsOf80) != slices.Equal(names, []string{"80"}) {
				t.Errorf("names %v", names)
			}
		})
	}
}

// TestFaults: an abort needs the filter; the most specific configuration counts.
func TestFaults(t *testing.T) {
	const fault = "'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	abort := func(status int) string {
		return fmt.Sprintf("{%s, abort: {http_status: %d, percentage: {numerator: 100}}}", fault, status)
	}
	off := "{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}"
	wrapped := "{'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: " + abort(505) + "}"
	per := func(c string) string {
		if c == "" {
			return ""
		}
		return "typed_per_filter_config: {f: " + c + "}, "
	}
	tests := map[string]struct {
		filters           string
		config, vh, route string
		want              int
	}{
		"no filter":            {"", "", "", abort(501), 0},
		"another name":         {"{name: g, typed_config: {" + fault + "}}", "", "", abort(501), 0},
		"route":                {"{name: f, typed_config: {" + fault + "}}", abort(503), abort(502), abort(501), 501},
		"virtual host":         {"{name: f, typed_config: {" + fault + "}}", abort(503), abort(502), "", 502},
		"configuration":        {"{name: f, typed_config: {" + fault + "}}", abort(503), "", "", 503},
		"filter":               {"{name: f, typed_config: " + abort(504) + "}", "", "", "", 504},
		"filter is off":        {"{name: f, disabled: true, typed_config: " + abort(504) + "}", "", "", "", 0},
		"filter off, route on": {"{name: f, disabled: true, typed_config: " + abort(504) + "}", "", "", abort(501), 501},
		"route off":            {"{name: f, typed_config: " + abort(504) + "}", "", "", off, 0},
		"route without fault":  {"{name: f, typed_config: " + abort(504) + "}", "", "", "{" + fault + "}", 0},
		"wrapped":              {"{name: f, typed_config: {" + fault + "}}", "", "", wrapped, 505},
		"by header":            {"{name: f, typed_config: {" + fault + "}}", "", "", "{" + fault + ", headers: [{name: a, present_match: true}], abort: {http_status: 500, percentage: {numerator: 100}}}", 0},
		"header abort":         {"{name: f, typed_config: {" + fault + "}}", "", "", "{" + fault + ", abort: {header_abort: {}, percentage: {numerator: 100}}}", 0},
		"0 %":                  {"{name: f, typed_config: {" + fault + "}}", "", "", "{" + fault + ", abort: {http_status: 500}}", 0},
		"two filters":          {"{name: f, typed_config: {" + fault + "}}, {name: g, typed_config: " + abort(504) + "}", "", "", "", 0},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, "{name: '80', "+per(tc.config)+"virtual_hosts: [{name: v, domains: [a], "+per(tc.vh)+
				"routes: [{match: {prefix: /}, "+per(tc.route)+"route: {cluster: c}}]}]}"), "s")
			l := TranslateListener(message(t, &listenerv3.Listener{}, "name: l\n"+vip+"filter_chains: ["+httpChain("", "http_filters: ["+tc.filters+"], "+rdsOf80)+"]"), "s")
			if len(l.HTTP) != 1 {
				t.Fatal(list(l.Verdicts))
			}
			before := fmt.Sprintf("%+v", *rc.HTTP.VirtualHosts[0].Routes[0])
			got := 0
			if a := l.HTTP[0].Join(rc).HTTP.VirtualHosts[0].Routes[0].Abort; a != nil {
				got = int(a.Status)
			}
			if got != tc.want {
				t.Errorf("abort %d, want %d", got, tc.want)
			}
			if after := fmt.Sprintf("%+v", *rc.HTTP.VirtualHosts[0].Routes[0]); before != after {
				t.Error("joining has changed the routes")
			}
		})
	}
}

// TestStripPort: the listener may say that ports take no part.
func TestStripPort(t *testing.T) {
	rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, oneRoute("{match: {prefix: /}, route: {cluster: c}}")), "s")
	for strip, want := range map[string]bool{"": false, "strip_any_host_port: true, ": true} {
		l := TranslateListener(message(t, &listenerv3.Listener{}, "name: l\n"+vip+"filter_chains: ["+httpChain("", strip+rdsOf80)+"]"), "s")
		if got := l.HTTP[0].Join(rc).HTTP.IgnorePort; got != want {
			t.Errorf("%q: %v", strip, got)
		}
	}
	if rc.HTTP.IgnorePort {
		t.Error("joining has changed the routes")
	}
}

// goldenMessages are the resources of the golden set.
func goldenMessages(t testing.TB) []proto.Message {
	t.Helper()
	var out []proto.Message
	cases := readGolden(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		for _, raw := range cases[name].Resources {
			packed := &anypb.Any{}
			if err := protojson.Unmarshal(raw, packed); err != nil {
				t.Fatal(err)
			}
			m, err := packed.UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
	}
	return out
}

// TestMutatedGolden changes the golden resources here and there, extensions
// included: whatever comes out keeps the model's promises, and every populated
// field has a verdict.
func TestMutatedGolden(t *testing.T) {
	messages := goldenMessages(t)
	valid, refused := 0, 0
	for seed := range uint64(4000) {
		g := newGenerator(seed)
		m := proto.Clone(messages[g.r.IntN(len(messages))])
		for range 1 + g.r.IntN(4) {
			g.mutate(m.ProtoReflect(), 0)
		}
		verdicts := translate(t, m)
		if len(Invalid(verdicts)) == 0 {
			valid++
		}
		if slices.ContainsFunc(verdicts, func(v mesh.Verdict) bool { return v.Class == mesh.UnsupportedCondition }) {
			refused++
		}
		fields := map[string]bool{}
		for _, v := range verdicts {
			fields[v.Field] = true
		}
		var missing []string
		uncovered(m.ProtoReflect(), "", fields, &missing)
		if len(missing) > 0 && len(verdicts) <= maxVerdicts {
			t.Fatalf("seed %d: no verdict about %s in:\n%s", seed, strings.Join(missing, ", "), list(verdicts))
		}
	}
	if valid < 1000 || refused < 300 {
		t.Fatalf("%d valid, %d with an unsupported condition: the test shows little", valid, refused)
	}
}

// mutate changes one place of a message.
func (g *generator) mutate(m protoreflect.Message, depth int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil || g.r.IntN(10) == 0 {
			g.fill(m, 6)
			return
		}
		g.mutate(inner.ProtoReflect(), depth+1)
		_ = a.MarshalFrom(inner)
		return
	}
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	var set []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, fd)
		return true
	})
	slices.SortFunc(set, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	if len(set) > 0 && g.r.IntN(5) > 0 { // go deeper
		fd := set[g.r.IntN(len(set))]
		switch {
		case fd.IsList() && fd.Message() != nil && m.Get(fd).List().Len() > 0:
			l := m.Get(fd).List()
			g.mutate(l.Get(g.r.IntN(l.Len())).Message(), depth+1)
			return
		case fd.IsMap() && fd.MapValue().Message() != nil:
			keys := make([]string, 0, 4)
			m.Get(fd).Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool { keys = append(keys, k.String()); return true })
			slices.Sort(keys)
			v := m.Mutable(fd).Map().Get(protoreflect.ValueOfString(keys[g.r.IntN(len(keys))]).MapKey())
			g.mutate(v.Message(), depth+1)
			return
		case !fd.IsList() && !fd.IsMap() && fd.Message() != nil:
			g.mutate(m.Mutable(fd).Message(), depth+1)
			return
		}
	}
	fd := fields.Get(g.r.IntN(fields.Len()))
	switch {
	case m.Has(fd) && g.r.IntN(2) == 0:
		m.Clear(fd)
	case fd.IsMap():
	case fd.IsList() && fd.Message() == nil:
		m.Mutable(fd).List().Append(g.scalar(fd))
	case fd.IsList():
		l := m.Mutable(fd).List()
		v := l.NewElement()
		if l.Len() > 0 && g.r.IntN(2) == 0 {
			v = protoreflect.ValueOfMessage(proto.Clone(l.Get(0).Message().Interface()).ProtoReflect())
		} else {
			g.fill(v.Message(), 7)
		}
		l.Append(v)
	case fd.Message() != nil:
		g.fill(m.Mutable(fd).Message(), 7)
	default:
		m.Set(fd, g.scalar(fd))
	}
}
