// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPlatformOfANode(t *testing.T) {
	tests := []struct{ name, has, bin, conf string }{
		{"microk8s", "/var/snap/microk8s/current", "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network"},
		{"k3s", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
		{"k3d", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/bin", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
		{"gke", "/home/kubernetes/bin", "/home/kubernetes/bin", "/etc/cni/net.d"},
		{"openshift", "/etc/cni/multus/net.d", "/var/lib/cni/bin", "/etc/cni/multus/net.d"},
		{"generic", "/nothing", "/opt/cni/bin", "/etc/cni/net.d"},
	}
	for _, tt := range tests {
		for _, p := range []Platform{platform("", func(path string) bool { return path == tt.has }), platform(tt.name, func(string) bool { return false })} {
			if p.Name != tt.name || p.BinDir != tt.bin || p.ConfDir != tt.conf {
				t.Errorf("a node with %s is %+v", tt.has, p)
			}
		}
	}
}

// What the administrator says counts more than what the runtime says.
func TestDirectories(t *testing.T) {
	root := t.TempDir()
	dir := func(name string) string {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	said := &RuntimeStatus{PluginDirs: []string{filepath.Join(root, "gone"), dir("bin1"), dir("bin2")}, ConfDir: dir("conf"), Tells: true}
	tests := []struct {
		name    string
		opts    Options
		st      *RuntimeStatus
		bins    string
		conf    string
		watched bool
		says    string
	}{
		{"the runtime's", Options{}, said, "bin1 bin2", "conf", true, ""},
		{"the administrator's", Options{BinDir: dir("mine"), ConfDir: dir("nets")}, said, "mine", "nets", false, ""},
		{"the same by another path", Options{ConfDir: filepath.Join(root, "conf/../conf")}, said, "bin1 bin2", "conf", true, ""},
		{"no such conf-dir", Options{ConfDir: filepath.Join(root, "gone")}, said, "", "", false, "conf-dir: "},
		{"no such bin-dir", Options{BinDir: filepath.Join(root, "gone"), ConfDir: dir("nets")}, nil, "", "", false, "bin-dir: there is no " + filepath.Join(root, "gone") + ": mount"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := tt.opts.directories(tt.st)
			if tt.says != "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error %v, want %q", err, tt.says)
				}
				return
			}
			var bins []string
			for _, b := range d.bins {
				bins = append(bins, filepath.Base(b))
			}
			if err != nil || strings.Join(bins, " ") != tt.bins || filepath.Base(d.conf) != tt.conf || d.watched != tt.watched {
				t.Errorf("folders %+v, %v", d, err)
			}
		})
	}
	// The plugin goes where the runtime finds it first.
	if err := os.WriteFile(filepath.Join(root, "bin2", "kmesh-cni"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := binaryPlace([]string{filepath.Join(root, "bin1"), filepath.Join(root, "bin2")}); got != filepath.Join(root, "bin2", "kmesh-cni") {
		t.Errorf("the binary goes to %s", got)
	}
}

// status is what containerd says, as far as it is read.
func status(conf string, types ...string) map[string]string {
	var plugins []any
	for _, raw := range types {
		var p struct{ Type string }
		_ = json.Unmarshal([]byte(raw), &p)
		plugins = append(plugins, map[string]any{"Network": map[string]any{"type": p.Type}, "Source": raw})
	}
	data, _ := json.Marshal(map[string]any{
		"PluginDirs": []string{"/opt/cni/bin"}, "PluginConfDir": conf, "Prefix": "eth",
		"Networks": []any{map[string]any{"Config": map[string]any{"Name": "pods", "CNIVersion": "1.0.0", "Plugins": plugins}, "IFName": "eth0"}},
	})
	return map[string]string{"cniconfig": string(data), "lastCNILoadStatus": "OK", "golang": `"go1.26"`}
}

func TestRuntimeStatus(t *testing.T) {
	o := Defaults()
	mine := string(o.entry(""))
	// As libcni encodes it anew when it is inline.
	sorted := `{"capabilities":{"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true},"installedBy":{"owner":"kmesh"},"type":"kmesh-cni"}`
	tests := []struct {
		name   string
		types  []string
		loaded bool
		names  bool
	}{
		{"as written", []string{`{"type":"bridge"}`, mine}, true, true},
		{"encoded anew", []string{`{"type":"bridge"}`, sorted}, true, true},
		{"not there", []string{`{"type":"bridge"}`}, false, false},
		{"twice", []string{`{"type":"bridge"}`, mine, mine}, false, true},
		{"first", []string{mine, `{"type":"bridge"}`}, false, true},
		{"another owner's", []string{`{"type":"bridge"}`, strings.Replace(mine, `"kmesh"}`, `"x"}`, 1)}, false, false},
		{"an older one", []string{`{"type":"bridge"}`, strings.Replace(mine, `"cgroupPath":true,`, "", 1)}, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s RuntimeStatus
			if err := s.read(status("/etc/cni/net.d", tt.types...)); err != nil {
				t.Fatal(err)
			}
			if !s.Tells || s.ConfDir != "/etc/cni/net.d" || len(s.PluginDirs) != 1 || s.LoadError != "" {
				t.Errorf("read as %+v", s)
			}
			if s.Loaded("pods", []byte(mine)) != tt.loaded || s.Names("kmesh") != tt.names || s.Loaded("other", []byte(mine)) {
				t.Errorf("loaded %t, names %t", s.Loaded("pods", []byte(mine)), s.Names("kmesh"))
			}
		})
	}
	var silent RuntimeStatus
	if err := silent.read(map[string]string{"config": `{"sandboxImage":"pause"}`}); err != nil || silent.Tells || silent.ConfDir != "" {
		t.Errorf("a runtime that does not tell is read as %+v, %v", silent, err)
	}
	var failed RuntimeStatus
	if err := failed.read(map[string]string{"lastCNILoadStatus": "cni config load failed"}); err != nil || failed.LoadError == "" {
		t.Errorf("a failed load is read as %+v, %v", failed, err)
	}
}

