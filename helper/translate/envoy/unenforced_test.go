// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// TestUnenforced: the policies of an inbound listener, wherever in it they are.
func TestUnenforced(t *testing.T) {
	rbac := func(kind, fields string) string {
		return "{name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters." + kind + ".rbac.v3.RBAC, " + fields + "}}"
	}
	rules := func(names string) string { return "rules: {action: DENY, policies: {" + names + "}}" }
	const any = ": {permissions: [{any: true}], principals: [{any: true}]}"
	istio := func(policy string) string { return "\"ns[shop]-policy[" + policy + "]-rule[0]\"" + any }
	network := func(fields string) string { return rbac("network", "stat_prefix: x, "+fields) }
	inbound := vip + "traffic_direction: INBOUND\n"
	chains := func(filters ...string) string {
		out := "filter_chains: ["
		for _, f := range filters {
			out += "{filters: [" + f + tcp("cluster: c") + "]},"
		}
		return out + "]"
	}
	for name, tt := range map[string]struct {
		yaml string
		want []string
	}{
		"none":     {inbound + chains(""), nil},
		"one":      {inbound + chains(network(rules(istio("deny")))+","), []string{"shop/deny"}},
		"in each":  {inbound + chains(network(rules(istio("b")))+",", network(rules(istio("a")+", "+istio("b")))+","), []string{"shop/a", "shop/b"}},
		"by HTTP":  {inbound + "filter_chains: [" + httpChain("", "http_filters: ["+rbac("http", rules(istio("deny")))+"], "+rdsOf80) + "]", []string{"shop/deny"}},
		"default":  {inbound + chains("") + "\ndefault_filter_chain: {filters: [" + network(rules(istio("deny"))) + ", " + tcp("cluster: c") + "]}", []string{"shop/deny"}},
		"no name":  {inbound + chains(network("rules: {action: ALLOW}")+","), []string{"the authorization of listener l"}},
		"other":    {inbound + chains(network(rules("mine"+any))+","), []string{"mine"}},
		"shadow":   {inbound + chains(network("shadow_rules: {action: DENY, policies: {"+istio("deny")+"}}")+","), nil},
		"outbound": {vip + chains(network(rules(istio("deny")))+","), nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := TranslateListener(message(t, &listenerv3.Listener{}, "name: l\n"+tt.yaml), "s")
			if !slices.Equal(l.Unenforced, tt.want) {
				t.Errorf("%q, want %q: %v", l.Unenforced, tt.want, l.Verdicts)
			}
		})
	}
}
