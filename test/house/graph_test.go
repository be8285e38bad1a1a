// SPDX-License-Identifier: Apache-2.0

package house

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// module is the prefix of every package of ours.
const module = "kmesh/"

// allowed is the import graph: for each package (below the module, or below a
// folder when the key ends in "/...") the packages of ours that it may import.
// Test files are free: they may reach for whatever shows that the code is right.
var allowed = map[string][]string{
	// The kernel half, and where it meets a pod.
	"bpf":             {},
	"netns":           {"bpf", "netns/failpoint"},
	"netns/failpoint": {}, // empty, but for tests of faults

	// The plugin.
	"cni":           {"netns", "cni/entry", "cni/optin"},
	"cni/entry":     {},
	"cni/optin":     {},
	"cni/kmesh-cni": {"cni"},

	// The helper, from the control plane (left) to the maps (right).
	"helper/mesh":  {},
	"helper/shelf": {},
	"helper/xds":   {"helper/mesh", "helper/shelf"},
	// Certificates of workloads, for the streams; and how they are asked for: generated.
	"helper/identity":           {"helper/identity/ca"},
	"helper/identity/ca":        {},
	"helper/translate/envoy":    {"helper/mesh"},
	"helper/translate/workload": {"helper/mesh", "helper/translate/workload/address", "helper/translate/workload/policy"},
	// The messages of the workload API: generated.
	"helper/translate/workload/address": {},
	"helper/translate/workload/policy":  {"helper/translate/workload/address"},
	"helper/snapshot": {
		"helper/mesh", "helper/shelf", "helper/xds", "helper/translate/envoy", "helper/translate/workload",
		"helper/translate/workload/address", "helper/translate/workload/policy",
	},
	"helper/scopes": {
		"helper/mesh", "helper/xds", "helper/translate/workload", "helper/snapshot", "helper/lastgood", "helper/pods/plan", "cni/optin", "netns",
	},
	"helper/lastgood":    {"helper/xds", "helper/shelf"},
	"helper/automaton":   {"helper/mesh"},
	"helper/head":        {},
	"helper/explain":     {"helper/mesh", "helper/head"},
	"helper/routediff":   {"helper/mesh", "helper/head", "helper/explain", "helper/automaton"},
	"helper/balance":     {"helper/mesh"},
	"helper/resolve":     {"helper/mesh"},
	"helper/publish":     {"helper/mesh", "helper/automaton", "helper/balance", "bpf"},
	"helper/pods":        {"netns", "bpf", "cni/optin", "helper/pods/plan", "helper/pods/cached", "helper/pods/hint"},
	"helper/pods/plan":   {"cni/optin"},
	"helper/pods/cached": {"netns"},
	"helper/pods/hint":   {"netns"},
	"helper/pods/kube":   {"cni/optin", "helper/pods/plan"},
	"helper/probe":       {"helper/mesh", "helper/publish", "helper/api/v1"},
	"helper/api": {
		"helper/api/v1", "helper/mesh", "helper/xds", "helper/snapshot", "helper/scopes", "helper/lastgood", "helper/publish", "netns", "bpf",
	},
	"helper/api/v1": {},
	// It runs the bytes that are in the maps: it needs the machine, and no compiler's input.
	"helper/installed": {"bpf", "helper/api/v1", "helper/automaton", "helper/head"},
	"helper/controller": {
		"bpf", "netns",
		"helper/mesh", "helper/xds", "helper/translate/envoy", "helper/translate/workload",
		"helper/snapshot", "helper/scopes", "helper/lastgood", "helper/identity", "helper/automaton", "helper/balance", "helper/resolve",
		"helper/publish", "helper/pods", "helper/pods/kube", "helper/pods/plan", "helper/probe", "helper/api", "helper/api/v1", "helper/installed",
	},
	"helper/kmesh-helper": {"helper/controller", "helper/pods/cached", "helper/scopes", "netns", "bpf"},
	"helper/kmeshctl": {
		"helper/api/v1", "helper/mesh",
		// What it computes itself, from files: explain --offline and diff.
		"helper/xds", "helper/snapshot", "helper/translate/envoy", "helper/head", "helper/explain", "helper/routediff",
	},

	// The installer.
	"install":                {"cni/entry", "install/conflist", "install/place"},
	"install/conflist":       {},
	"install/place":          {},
	"install/events":         {"install"},
	"install/kmesh-install":  {"install", "install/events", "cni/entry"},
	"install/kmesh-cni-stub": {"cni/entry"},

	// The image has programs, and imports none.
	"manifests/image": {},

	// Tests import what they test.
	"test/...": {"..."},
}

// pure are the packages that hold thought only: they are tested without root and
// without a kernel, so neither they nor anything they import may reach for one.
var pure = []string{
	"helper/mesh", "helper/shelf", "helper/translate/envoy", "helper/translate/workload",
	"helper/automaton", "helper/balance", "helper/head", "helper/explain", "helper/routediff",
	"cni/optin", "cni/entry", "helper/pods/plan", "install/conflist",
}

