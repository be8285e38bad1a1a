// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const meshDir = "testdata/mesh"

// TestExplain compares what is printed with testdata/explain_*.txt.
func TestExplain(t *testing.T) {
	tests := map[string][]string{
		"canary":          {"GET", "http://reviews:9080/x?y=1"},
		"header":          {"GET", "http://reviews.default:9080/", "-H", "End-User: jason"},
		"redirect":        {"GET", "http://reviews:9080/old/a?b"},
		"unsupported":     {"GET", "http://reviews:9080/admin"},
		"direct":          {"GET", "http://reviews:9080/healthz"},
		"fault":           {"GET", "http://reviews:9080/fault"},
		"no_virtual_host": {"GET", "http://unknown:9080/"},
		"no_route":        {"GET", "http://www.example.com:9080/api/vx/"},
		"regex":           {"GET", "http://www.example.com:9080/api/v1/x"},
		"no_listener":     {"GET", "http://reviews:81/"},
		"not_http":        {"GET", "http://10.96.0.12:3306/"},
		"vip":             {"GET", "http://10.96.0.11:9080/healthz"},
		"address":         {"GET", "http://catalog:8080/", "--address", "10.96.0.22"},
		"connect":         {"CONNECT", "http://reviews:9080/"},
		"bad_head":        {"GET", "http://reviews:9080/", "-H", "Content-Length: 1", "-H", "Content-Length: 1"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			code, out, errs := kmeshctl(t, append([]string{"explain", "--offline", "--config", meshDir}, args...)...)
			if code != exitOK || errs != "" {
				t.Fatalf("exit %d: %s", code, errs)
			}
			file := filepath.Join("testdata", "explain_"+name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if out != string(want) {
				t.Errorf("got\n%swant\n%s", out, want)
			}
		})
	}
}

// TestExplainUsage: what is wrong with a question is said, with the exit code.
func TestExplainUsage(t *testing.T) {
	base := []string{"explain", "--offline", "--config", meshDir}
	tests := map[string]struct {
		args []string
		code int
		text string
	}{
		"no pod":       {[]string{"explain", "GET", "http://a/"}, exitUsage, "--offline --config"},
		"both":         {[]string{"explain", "--config", meshDir, "shop/web", "GET", "http://a/"}, exitUsage, "both"},
		"bad pod":      {[]string{"explain", "web", "GET", "http://a/"}, exitUsage, "NAMESPACE/NAME"},
		"no directory": {[]string{"explain", "--offline", "--config", "testdata/none", "GET", "http://a/"}, exitError, "no such file"},
		"empty":        {[]string{"explain", "--offline", "--config", t.TempDir(), "GET", "http://a:9080/"}, exitOK, ""},
		"arguments":    {append(base, "GET"), exitUsage, "METHOD and URL"},
		"https":        {append(base, "GET", "https://a/"), exitUsage, "https is not routed"},
		"scheme":       {append(base, "GET", "ftp://a/"), exitUsage, "only http"},
		"host":         {append(base, "GET", "http:///x"), exitUsage, "has no host"},
		"port":         {append(base, "GET", "http://a:99999/"), exitUsage, "is not a port"},
		"header":       {append(base, "GET", "http://a/", "-H", "nonsense"), exitUsage, "NAME: VALUE"},
		"line break":   {append(base, "GET", "http://a/", "-H", "a: b\r\nc: d"), exitUsage, "line break"},
		"bad address":  {append(base, "GET", "http://a/", "--address", "a"), exitUsage, "address"},
		"ambiguous":    {append(base, "GET", "http://catalog:8080/"), exitUsage, "--address"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			code, _, errs := kmeshctl(t, tc.args...)
			if code != tc.code || !strings.Contains(errs, tc.text) {
				t.Errorf("exit %d: %s", code, errs)
			}
		})
	}
}