func FuzzRuntimeStatus(f *testing.F) {
	o := Defaults()
	f.Add(status("/etc/cni/net.d", `{"type":"bridge"}`, string(o.entry("")))["cniconfig"], "OK")
	for _, s := range []string{"", "null", "{}", "[]", `{"Networks":[null,{"Config":{"Plugins":[null,{"Network":{"type":"kmesh-cni"},"Source":"x"}]}}]}`, `{"Networks":[{"Config":{"Plugins":[]}}]}`} {
		f.Add(s, "failed")
	}
	f.Fuzz(func(t *testing.T, conf, last string) {
		var s RuntimeStatus
		if s.read(map[string]string{"cniconfig": conf, "lastCNILoadStatus": last}) != nil {
			return
		}
		for _, n := range s.Networks {
			if s.Loaded(n.Name, o.entry("")) && !s.Names(o.Owner) {
				t.Errorf("loaded, but not named: %+v", s)
			}
		}
	})
}

func FuzzCached(f *testing.F) {
	o := Defaults()
	seed := func(conf string) []byte {
		data, _ := json.Marshal(map[string]any{"kind": "cniCacheV1", "config": []byte(conf)})
		return data
	}
	named := seed(`{"name":"n","plugins":[{"type":"a"},` + string(o.entry("")) + `]}`)
	f.Add(named)
	f.Add(seed(`{"name":"n","plugins":[{"type":"a"},null]}`))
	f.Add(seed(`{"name":"n","type":"kmesh-cni"}`))
	for _, s := range []string{"", "{}", "null", `{"config":"!"}`, `{"config":""}`, `{"cniVersion":"1.0.0","ips":[]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := cachedNames(data)
		var cached struct{ Config []byte }
		if got && (json.Unmarshal(data, &cached) != nil || !strings.Contains(strings.ToLower(string(cached.Config)), "type")) {
			t.Errorf("%q names the plugin", data)
		}
		if string(data) == string(named) && !got {
			t.Error("an attachment with the entry does not name it")
		}
	})
}

func FuzzRecord(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"owner":"a","claim":"b","made":["/x"]}`, `{"made":["/x/.."],"confDirs":["x"],"binaries":["/"]}`, `{"made":null,"confDirs":[null]}`, "[]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for _, path := range slices.Concat(r.ConfDirs, r.Binaries, r.Made) {
			if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
				t.Errorf("would remove %q", path)
			}
		}
		r.Claim = "mine"
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseRecord(again); err != nil || back.Claim != "mine" || !slices.Equal(back.Made, r.Made) {
			t.Errorf("read again as %+v, %v", back, err)
		}
	})
}