// forbidden keeps modules (prefixes of import paths) out of everything that a
// package links, however deep.
var forbidden = []struct {
	packages []string
	prefixes []string
	why      string
}{
	{
		[]string{"cni/kmesh-cni", "cni", "netns", "netns/failpoint", "bpf", "cni/optin", "cni/entry", "install/kmesh-cni-stub"},
		[]string{
			"k8s.io/", "google.golang.org/grpc", "google.golang.org/protobuf", "github.com/envoyproxy/",
			"github.com/cncf/", "github.com/prometheus/", "net/http",
		},
		"the plugin is started for every pod: it stays small and needs no API server",
	},
	{
		pure,
		[]string{"github.com/cilium/ebpf", "github.com/vishvananda/"},
		"a pure package touches no kernel",
	},
	{
		[]string{"helper/pods"},
		[]string{"k8s.io/"},
		"only helper/pods/kube speaks to the API server",
	},
	{
		[]string{"helper/controller", "helper/kmesh-helper"},
		[]string{"k8s.io/client-go/kubernetes", "k8s.io/api/apps"},
		"of Kubernetes' API only the core group is linked: all groups cost each node memory",
	},
	{
		[]string{"helper/kmeshctl"},
		[]string{"github.com/cilium/ebpf", "github.com/vishvananda/", "k8s.io/"},
		"kmeshctl asks the helper, or reads files: it touches neither the kernel nor the API server",
	},
	{
		[]string{"install"},
		[]string{"k8s.io/client-go", "github.com/cilium/ebpf", "github.com/vishvananda/"},
		"events are behind an interface, and the installer touches files only",
	},
}

// impure are the standard and near-standard packages that a pure one may not
// import itself (through others they come in anyway, with fmt).
var impure = []string{"os/exec", "syscall", "golang.org/x/sys/", "net/http", "plugin", "unsafe"}

// pkg is what `go list` says about a package of ours.
type pkg struct {
	Path    string   // below the module
	Imports []string // direct, of its non-test files
	Deps    []string // all of them
}

// lookup returns the packages that path may import, by its own row or by the row
// of the nearest folder above.
func lookup(table map[string][]string, path string) ([]string, bool) {
	if may, ok := table[path]; ok {
		return may, true
	}
	for dir := path; ; {
		if may, ok := table[dir+"/..."]; ok {
			return may, true
		}
		i := strings.LastIndexByte(dir, '/')
		if i < 0 {
			return nil, false
		}
		dir = dir[:i]
	}
}

// below says whether path is prefix itself or lies below it.
func below(path, prefix string) bool {
	return path == strings.TrimSuffix(prefix, "/") ||
		strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

// offences returns a sentence for everything in pkgs that the tables do not allow.
func offences(pkgs []pkg) []string {
	var out []string
	for _, p := range pkgs {
		may, ok := lookup(allowed, p.Path)
		if !ok {
			out = append(out, fmt.Sprintf("%s is not in the table of imports: add it to `allowed` in test/house, with what it may import", p.Path))
			continue
		}
		for _, imported := range p.Imports {
			own, ours := strings.CutPrefix(imported, module)
			if ours && !slices.Contains(may, own) && !slices.Contains(may, "...") {
				out = append(out, fmt.Sprintf("%s imports %s: it may import %v", p.Path, own, may))
			}
			if slices.Contains(pure, p.Path) {
				for _, prefix := range impure {
					if below(imported, prefix) {
						out = append(out, fmt.Sprintf("%s imports %s: it is pure", p.Path, imported))
					}
				}
			}
		}
		for _, rule := range forbidden {
			if !slices.Contains(rule.packages, p.Path) {
				continue
			}
			for _, prefix := range rule.prefixes {
				if i := slices.IndexFunc(p.Deps, func(dep string) bool { return below(dep, prefix) }); i >= 0 {
					out = append(out, fmt.Sprintf("%s links %s: %s", p.Path, p.Deps[i], rule.why))
				}
			}
		}
	}
	return out
}

func TestImportGraph(t *testing.T) {
	pkgs := listPackages(t)
	if len(pkgs) < 2 {
		t.Fatalf("go list found %d packages", len(pkgs))
	}
	for _, offence := range offences(pkgs) {
		t.Error(offence)
	}
}

func TestOffences(t *testing.T) {
	tests := []struct {
		name string
		pkg  pkg
		want string // part of the one offence; empty: none
	}{
		{"allowed", pkg{Path: "netns", Imports: []string{"fmt", "kmesh/bpf"}}, ""},
		{"tests are free", pkg{Path: "test/e2e/deep", Imports: []string{"kmesh/netns"}}, ""},
		{"not in the table", pkg{Path: "helper/newcomer"}, "add it to `allowed`"},
		{"a prefix is not a folder", pkg{Path: "testing"}, "add it to `allowed`"},
		{"the wrong way", pkg{Path: "bpf", Imports: []string{"kmesh/netns"}}, "bpf imports netns"},
		{"xds skips translate", pkg{Path: "helper/xds", Imports: []string{"kmesh/helper/publish"}}, "helper/xds imports helper/publish"},
		{"fat plugin", pkg{Path: "cni/kmesh-cni", Deps: []string{"fmt", "google.golang.org/grpc/codes"}}, "links google.golang.org/grpc/codes"},
		{"another module with that prefix", pkg{Path: "cni/kmesh-cni", Deps: []string{"google.golang.org/grpcfoo"}}, ""},
		{"pure but with BPF", pkg{Path: "helper/balance", Deps: []string{"github.com/cilium/ebpf/link"}}, "links github.com/cilium/ebpf/link"},
		{"pure but runs commands", pkg{Path: "helper/balance", Imports: []string{"os/exec"}}, "imports os/exec"},
		{"pure links what fmt links", pkg{Path: "helper/balance", Imports: []string{"fmt"}, Deps: []string{"syscall", "unsafe"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := offences([]pkg{tt.pkg})
			if tt.want == "" {
				if len(got) != 0 {
					t.Errorf("offences: %q, want none", got)
				}
				return
			}
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("offences: %q, want one with %q", got, tt.want)
			}
		})
	}
}