// TestExplainProblems: a file with a mistake is reported, and what can be used is.
func TestExplainProblems(t *testing.T) {
	dir := t.TempDir()
	files, err := filepath.Glob(meshDir + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, "catalog1.yaml") {
			data = []byte(strings.ReplaceAll(string(data), "cluster: catalog", "cluster: missing"))
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := kmeshctl(t, "explain", "--offline", "--config", dir, "-o", "json", "GET", "http://reviews:9080/healthz")
	var d decision
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("exit %d: %s: %v", code, errs, err)
	}
	if code != exitOK || len(d.Problems) != 1 || !strings.Contains(d.Problems[0], `cluster "missing"`) || d.VirtualHost != "reviews:9080" {
		t.Errorf("exit %d: %+v", code, d)
	}
	if code, _, errs := kmeshctl(t, "explain", "--offline", "--config", dir, "GET", "http://reviews:9080/"); code != exitOK || !strings.Contains(errs, "to repair") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// TestReadme: the output that the README shows is the real one.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/explain_fault.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(want)) {
		if line != "\n" && !strings.Contains(string(readme), "    "+line) {
			t.Errorf("README.md lacks the line\n    %s", line)
		}
	}
}

// TestExplainGolden asks about every request of the translator's golden set,
// through files: resources as istiod sends them are read, valid, closed and routed.
func TestExplainGolden(t *testing.T) {
	files, err := filepath.Glob("../translate/envoy/testdata/http/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { explainGolden(t, file) })
	}
}

type goldenCase struct {
	Resources []map[string]any `json:"resources"`
	Requests  []struct {
		Request string         `json:"request"`
		Host    string         `json:"host"`
		Headers map[string]any `json:"headers"`
		Draw    bool           `json:"draw"`
		Want    string         `json:"want"`
	} `json:"requests"`
}

