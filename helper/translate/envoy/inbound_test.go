// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"kmesh/helper/mesh"
)

// TestInbound: what is not governed gets one word that somebody should read, and it names the policies that nobody
// enforces.
func TestInbound(t *testing.T) {
	const policy = "{permissions: [{any: true}], principals: [{any: true}]}"
	rbac := func(kind, rules string) string {
		return "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters." + kind + ".rbac.v3.RBAC, " + rules + "}}"
	}
	http := func(filter string) string {
		return "{name: h, typed_config: {'@type': type.googleapis.com/" + typeHCM + ", stat_prefix: x, rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [" + filter + "]}}"
	}
	for name, tt := range map[string]struct {
		filters string
		want    string // the message
	}{
		"no policy":   {tcp("cluster: c, idle_timeout: 5s"), msgInbound},
		"dry run":     {rbac("network", "stat_prefix: x, shadow_rules: {policies: {a: "+policy+"}}") + ", " + tcp("cluster: c"), msgInbound},
		"no rule":     {rbac("network", "stat_prefix: x, rules: {}") + ", " + tcp("cluster: c"), msgInbound + ": authorization is NOT ENFORCED"},
		"by address":  {rbac("network", "stat_prefix: x, rules: {policies: {'ns[shop]-policy[only-web]-rule[0]': "+policy+", 'ns[shop]-policy[only-web]-rule[1]': "+policy+"}}") + ", " + tcp("cluster: c"), msgInbound + ": authorization is NOT ENFORCED (shop/only-web)"},
		"by request":  {http(rbac("http", "rules: {policies: {other: "+policy+"}}")), msgInbound + ": authorization is NOT ENFORCED (other)"},
		"unreadable":  {"{name: r, typed_config: {'@type': type.googleapis.com/google.protobuf.Empty}}, " + tcp("cluster: c"), msgInbound},
		"two filters": {rbac("network", "stat_prefix: x, rules: {policies: {b: "+policy+"}}") + ", " + rbac("network", "stat_prefix: x, rules: {policies: {a: "+policy+"}}") + ", " + tcp("cluster: c"), msgInbound + ": authorization is NOT ENFORCED (a, b)"},
	} {
		t.Run(name, func(t *testing.T) {
			l := TranslateListener(message(t, &listenerv3.Listener{}, "name: l\n"+vip+"traffic_direction: INBOUND\naccess_log: [{name: x}]\nfilter_chains: [{filters: ["+tt.filters+"]}]"), "test")
			if len(l.Services) > 0 || len(l.HTTP) > 0 {
				t.Errorf("it is served: %v %v", l.Services, l.HTTP)
			}
			var loud []string
			for _, v := range l.Verdicts {
				if v.Class != mesh.Default {
					loud = append(loud, v.Field+" "+v.Class.String()+" "+v.Message)
				}
			}
			if want := "traffic_direction " + mesh.UnsupportedCondition.String() + " " + tt.want; len(loud) != 1 || loud[0] != want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(loud, "\n"), want)
			}
		})
	}
}
