// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"strings"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"kmesh/helper/mesh"
)

func TestAssignment(t *testing.T) {
	addr := func(s string, port int) string {
		return fmt.Sprintf("endpoint: {address: {socket_address: {address: '%s', port_value: %d}}}", s, port)
	}
	asks := func(field string) string {
		return ", metadata: {filter_metadata: {" + socketMatch + ": {" + field + "}}}"
	}
	tests := map[string]struct {
		yaml     string
		want     string // localities
		verdicts []want
	}{
		"localities": {
			yaml: `
endpoints:
- {locality: {region: r, zone: z, sub_zone: s}, priority: 1, load_balancing_weight: 7, lb_endpoints: [{` + addr("10.0.0.1", 80) + `, load_balancing_weight: 3}]}
- {lb_endpoints: [{` + addr("fd00::1", 81) + `}, {` + addr("::ffff:10.0.0.2", 82) + `}]}`,
			want: "r/z/s p1 w7 [10.0.0.1:80*3 HEALTHY] // p0 w0 [[fd00::1]:81*1 HEALTHY 10.0.0.2:82*1 HEALTHY]",
			verdicts: []want{
				{"cluster_name", mesh.Enforced, ""},
				{"endpoints[].priority", mesh.Enforced, ""}, {"endpoints[].locality", mesh.Enforced, ""},
				{"endpoints[].lb_endpoints[].load_balancing_weight", mesh.Enforced, ""},
			},
		},
		"health": {
			yaml: "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + ", health_status: HEALTHY}, {" + addr("1.1.1.2", 1) + ", health_status: DEGRADED}, {" + addr("1.1.1.3", 1) + ", health_status: UNHEALTHY}, {" + addr("1.1.1.4", 1) + ", health_status: TIMEOUT}, {" + addr("1.1.1.5", 1) + ", health_status: DRAINING}]}]",
			want: "// p0 w0 [1.1.1.1:1*1 HEALTHY 1.1.1.2:1*1 DEGRADED 1.1.1.3:1*1 UNHEALTHY 1.1.1.4:1*1 UNHEALTHY 1.1.1.5:1*1 DRAINING]",
		},
		"empty": {yaml: "", want: ""},
		"asks for automatic mTLS": {
			yaml: "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + "}, {" + addr("1.1.1.2", 1) + asks("tlsMode: istio") + "}, {" + addr("1.1.1.3", 1) + asks("tlsMode: istio") + "}]}]",
			want: "// p0 w0 [1.1.1.1:1*1 HEALTHY 1.1.1.2:1*1 HEALTHY 1.1.1.3:1*1 HEALTHY]",
			verdicts: []want{
				{"endpoints[0].lb_endpoints[1].metadata", mesh.UnsupportedAction, "automatic mTLS is NOT ENFORCED"},
				{"endpoints[].lb_endpoints[].metadata", mesh.Default, ""},
			},
		},
		"asks for a tunnel": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + asks("tunnel: http") + "}]}]",
			want:     "// p0 w0 [1.1.1.1:1*1 HEALTHY]",
			verdicts: []want{{"endpoints[0].lb_endpoints[0].metadata", mesh.UnsupportedAction, "HBONE"}},
		},
		"asks for neither": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + asks("tlsMode: disabled") + "}]}]",
			want:     "// p0 w0 [1.1.1.1:1*1 HEALTHY]",
			verdicts: []want{{"endpoints[].lb_endpoints[].metadata", mesh.Default, ""}},
		},
		"skipped": {
			yaml: "endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /x}}}}, {endpoint: {address: {envoy_internal_address: {server_listener_name: x}}}}, {" + addr("example.org", 1) + "}, {" + addr("1.1.1.1", 1) + "}]}]",
			want: "// p0 w0 [1.1.1.1:1*1 HEALTHY]",
			verdicts: []want{
				{"endpoints[0].lb_endpoints[0].endpoint.address", mesh.UnsupportedAction, "unix socket"},
				{"endpoints[0].lb_endpoints[1].endpoint.address", mesh.UnsupportedAction, "internal"},
				{"endpoints[0].lb_endpoints[2].endpoint.address.socket_address.address", mesh.UnsupportedAction, "not an IP"},
			},
		},
		"duplicate": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + "}]}, {priority: 1, lb_endpoints: [{" + addr("::ffff:1.1.1.1", 1) + "}]}]",
			want:     "// p0 w0 [1.1.1.1:1*1 HEALTHY] // p1 w0 []",
			verdicts: []want{{"endpoints[].lb_endpoints[]", mesh.Default, "first one counts"}},
		},
		"named": {
			yaml: "named_endpoints: {a: {address: {socket_address: {address: 1.1.1.1, port_value: 5}}}}\nendpoints: [{lb_endpoints: [{endpoint_name: a}]}]",
			want: "// p0 w0 [1.1.1.1:5*1 HEALTHY]",
		},
		"named missing": {
			yaml:     "endpoints: [{lb_endpoints: [{endpoint_name: a}]}]",
			verdicts: []want{{"endpoints[0].lb_endpoints[0].endpoint_name", mesh.Invalid, "named_endpoints"}},
		},
		"port 0": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + "},{" + addr("1.1.1.1", 0) + "}]}]",
			verdicts: []want{{"endpoints[0].lb_endpoints[1].endpoint.address.socket_address.port_value", mesh.Invalid, "0 is not a port"}},
		},
		"weight 0": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + ", load_balancing_weight: 0}]}]",
			verdicts: []want{{"endpoints[0].lb_endpoints[0].load_balancing_weight", mesh.Invalid, "not a weight"}},
		},
		"weight overflow": {
			yaml:     "endpoints: [{lb_endpoints: [{" + addr("1.1.1.1", 1) + ", load_balancing_weight: 4294967295}, {" + addr("1.1.1.2", 1) + "}]}]",
			verdicts: []want{{"endpoints[0].lb_endpoints[1].load_balancing_weight", mesh.Invalid, "sum"}},
		},
		"locality weight overflow": {
			yaml:     "endpoints: [{load_balancing_weight: 4294967295}, {load_balancing_weight: 1}]",
			verdicts: []want{{"endpoints[1].load_balancing_weight", mesh.Invalid, "sum"}},
		},
		"locality weights of two priorities": {
			yaml: "endpoints: [{load_balancing_weight: 4294967295}, {load_balancing_weight: 1, priority: 1}]",
			want: "// p0 w4294967295 [] // p1 w1 []",
		},
		"policy": {
			yaml: "policy: {drop_overloads: [{category: x, drop_percentage: {numerator: 1}}], endpoint_stale_after: 5s, overprovisioning_factor: 100}",
			verdicts: []want{
				{"policy.drop_overloads", mesh.UnsupportedAction, "not enforced"},
				{"policy.endpoint_stale_after", mesh.UnsupportedAction, "stale"},
				{"policy.overprovisioning_factor", mesh.UnsupportedAction, ""},
			},
		},
		"options": {
			yaml: "endpoints: [{proximity: 1, metadata: {}, lb_endpoints: [{metadata: {}, endpoint: {hostname: h, address: {socket_address: {address: 1.1.1.1, port_value: 1}}, additional_addresses: [{address: {socket_address: {address: 1.1.1.2, port_value: 1}}}], health_check_config: {port_value: 5}}}]}]",
			want: "// p0 w0 [1.1.1.1:1*1 HEALTHY]",
			verdicts: []want{
				{"endpoints[0].proximity", mesh.UnsupportedAction, ""},
				{"endpoints[].metadata", mesh.Default, ""},
				{"endpoints[0].lb_endpoints[0].endpoint.additional_addresses", mesh.UnsupportedAction, ""},
				{"endpoints[0].lb_endpoints[0].endpoint.health_check_config", mesh.UnsupportedAction, ""},
			},
		},
		"leds": {
			yaml:     "endpoints: [{leds_cluster_locality_config: {leds_collection_name: x}}]",
			want:     "// p0 w0 []",
			verdicts: []want{{"endpoints[0].leds_cluster_locality_config", mesh.UnsupportedAction, "LEDS"}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := TranslateAssignment(message(t, &endpointv3.ClusterLoadAssignment{}, "cluster_name: c\n"+tc.yaml), "server")
			checkVerdicts(t, got.Verdicts, tc.verdicts)
			var out []string
			for _, l := range got.Localities {
				var eps []string
				for _, e := range l.Endpoints {
					eps = append(eps, fmt.Sprintf("%s*%d %s", e.Addr, e.Weight, e.Health))
				}
				out = append(out, fmt.Sprintf("%s/%s/%s p%d w%d [%s]", l.Region, l.Zone, l.SubZone, l.Priority, l.Weight, strings.Join(eps, " ")))
			}
			if s := strings.Join(out, " "); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
		})
	}
}
