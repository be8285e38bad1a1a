// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kmesh/helper/mesh"
)

// TestScopesFit: scopes that do not fit together are refused before all of them are
// compiled, and not those that are in the maps already.
func TestScopesFit(t *testing.T) {
	rt := load(t, map[string]uint32{"km_clusters": 16})
	p := publisher(t, rt)
	scopes := func(n int, path string) *mesh.Snapshot {
		s := &mesh.Snapshot{}
		for i := range n {
			one := manyHosts(7, 1).Scopes[0]
			if i > 0 {
				one.Key = mesh.ScopeKey{Namespace: fmt.Sprint("n", i)}
			}
			one.HTTP[0].HTTP.VirtualHosts[0].Name += path // no patch: all is compiled
			s.Scopes = append(s.Scopes, one)
		}
		return s
	}
	publish(t, p, scopes(2, ""))
	held := slices.Clone(p.free)
	_, err := p.Publish(context.Background(), scopes(3, ""))
	if err == nil || !strings.Contains(err.Error(), "km_clusters") {
		t.Fatalf("a third scope: %v", err)
	}
	if !slices.Equal(held, p.free) || len(p.now.clusters) > 16 {
		t.Error("what was refused is in the maps")
	}
	publish(t, p, scopes(2, "/other"))
}
