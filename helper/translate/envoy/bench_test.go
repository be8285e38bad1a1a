// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
)

// BenchmarkTranslateRoutes translates the routes of a port that 10,000 services
// share.
func BenchmarkTranslateRoutes(b *testing.B) {
	one := message(b, &routev3.RouteConfiguration{}, oneRoute("{name: canary, match: {prefix: /, headers: [{name: x, string_match: {exact: yy}}]}, route: {cluster: v2, timeout: 0s, retry_policy: {retry_on: connect-failure, num_retries: 2}, max_grpc_timeout: 0s}, decorator: {operation: o}},"+
		"{name: main, match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: v1, weight: 90}, {name: v2, weight: 10}]}, timeout: 0s, retry_policy: {retry_on: connect-failure, num_retries: 2}, max_grpc_timeout: 0s}, decorator: {operation: o}}")).GetVirtualHosts()[0]
	rc := &routev3.RouteConfiguration{Name: "80", IgnorePortInHostMatching: true}
	for i := range 10_000 {
		vh := proto.CloneOf(one)
		vh.Name = fmt.Sprintf("svc-%d:80", i)
		vh.Domains = []string{fmt.Sprintf("svc-%d", i), fmt.Sprintf("svc-%d.default", i), fmt.Sprintf("svc-%d.default.svc.cluster.local", i)}
		rc.VirtualHosts = append(rc.VirtualHosts, vh)
	}
	b.ReportAllocs()
	for b.Loop() {
		if next := TranslateRoutes(rc, "s"); next.HTTP == nil {
			b.Fatal(list(next.Verdicts))
		}
	}
}
