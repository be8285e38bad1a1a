// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"kmesh/helper/snapshot"
	"kmesh/helper/xds"
)

// TestSource: the options make the source that they name, and those that cannot be
// used are refused with the flag and what to do about it, when the source is made or
// when it begins.
func TestSource(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noPEM, none := file("no.pem", "no certificate"), filepath.Join(dir, "none")
	servers := func(s ServerOptions, targets ...string) Options {
		return Options{XDSServers: targets, NodeID: "node", Server: s}
	}
	tests := map[string]struct {
		opts  Options
		parts []string // of the error
	}{
		"nothing":          {Options{}, []string{"--xds-dir DIR", "--xds-server HOST:PORT"}},
		"both":             {Options{XDSDir: dir, XDSServers: []string{"a:1"}}, []string{"--xds-dir", "--xds-server", "choose one"}},
		"token for files":  {Options{XDSDir: dir, Server: ServerOptions{Token: "x"}}, []string{"--xds-token", "--xds-dir", "leave one out"}},
		"address":          {servers(ServerOptions{}, "a:1", "istiod"), []string{`--xds-server: "istiod"`, "give HOST:PORT"}},
		"empty address":    {servers(ServerOptions{}, ""), []string{`--xds-server: ""`, "give HOST:PORT"}},
		"twice":            {servers(ServerOptions{}, "a:1", "a:1"), []string{`--xds-server: "a:1"`, "once"}},
		"protocol":         {servers(ServerOptions{Protocol: "rest"}, "a:1"), []string{`--xds-protocol: "rest"`, "delta or sotw"}},
		"no node":          {Options{XDSServers: []string{"a:1"}}, []string{"--node-id: ", "empty"}},
		"token in clear":   {servers(ServerOptions{Token: "x"}, "a:1"), []string{"--xds-token: ", "roots"}},
		"cert, no roots":   {servers(ServerOptions{Cert: "x", Key: "y"}, "a:1"), []string{"--xds-roots: is empty", "give the file"}},
		"name, no roots":   {servers(ServerOptions{ServerName: "x"}, "a:1"), []string{"--xds-roots: is empty", "give the file"}},
		"cert, no key":     {servers(ServerOptions{Roots: noPEM, Cert: "x"}, "a:1"), []string{"--xds-key: is empty", "both or none"}},
		"key, no cert":     {servers(ServerOptions{Roots: noPEM, Key: "x"}, "a:1"), []string{"--xds-cert: is empty", "both or none"}},
		"roots missing":    {servers(ServerOptions{Roots: none}, "a:1"), []string{"--xds-roots: ", none, "no such file"}},
		"roots of no kind": {servers(ServerOptions{Roots: noPEM}, "a:1"), []string{"--xds-roots: ", noPEM, "PEM"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			tc.opts.Log = slog.New(slog.DiscardHandler)
			s, err := source(tc.opts)
			if err == nil {
				err = asFlag(s.Run(t.Context(), snapshot.New(snapshot.Options{Logger: tc.opts.Log})))
			}
			if err == nil || slices.ContainsFunc(tc.parts, func(p string) bool { return !strings.Contains(err.Error(), p) }) {
				t.Errorf("error %v, want one with %q", err, tc.parts)
			}
		})
	}
}

// TestServerOptions: every option arrives.
func TestServerOptions(t *testing.T) {
	got := Options{XDSServers: []string{"a:1", "b:2"}, NodeID: "node", Version: "v1", Server: ServerOptions{
		Protocol: "sotw", Roots: "r", ServerName: "n", Cert: "c", Key: "k", Token: "t", ClusterID: "i"}}.server()
	if !slices.Equal(got.Targets, []string{"a:1", "b:2"}) || got.Protocol != xds.SotW || got.TokenFile != "t" || got.Headers["clusterid"] != "i" ||
		!reflect.DeepEqual(got.TLS, &xds.TLS{RootsFile: "r", CertFile: "c", KeyFile: "k", ServerName: "n"}) || got.Node.GetId() != "node" || got.Node.GetUserAgentVersion() != "v1" {
		t.Errorf("options %+v", got)
	}
	if got := (Options{XDSServers: []string{"a:1"}}).server(); got.TLS != nil || got.TokenFile != "" || got.Headers != nil || got.Protocol != "" {
		t.Errorf("options of plain text %+v", got)
	}
}
