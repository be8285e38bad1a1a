// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"kmesh/helper/xds"
)

// BenchmarkEndpointChange: one endpoint of 100,000, in 10,000 services.
func BenchmarkEndpointChange(b *testing.B) {
	const services = 10000
	s := New(Options{Logger: slog.New(slog.DiscardHandler)})
	var cs, as, ls []xds.Resource
	ports := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for i := range services {
		name := fmt.Sprintf("outbound|80||svc-%d.default.svc.cluster.local", i)
		cs = append(cs, eds(b, "'"+name+"'"))
		as = append(as, cla(b, "'"+name+"'", ports...))
		ls = append(ls, lis(b, fmt.Sprintf("l%d", i), fmt.Sprintf("10.%d.%d.1", i/250, i%250), "'"+name+"'"))
	}
	if err := s.Apply(context.Background(), clusters(cs...), assignments(as...), listeners(ls...)); err != nil {
		b.Fatal(err)
	}
	if snap, _ := s.step(); snap == nil || len(snap.Scopes[0].Services) != services {
		b.Fatal("no snapshot")
	}
	changes := []xds.Resource{cla(b, "'outbound|80||svc-7.default.svc.cluster.local'", 1), as[7]}
	for n := 0; b.Loop(); n++ {
		if err := s.Apply(context.Background(), assignments(changes[n%2])); err != nil {
			b.Fatal(err)
		}
		if snap, _ := s.step(); snap == nil {
			b.Fatal("no snapshot")
		}
	}
}
