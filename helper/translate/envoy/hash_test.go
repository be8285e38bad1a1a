// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"kmesh/helper/mesh"
)

// TestHashPolicy: the first key that the data path has is used, and every other one
// is reported.
func TestHashPolicy(t *testing.T) {
	const at, used = "virtual_hosts[0].routes[0].route.hash_policy", "virtual_hosts[].routes[].route.hash_policy[]"
	user := mesh.Hash{Kind: mesh.HashHeader, Header: "x-user"}
	source := mesh.Hash{Kind: mesh.HashSource}
	long := strings.Repeat("a", mesh.MaxHashHeader)
	for name, tc := range map[string]struct {
		yaml     string
		hash     mesh.Hash
		verdicts []want
	}{
		"none":   {"[]", mesh.Hash{}, nil},
		"header": {"[{header: {header_name: X-User}}]", user, []want{{used, mesh.Enforced, ""}}},
		"source": {"[{connection_properties: {source_ip: true}}]", source, []want{{used, mesh.Enforced, ""}}},
		"source, not": {"[{connection_properties: {source_ip: false}}]", mesh.Hash{},
			[]want{{at + "[0]", mesh.UnsupportedAction, "NOT by this"}}},
		"twice": {"[{header: {header_name: x-user}}, {header: {header_name: x-user}}]", user,
			[]want{{used, mesh.Enforced, ""}}},
		"two keys": {"[{header: {header_name: x-user}, terminal: true}, {connection_properties: {source_ip: true}}]", user,
			[]want{{used, mesh.Enforced, ""}, {at + "[1]", mesh.UnsupportedAction, "only the first"}}},
		"behind others": {"[{cookie: {name: sid}}, {query_parameter: {name: q}}, {filter_state: {key: k}}, {connection_properties: {source_ip: true}}]", source,
			[]want{{at + "[0]", mesh.UnsupportedAction, "NOT by this"}, {at + "[1]", mesh.UnsupportedAction, ""}, {at + "[2]", mesh.UnsupportedAction, ""}, {used, mesh.Enforced, ""}}},
		"authority":     {"[{header: {header_name: ':authority'}}]", mesh.Hash{Kind: mesh.HashHeader, Header: "host"}, []want{{used, mesh.Enforced, ""}}},
		"pseudo header": {"[{header: {header_name: ':path'}}]", mesh.Hash{}, []want{{at + "[0]", mesh.UnsupportedAction, "no header"}}},
		"rewritten": {"[{header: {header_name: x-user, regex_rewrite: {pattern: {regex: a}, substitution: b}}}]", mesh.Hash{},
			[]want{{at + "[0]", mesh.UnsupportedAction, "as it is"}}},
		"longest name": {"[{header: {header_name: " + long + "}}]", mesh.Hash{Kind: mesh.HashHeader, Header: long}, []want{{used, mesh.Enforced, ""}}},
		"longer name":  {"[{header: {header_name: " + long + "a}}]", mesh.Hash{}, []want{{at + "[0]", mesh.UnsupportedAction, "41 bytes"}}},
	} {
		t.Run(name, func(t *testing.T) {
			rc := message(t, &routev3.RouteConfiguration{}, `
name: r
virtual_hosts:
- name: v
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: c, hash_policy: `+tc.yaml+`}}]`)
			got := TranslateRoutes(rc, "x")
			if h := got.HTTP.VirtualHosts[0].Routes[0].Hash; h != tc.hash {
				t.Errorf("hash %+v, want %+v", h, tc.hash)
			}
			checkVerdicts(t, got.Verdicts, tc.verdicts)
		})
	}
}
