// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/envoy"
	"kmesh/helper/xds"
)

// logged is a listener that asks for an access log, which is an action that is not enforced.
func logged(t *testing.T) xds.Resource {
	return res(t, &listenerv3.Listener{}, strings.Replace(`{name: l, address: {socket_address: {address: 10.0.0.1, port_value: 80}}, access_log: [{name: x}],
filter_chains: [{filters: [{name: t, typed_config: {'@type': TYPE, stat_prefix: x, cluster: s}}]}]}`, "TYPE", "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", 1))
}

// TestRefuseActions: served without the action, or refused, by the setting; the snapshot is closed in both cases, and
// what is refused waits for nothing.
func TestRefuseActions(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		s := New(Options{RefuseActions: refuse})
		if err := s.Apply(t.Context(), listeners(logged(t)), clusters()); err != nil {
			t.Fatal(err)
		}
		if snap := s.Build(); refuse && (snap == nil || len(snap.Scopes[0].Services) != 1) {
			t.Fatalf("before its cluster is there: %+v, want the listener's service", snap)
		}
		if err := s.Apply(t.Context(), clusters(static(t, "s", 1))); err != nil {
			t.Fatal(err)
		}
		snap := s.Build()
		if snap == nil || len(snap.Scopes[0].Services) != 1 {
			t.Fatalf("refuse %t: %+v, want one service", refuse, snap)
		}
		name := snap.Scopes[0].Services[0].Clusters[0].Cluster
		cluster := snap.Scopes[0].Clusters[name]
		want := mesh.Endpoints
		if refuse {
			want = mesh.Refused
		}
		if cluster == nil || cluster.Kind != want || (name == envoy.RefusedCluster) != refuse {
			t.Errorf("refuse %t: cluster %q is %+v, want %s", refuse, name, cluster, want)
		}
	}
}
