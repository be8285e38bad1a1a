// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// hosts makes a configuration of virtual hosts: "name domain cluster".
func hosts(t *testing.T, list ...string) *RouteConfig {
	t.Helper()
	text := "{name: r, virtual_hosts: ["
	for _, s := range list {
		part := strings.Fields(s)
		text += fmt.Sprintf("{name: '%s', domains: ['%s'], routes: [{name: fix, match: {path: /fix}, direct_response: {status: 200}}, {name: go, match: {prefix: /}, route: {cluster: '%s'}}]},", part[0], part[1], part[2])
	}
	rc := TranslateRoutes(message(t, &routev3.RouteConfiguration{}, text+"]}"), "s")
	if rc.HTTP == nil {
		t.Fatal(list, rc.Verdicts)
	}
	return rc
}

// TestWithout: what becomes of virtual hosts that name a cluster that is missing.
func TestWithout(t *testing.T) {
	tests := map[string]struct {
		last, next []string
		want       string // virtual hosts: name, domain, cluster or 503
	}{
		"the last one stays":     {[]string{"a x 1", "b y 1"}, []string{"a x missing", "b y 2"}, "a x 1, b y 2"},
		"there is none":          {[]string{"b y 1"}, []string{"a x missing", "b y 2"}, "a x 503, b y 2"},
		"no configuration":       {nil, []string{"a x missing", "b y 2"}, "a x 503, b y 2"},
		"a domain has moved":     {[]string{"a x 1", "b y 1"}, []string{"a y missing", "b x 2"}, "a y 503, b x 2"},
		"it was refused before":  {[]string{"a x missing"}, []string{"a x missing"}, "a x 503"},
		"nothing is missing":     {[]string{"a x 1"}, []string{"a x 2"}, "a x 2"},
		"one that has gone goes": {[]string{"a x 1", "b y 1"}, []string{"a x missing"}, "a x 1"},
	}
	missing := func(cluster string) bool { return cluster == "missing" }
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var last *RouteConfig
			if tc.last != nil {
				last, _ = hosts(t, tc.last...).Without(nil, missing)
			}
			next := hosts(t, tc.next...)
			before := fmt.Sprint(next.HTTP.VirtualHosts[0].Routes[1])
			got, refused := next.Without(last, missing)
			var list []string
			for _, vh := range got.HTTP.VirtualHosts {
				to := "503"
				if r := vh.Routes[1]; !r.Unsupported {
					to = r.Clusters[0].Cluster
				}
				if refused[vh.Name] != (to == "503") || vh.Routes[0].Direct == nil || vh.Routes[1].Name != "go" {
					t.Errorf("%s: refused %v, routes %+v", vh.Name, refused[vh.Name], vh.Routes)
				}
				list = append(list, vh.Name+" "+vh.Domains[0]+" "+to)
			}
			if text := strings.Join(list, ", "); text != tc.want {
				t.Errorf("got  %s\nwant %s", text, tc.want)
			}
			if fmt.Sprint(next.HTTP.VirtualHosts[0].Routes[1]) != before {
				t.Error("the newest version was changed")
			}
		})
	}
}
