// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mirrored is a mesh whose one route asks for an action that cannot be enforced.
const mirrored = `
version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: web
  address: {socket_address: {address: 10.0.0.1, port_value: 80}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: web
        route_config:
          name: web
          virtual_hosts:
          - name: web
            domains: ["*"]
            routes:
            - {name: copied, match: {prefix: /}, route: {cluster: c, request_mirror_policies: [{cluster: c}]}}
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: c
  type: STATIC
  load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}]}]}
`

// TestUnenforceableActions: files are read as by a helper with the same flag.
func TestUnenforceableActions(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(mirrored), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		flag []string
		code int
		says string
	}{
		{nil, exitOK, "10.0.0.2:80"},
		{[]string{"--unenforceable-actions", "serve"}, exitOK, "10.0.0.2:80"},
		{[]string{"--unenforceable-actions", "refuse"}, exitOK, "503"},
		{[]string{"--unenforceable-actions", "maybe"}, exitUsage, "use serve or refuse"},
	} {
		code, out, errs := kmeshctl(t, append([]string{"explain", "--offline", "--config", dir, "GET", "http://10.0.0.1/"}, tt.flag...)...)
		if code != tt.code || !strings.Contains(out+errs, tt.says) {
			t.Errorf("explain %v: code %d, want %d and %q:\n%s%s", tt.flag, code, tt.code, tt.says, out, errs)
		}
	}
	if code, out, errs := kmeshctl(t, "diff", "--unenforceable-actions", "refuse", dir, dir); code != 0 {
		t.Errorf("diff: code %d:\n%s%s", code, out, errs)
	}
	if code, _, errs := kmeshctl(t, "diff", "--unenforceable-actions", "maybe", dir, dir); code != exitUsage || !strings.Contains(errs, "use serve or refuse") {
		t.Errorf("diff with a wrong flag: code %d: %s", code, errs)
	}
}
