// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"

	"google.golang.org/protobuf/proto"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
)

func TestRoutesOf(t *testing.T) {
	half := mesh.Fraction{Numerator: 50, Denominator: 100}
	v := &mesh.VirtualHost{Name: "v", Domains: []string{"a", "*.b"}, Routes: []*mesh.Route{
		{
			Match: mesh.RouteMatch{
				Path: mesh.PathMatch{Kind: mesh.PathExact, Value: "/x"}, Headers: []mesh.HeaderMatch{{Name: ":method"}},
				Query: []mesh.QueryMatch{{Name: "q"}}, Fraction: &half,
			},
			Abort: &mesh.Abort{Fraction: half, Status: 503}, Clusters: []mesh.WeightedCluster{{Cluster: "c", Weight: 1}},
		},
		{Clusters: []mesh.WeightedCluster{{Cluster: "c", Weight: 3}, {Cluster: "d", Weight: 1}}},
		{Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathRegex, Value: "/y+"}}, Redirect: &mesh.Redirect{Status: 301}},
		{Match: mesh.RouteMatch{Path: mesh.PathMatch{Kind: mesh.PathSegmentPrefix, Value: "/z"}}, Direct: &mesh.DirectResponse{Status: 200}},
		{Match: mesh.RouteMatch{Path: mesh.PathMatch{Value: "/p"}}, Unsupported: true},
	}}
	want := &apiv1.RoutesResponse{}
	var uses []publish.RouteUse
	for i, text := range [][2]string{
		{"exact /x, header :method, parameter q, 50%", "abort 503 for 50%, c"},
		{"every path", "c (3), d (1)"},
		{"regex /y+", "redirect 301"},
		{"segments /z", "answer 200"},
		{"prefix /p", "answer 503: not supported"},
	} {
		uses = append(uses, publish.RouteUse{Scope: "s", Service: "web", VirtualHost: v, Index: i, Name: "n", Requests: uint64(i)})
		want.Routes = append(want.Routes, &apiv1.Route{
			Scope: "s", Service: "web", VirtualHost: "v", Domains: v.Domains, Name: "n", Match: text[0], Action: text[1], Requests: uint64(i),
		})
	}
	uses = append(uses, publish.RouteUse{Service: "web2", VirtualHost: v})
	if got := RoutesOf(uses, "web"); !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := RoutesOf(uses, ""); len(got.Routes) != len(uses) {
		t.Errorf("%d routes of all services, want %d", len(got.Routes), len(uses))
	}
}
