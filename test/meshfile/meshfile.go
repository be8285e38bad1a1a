// SPDX-License-Identifier: Apache-2.0

// Package meshfile writes small meshes as files that a helper reads (--xds-dir): services that are bound at connect,
// each shared out over clusters of endpoints.
package meshfile

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Share is a cluster's part of a service.
type Share struct {
	Cluster string
	Weight  int
}

// Listener is a service at an address.
func Listener(name string, at netip.AddrPort, shares ...Share) string {
	var clusters strings.Builder
	for _, s := range shares {
		fmt.Fprintf(&clusters, "          - {name: %s, weight: %d}\n", s.Cluster, s.Weight)
	}
	return fmt.Sprintf(`- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: %s
  address: {socket_address: {address: %s, port_value: %d}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: echo
        weighted_clusters:
          clusters:
%s`, name, at.Addr(), at.Port(), clusters.String())
}

// Cluster is a cluster whose endpoints are known.
func Cluster(name string, endpoints ...netip.AddrPort) string {
	var eps strings.Builder
	for _, e := range endpoints {
		fmt.Fprintf(&eps, "      - endpoint: {address: {socket_address: {address: %s, port_value: %d}}}\n", e.Addr(), e.Port())
	}
	return fmt.Sprintf(`- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: %s
  type: STATIC
  lb_policy: ROUND_ROBIN
  load_assignment:
    cluster_name: %s
    endpoints:
    - lb_endpoints:
%s`, name, name, eps.String())
}

// Write replaces a file of the folder by an atomic rename. resources are what Listener and Cluster give, one after the
// other.
func Write(dir, name, resources string) error {
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte("version_info: \"1\"\nresources:\n"+resources), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, name))
}
