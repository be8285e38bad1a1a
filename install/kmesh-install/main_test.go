// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// What is wrong is named by its field, with what to do, all of it at once.
func TestUsage(t *testing.T) {
	tests := []struct {
		args []string
		env  map[string]string
		says []string
	}{
		{[]string{"run", "--mode", "sideways"}, nil, []string{`mode: "sideways" is none: use one of auto, drop-in, in-place`}},
		{[]string{"run", "--owner", ""}, nil, []string{`owner: "" does not name`}},
		{[]string{"run", "--owner", "a\nb"}, nil, []string{`owner: "a\nb" does not name`}},
		{[]string{"run", "--platform", "moon"}, nil, []string{`platform: "moon" is not known: use one of`, "k3s"}},
		{[]string{"run", "--conf-dir", "net.d", "--bin-dir", "/"}, nil, []string{`conf-dir: "net.d" is not an absolute path`, `bin-dir: "/" is not`}},
		{[]string{"run", "--state-dir", ""}, nil, []string{`state-dir: "" is not an absolute path`}},
		{[]string{"run", "--cri-socket", "tcp:1"}, nil, []string{`cri-socket: "tcp:1" is not`}},
		{[]string{"run", "--listen", "8080"}, nil, []string{`listen: "8080" is no address`}},
		{[]string{"uninstall", "--drain", "-1s"}, nil, []string{"drain: -1s is negative"}},
		{[]string{"uninstall", "--drain", "soon"}, nil, []string{"invalid argument"}},
		{[]string{"uninstall", "now"}, nil, []string{`unexpected argument "now"`}},
		{[]string{"run", "--colour"}, nil, []string{"unknown flag"}},
		{[]string{"run"}, map[string]string{"KMESH_MODE": "sideways"}, []string{`mode: "sideways" is none`}},
		{[]string{"uninstall"}, map[string]string{"KMESH_DRAIN": "soon"}, []string{"drain: the variable KMESH_DRAIN"}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.args, tt.env), func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			code, _, stderr := call(t, tt.args...)
			if code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			for _, says := range tt.says {
				if !strings.Contains(stderr, says) {
					t.Errorf("it says %q, want %q", stderr, says)
				}
			}
		})
	}
}

// node is the flags of a node in a folder, and the folder of programs.
func node(t *testing.T) (root string, flags []string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"net.d", "bin", "source", "cache"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"source/kmesh-cni": "plugin", "source/kmesh-cni-stub": "stub",
		"net.d/10-x.conflist": `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KMESH_CONF_DIR", filepath.Join(root, "net.d"))
	t.Setenv("KMESH_BIN_DIR", "/nowhere") // the flag wins
	return root, []string{"--bin-dir", root + "/bin", "--source", root + "/source", "--state-dir", root + "/state", "--run-dir", root + "/run",
		"--ready-file", root + "/run/ready", "--cache-dir", root + "/cache", "--cri-socket", "none"}
}

func TestPluginOnly(t *testing.T) {
	root, flags := node(t)
	before, err := os.ReadFile(root + "/net.d/10-x.conflist")
	if err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := call(t, append([]string{"plugin"}, flags...)...); code != exitOK {
		t.Fatalf("%d: %s", code, stderr)
	}
	if data, err := os.ReadFile(root + "/bin/kmesh-cni"); err != nil || string(data) != "plugin" {
		t.Errorf("plugin %q, %v", data, err)
	}
	if after, err := os.ReadFile(root + "/net.d/10-x.conflist"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("configuration %s, %v", after, err)
	}
	if code, _, stderr := call(t, append([]string{"uninstall", "--drain", "0s"}, flags...)...); code != exitOK {
		t.Fatalf("%d: %s", code, stderr)
	}
	if left, err := os.ReadDir(root + "/bin"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Probes, the ready file and metrics, from before the network is there to after the end.
func TestReadiness(t *testing.T) {
	root, flags := node(t)
	conf := root + "/net.d/10-x.conflist"
	if err := os.Rename(conf, root+"/later"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, append([]string{"run", "--listen", addr}, flags...), &bytes.Buffer{}, &bytes.Buffer{})
	}()
	probe := append([]string{"ready"}, flags...)
	get := func(path string) (int, string) {
		r, err := http.Get("http://" + addr + path)
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		return r.StatusCode, b.String()
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				code, body := get("/readyz")
				t.Fatalf("%s: /readyz says %d %s", what, code, body)
			}
		}
	}
	until("waiting", func() bool {
		code, body := get("/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "no network yet")
	})
	if code, _, stderr := call(t, probe...); code != exitError || !strings.Contains(stderr, "not ready") {
		t.Errorf("ready: %d, %s", code, stderr)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if err := os.Rename(root+"/later", conf); err != nil {
		t.Fatal(err)
	}
	until("ready", func() bool { code, _ := get("/readyz"); return code == http.StatusOK })
	if code, _, stderr := call(t, probe...); code != exitOK {
		t.Errorf("ready: %d, %s", code, stderr)
	}
	var s struct {
		Ready         bool
		Mode, Network string
	}
	if _, body := get("/readyz"); json.Unmarshal([]byte(body), &s) != nil || !s.Ready || s.Mode != "in-place" || s.Network != "pods" {
		t.Errorf("/readyz: %s", body)
	}
	if _, body := get("/metrics"); !strings.Contains(body, "kmesh_install_ready 1\n") || !strings.Contains(body, "kmesh_install_conf_writes_total 1\n") {
		t.Errorf("/metrics: %s", body)
	}
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("run ended with %d", code)
	}
	if code, _, _ := call(t, probe...); code != exitError {
		t.Errorf("ready after the end: %d", code)
	}
	if data, err := os.ReadFile(conf); err != nil || !strings.Contains(string(data), "kmesh-cni") {
		t.Errorf("the end took the entry away: %s, %v", data, err)
	}
	if code, _, stderr := call(t, append([]string{"uninstall", "--owner", "other"}, flags...)...); code != exitError || !strings.Contains(stderr, `owner: this node's installation is "kmesh"'s`) {
		t.Errorf("uninstall by another: %d, %s", code, stderr)
	}
	if code, _, stderr := call(t, append([]string{"uninstall", "--drain", "0s"}, flags...)...); code != exitOK {
		t.Errorf("uninstall: %d, %s", code, stderr)
	}
}