func explainGolden(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g goldenCase
	if err := yaml.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, resources []map[string]any) {
		text, err := yaml.Marshal(map[string]any{"resources": resources})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("case.yaml", g.Resources)
	port := any(float64(9080))
	if l := g.Resources[0]; strings.HasSuffix(l["@type"].(string), ".Listener") {
		port = l["address"].(map[string]any)["socket_address"].(map[string]any)["port_value"]
	} else { // a case of routes only: they need a listener
		text, err := os.ReadFile("../translate/envoy/testdata/http/listener-shared.yaml")
		if err != nil {
			t.Fatal(err)
		}
		rds := "route_config_name: '" + l["name"].(string) + "'"
		var shared goldenCase
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(string(text), "route_config_name: '9080'", rds)), &shared); err != nil {
			t.Fatal(err)
		}
		write("listener.yaml", shared.Resources[:1])
	}
	clusters := map[string]bool{}
	names(g.Resources, clusters)
	clusters["PassthroughCluster"] = true
	var list []map[string]any
	for name := range clusters {
		list = append(list, map[string]any{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": name, "type": "STATIC"})
	}
	write("clusters.yaml", list)

	for _, r := range g.Requests {
		method, target, _ := strings.Cut(r.Request, " ")
		if target == "*" {
			continue // a URL cannot say it
		}
		host := r.Host
		if host == "" {
			host = "reviews"
		}
		host, _, _ = strings.Cut(host, ":")
		args := []string{"explain", "--offline", "--config", dir, "-o", "json", method, fmt.Sprintf("http://%s:%v%s", host, port, target)}
		if r.Host != "" {
			args = append(args, "-H", "Host: "+r.Host)
		} else {
			args = append(args, "-H", "Host: reviews")
		}
		if strings.HasPrefix(host, "10.") || strings.Contains(file, "listener-") {
			args = append(args, "--address", map[string]string{"listener-sniffed.yaml": "10.96.0.11", "listener-inline.yaml": "10.0.0.5"}[filepath.Base(file)])
			if args[len(args)-1] == "" {
				args[len(args)-1] = "10.96.0.11"
			}
		}
		for name, value := range r.Headers {
			values, ok := value.([]any)
			if !ok {
				values = []any{value}
			}
			for _, v := range values {
				args = append(args, "-H", fmt.Sprintf("%s: %v", name, v))
			}
		}
		code, out, errs := kmeshctl(t, args...)
		var d decision
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != exitOK {
			t.Fatalf("%v: exit %d: %s", args, code, errs)
		}
		if len(d.Problems) > 0 {
			t.Fatalf("problems: %v", d.Problems)
		}
		one := d.Outcomes[len(d.Outcomes)-1]
		if r.Draw {
			one = d.Outcomes[0]
		}
		if got := words(d, one); !wanted(r.Want, got) {
			t.Errorf("%s: got %q, want %q", r.Request, got, r.Want)
		}
	}
}

// words says an outcome as the golden set does.
func words(d decision, one outcome) string {
	text := ""
	if d.VirtualHost != "reviews.default.svc.cluster.local:9080" {
		text = d.VirtualHost + " "
	}
	if one.Route == nil {
		return "404 no route"
	}
	text += fmt.Sprint(*one.Route)
	switch {
	case strings.Contains(one.Action, "answered 503: the route"):
		return text + " unsupported"
	case len(one.Clusters) == 1:
		return text + " cluster " + one.Clusters[0].Cluster
	case len(one.Clusters) > 1:
		text += " clusters"
		for _, c := range one.Clusters {
			text += fmt.Sprintf(" %s=%d", c.Cluster, c.Weight)
		}
		return text
	}
	return text + " " + one.Action
}

// wanted compares an answer that is not a forward by its status only.
func wanted(want, got string) bool {
	if want == got {
		return true
	}
	at := strings.Index(got, " answered ")
	if at < 0 {
		return strings.Contains(want, " abort ") && strings.Contains(want, "/") // a share of it, shown with the cluster
	}
	status := strings.Fields(got[at:])[1]
	for _, kind := range []string{" redirect ", " direct ", " abort "} {
		if strings.HasPrefix(want, got[:at]+kind+status) {
			return true
		}
	}
	return false
}

// names collects every cluster that resources name.
func names(v any, out map[string]bool) {
	switch v := v.(type) {
	case []map[string]any:
		for _, e := range v {
			names(e, out)
		}
	case []any:
		for _, e := range v {
			names(e, out)
		}
	case map[string]any:
		for key, e := range v {
			s, ok := e.(string)
			switch {
			case ok && (key == "cluster" || key == "name" && v["weight"] != nil):
				out[s] = true
			case !slices.Contains([]string{"request_mirror_policies"}, key):
				names(e, out)
			}
		}
	}
}

// FuzzRequest: whatever the command line says, the question is refused or is one
// that has an answer.
func FuzzRequest(f *testing.F) {
	for _, s := range [][4]string{
		{"GET", "http://reviews:9080/x?y#z", "A: b", ""}, {"PUT", "10.96.0.11/x", "Host: reviews", "10.96.0.11"}, {"GET", "http://u:p@[::1]:80?q", "a:", "::1"},
		{"", "http://a", " : ", "x"}, {"G T", "http://a/ b", "a\x00: b", ""}, {"GET", "http://:80/", ":a", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	cfg, err := load(f.Context(), meshDir, "serve")
	if err != nil || len(cfg.problems) > 0 {
		f.Fatal(err, cfg.problems)
	}
	f.Fuzz(func(t *testing.T, method, url, header, address string) {
		r, err := newRequest(method, url, []string{header}, address)
		if err != nil {
			return
		}
		if r.port == 0 || r.target == "" || r.authority == "" {
			t.Fatalf("%+v", r)
		}
		d, err := cfg.decide(r)
		if err != nil {
			return
		}
		share := 0.0
		for _, one := range d.Outcomes {
			share += one.Share
			if one.Action == "" {
				t.Fatalf("%+v", d)
			}
		}
		if share < 0.999 || share > 1.001 {
			t.Fatalf("shares %v: %+v", share, d)
		}
	})
}
