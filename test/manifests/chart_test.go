// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "../../manifests/chart"
	baseDir  = "../../manifests/base"
)

// values are nested maps of "a.b.c": value.
func values(flat map[string]any) map[string]any {
	out := map[string]any{}
	for path, value := range flat {
		m := out
		parts := strings.Split(path, ".")
		for _, p := range parts[:len(parts)-1] {
			if m[p] == nil {
				m[p] = map[string]any{}
			}
			m = m[p].(map[string]any)
		}
		m[parts[len(parts)-1]] = value
	}
	return out
}

func render(t *testing.T, flat map[string]any) []byte {
	t.Helper()
	out, err := Chart(chartDir, Default, values(flat))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func objects(t *testing.T, rendered []byte) []runtime.Object {
	t.Helper()
	out, err := Objects(rendered)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func daemonSet(t *testing.T, all []runtime.Object) *appsv1.DaemonSet {
	t.Helper()
	for _, o := range all {
		if ds, ok := o.(*appsv1.DaemonSet); ok {
			return ds
		}
	}
	t.Fatal("no DaemonSet is rendered")
	return nil
}

// files is a mesh in a file.
var files = map[string]any{"mesh.yaml": "version_info: \"1\"\nresources: []\n"}

// TestLint as helm lint does. That a chart has no icon is no fault.
func TestLint(t *testing.T) {
	for name, flat := range map[string]map[string]any{
		"defaults": nil, "files": {"xds.address": "", "xds.files": files},
	} {
		for _, m := range lint.RunAll(chartDir, values(flat), Default.Namespace).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// TestBaseIsTheChart with its default values: both install the same, but for the namespace,
// which Helm makes itself.
func TestBaseIsTheChart(t *testing.T) {
	base, err := Base(baseDir)
	if err != nil {
		t.Fatal(err)
	}
	byName := func(rendered []byte) map[string]string {
		out := map[string]string{}
		for _, o := range objects(t, rendered) {
			m, err := meta.Accessor(o)
			if err != nil {
				t.Fatal(err)
			}
			text, err := yaml.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("%s %s/%s", o.GetObjectKind().GroupVersionKind().Kind, m.GetNamespace(), m.GetName())] = string(text)
		}
		return out
	}
	want, got := byName(base), byName(render(t, nil))
	const own = "Namespace /kmesh-system"
	if want[own] == "" {
		t.Errorf("the base has no %s", own)
	}
	delete(want, own)
	if have, all := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(have, all) {
		t.Fatalf("the chart has %q, the base %q", have, all)
	}
	for name := range want {
		w, g := strings.Split(want[name], "\n"), strings.Split(got[name], "\n")
		for i := range min(len(w), len(g)) {
			if w[i] != g[i] {
				t.Errorf("%s, line %d: the base has %q, the chart %q", name, i, w[i], g[i])
				break
			}
		}
		if len(w) != len(g) {
			t.Errorf("%s: the base has %d lines, the chart %d", name, len(w), len(g))
		}
	}
}

// others has another good value for each value of the chart.
var others = map[string]any{
	"xds.address":               "xds.example:18000",
	"xds.files":                 files,
	"xds.nodeId":                "$(NODE_NAME)",
	"xds.istio.enabled":         true,
	"xds.istio.trustDomain":     "mesh.example",
	"xds.istio.clusterId":       "east",
	"xds.istio.rootsConfigMap":  "other-roots",
	"xds.istio.maxScopes":       8,
	"enroll.onUnready":          "pass",
	"unenforceable.actions":     "refuse",
	"policy.unenforced":         "refuse-enrolment",
	"limits.flowsPerPod":        100000,
	"cni.mode":                  "in-place",
	"cni.binDir":                "/usr/libexec/cni",
	"cni.confDir":               "/etc/cni/other.d",
	"cni.criSocket":             "/run/crio/crio.sock",
	"platform":                  "k3s",
	"metrics.bind":              "0.0.0.0:15021",
	"metrics.installBind":       "[::1]:15023",
	"image.repository":          "registry.example/mesh/kmesh",
	"image.tag":                 "v1",
	"image.digest":              "sha256:" + strings.Repeat("0", 64),
	"image.pullPolicy":          "Always",
	"image.pullSecrets":         []any{"registry"},
	"resources.helper.requests": map[string]any{"cpu": "2"},
	"resources.helper.limits":   map[string]any{"memory": "2Gi"},
	"resources.install.requests": map[string]any{
		"cpu": "20m",
	},
	"resources.install.limits": map[string]any{"memory": "64Mi"},
}

// leaves are the values of values.yaml by path; a map that may have any keys is one.
func leaves(prefix string, v any, out map[string]bool) {
	m, ok := v.(map[string]any)
	if _, whole := others[prefix]; !ok || whole {
		out[prefix] = true
		return
	}
	for k, inner := range m {
		leaves(strings.TrimPrefix(prefix+"."+k, "."), inner, out)
	}
}

// with is a value among those without which it means nothing.
func with(path string, value any) map[string]any {
	flat := map[string]any{path: value}
	switch {
	case path == "xds.files":
		flat["xds.address"] = ""
	case strings.HasPrefix(path, "xds.istio."):
		flat["xds.istio.enabled"] = true
	}
	return flat
}

// TestEveryValueReaches something: a change of it changes what is rendered, and what is rendered still is good.
func TestEveryValueReaches(t *testing.T) {
	raw, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := yaml.Unmarshal(raw, &defaults); err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	leaves("", defaults, all)
	for path := range all {
		value, ok := others[path]
		if !ok {
			t.Errorf("%s: this test knows no other value for it", path)
			continue
		}
		flat := with(path, value)
		rest := maps.Clone(flat)
		delete(rest, path)
		if path == "xds.files" {
			rest = nil
		}
		out := render(t, flat)
		if bytes.Equal(out, render(t, rest)) {
			t.Errorf("%s: %v changes nothing", path, value)
		}
		objects(t, out)
	}
	for path := range others {
		if !all[path] {
			t.Errorf("%s is no value of the chart", path)
		}
	}
}

// TestWhereValuesGo looks at the very place.
func TestWhereValuesGo(t *testing.T) {
	arg := func(container, want string) func(*corev1.PodSpec) string {
		return func(p *corev1.PodSpec) string {
			for _, c := range slices.Concat(p.InitContainers, p.Containers) {
				if strings.HasPrefix(c.Name, container) && !slices.Contains(slices.Concat(c.Command, c.Args), want) {
					return fmt.Sprintf("container %s has the arguments %q %q", c.Name, c.Command, c.Args)
				}
			}
			return ""
		}
	}
	// mounted: volume is the node's folder, at the same place in the installer's containers.
	mounted := func(volume, path string) func(*corev1.PodSpec) string {
		return func(p *corev1.PodSpec) string {
			for _, v := range p.Volumes {
				if v.Name == volume && v.HostPath.Path != path {
					return fmt.Sprintf("volume %s is %s", volume, v.HostPath.Path)
				}
			}
			for _, c := range []corev1.Container{p.InitContainers[0], p.Containers[0]} {
				i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume })
				if i < 0 || c.VolumeMounts[i].MountPath != path {
					return fmt.Sprintf("container %s has the mounts %+v", c.Name, c.VolumeMounts)
				}
			}
			return ""
		}
	}
	probed := func(container int, host string, port int) func(*corev1.PodSpec) string {
		return func(p *corev1.PodSpec) string {
			for _, probe := range []*corev1.Probe{p.Containers[container].ReadinessProbe, p.Containers[container].LivenessProbe} {
				if h := probe.HTTPGet; h.Host != host || h.Port.IntValue() != port {
					return fmt.Sprintf("a probe asks %s:%s", h.Host, h.Port.String())
				}
			}
			return ""
		}
	}
	tests := []struct {
		name string
		flat map[string]any
		want []func(*corev1.PodSpec) string
	}{
		{"server", map[string]any{"xds.address": "[fd00::1]:15010"}, []func(*corev1.PodSpec) string{arg("helper", "--xds-server=[fd00::1]:15010")}},
		{"files", map[string]any{"xds.address": "", "xds.files": files}, []func(*corev1.PodSpec) string{arg("helper", "--xds-dir=/etc/kmesh/xds")}},
		{"node id", map[string]any{"xds.nodeId": "a: {b}"}, []func(*corev1.PodSpec) string{arg("helper", "--node-id=a: {b}")}},
		{"istio", map[string]any{"xds.address": "istiod.istio-system.svc:15012", "xds.istio.enabled": true, "xds.istio.clusterId": "east", "xds.istio.maxScopes": 9, "xds.istio.rootsConfigMap": "roots"}, []func(*corev1.PodSpec) string{
			arg("helper", "--xds-scopes=pods"), arg("helper", "--max-scopes=9"), arg("helper", "--xds-cluster-id=east"), arg("helper", "--trust-domain=cluster.local"),
			arg("helper", "--node-metadata=NAMESPACE=$(POD_NAMESPACE),CLUSTER_ID=east"),
			arg("helper", "--xds-token=/var/run/secrets/tokens/istio-token"), arg("helper", "--xds-roots=/var/run/secrets/istio/root-cert.pem"),
			func(p *corev1.PodSpec) string {
				for _, v := range p.Volumes {
					if v.Name == "istio-roots" && v.ConfigMap.Name != "roots" || v.Name == "istio-token" && v.Projected.Sources[0].ServiceAccountToken.Audience != "istio-ca" {
						return fmt.Sprintf("volume %+v", v)
					}
				}
				for volume, at := range map[string]string{"istio-token": "/var/run/secrets/tokens", "istio-roots": "/var/run/secrets/istio"} {
					if !slices.ContainsFunc(p.Containers[1].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume && m.MountPath == at && m.ReadOnly }) {
						return fmt.Sprintf("%s is not mounted at %s, to be read only", volume, at)
					}
				}
				return ""
			},
		}},
		{"unready", map[string]any{"enroll.onUnready": "pass"}, []func(*corev1.PodSpec) string{arg("install", "--on-unready=pass"), arg("plugin", "--on-unready=pass")}},
		{"unenforceable", map[string]any{"unenforceable.actions": "refuse"}, []func(*corev1.PodSpec) string{arg("helper", "--unenforceable-actions=refuse")}},
		{"unenforced", map[string]any{"policy.unenforced": "refuse-enrolment"}, []func(*corev1.PodSpec) string{arg("helper", "--policy-unenforced=refuse-enrolment")}},
		{"flows", map[string]any{"limits.flowsPerPod": 1000000}, []func(*corev1.PodSpec) string{arg("helper", "--flows-per-pod=1000000")}},
		{"mode", map[string]any{"cni.mode": "drop-in"}, []func(*corev1.PodSpec) string{arg("install", "--mode=drop-in"), arg("plugin", "--mode=drop-in")}},
		{"platform", map[string]any{"platform": "k3s"}, []func(*corev1.PodSpec) string{
			arg("install", "--platform=k3s"), mounted("cni-bin", "/var/lib/rancher/k3s/data/cni"),
			mounted("cni-conf", "/var/lib/rancher/k3s/agent/etc/cni/net.d"), mounted("runtime", "/run/k3s/containerd"),
			arg("install", "--cri-socket=/run/k3s/containerd/containerd.sock"),
		}},
		{"folders", map[string]any{"platform": "k3s", "cni.binDir": "/opt/bin", "cni.confDir": "/etc/net.d", "cni.criSocket": "/run/other/sock"}, []func(*corev1.PodSpec) string{
			arg("install", "--bin-dir=/opt/bin"), arg("plugin", "--conf-dir=/etc/net.d"),
			mounted("cni-bin", "/opt/bin"), mounted("cni-conf", "/etc/net.d"), mounted("runtime", "/run/other"), arg("install", "--cri-socket=/run/other/sock"),
		}},
		{"no socket", map[string]any{"cni.criSocket": "none"}, []func(*corev1.PodSpec) string{arg("install", "--cri-socket=none"), func(p *corev1.PodSpec) string {
			if slices.ContainsFunc(p.Volumes, func(v corev1.Volume) bool { return v.Name == "runtime" }) {
				return "the runtime's folder is mounted"
			}
			return ""
		}}},
		{"metrics", map[string]any{"metrics.bind": "127.0.0.1:9000"}, []func(*corev1.PodSpec) string{arg("helper", "--metrics=127.0.0.1:9000"), probed(1, "127.0.0.1", 9000)}},
		{"metrics to all", map[string]any{"metrics.bind": "0.0.0.0:9000"}, []func(*corev1.PodSpec) string{arg("helper", "--metrics=0.0.0.0:9000"), probed(1, "127.0.0.1", 9000)}},
		{"metrics to all, short", map[string]any{"metrics.bind": ":9000"}, []func(*corev1.PodSpec) string{probed(1, "127.0.0.1", 9000)}},
		{"metrics on IPv6", map[string]any{"metrics.bind": "[::]:9000"}, []func(*corev1.PodSpec) string{arg("helper", "--metrics=[::]:9000"), probed(1, "::1", 9000)}},
		{"installer's", map[string]any{"metrics.installBind": "[fd00::1]:9001"}, []func(*corev1.PodSpec) string{arg("install", "--listen=[fd00::1]:9001"), probed(0, "fd00::1", 9001)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pod := daemonSet(t, objects(t, render(t, tt.flat))).Spec.Template.Spec
			for _, want := range tt.want {
				if fault := want(&pod); fault != "" {
					t.Error(fault)
				}
			}
		})
	}
}

// TestFilesBecomeTheMesh, byte for byte.
func TestFilesBecomeTheMesh(t *testing.T) {
	awkward := map[string]any{"a.yaml": "x: \"{{ .Values }}\"\n# \\ ' \"\t\u00e9\n", "b.json": `{"a": 1}`}
	for _, o := range objects(t, render(t, map[string]any{"xds.address": "", "xds.files": awkward})) {
		if m, ok := o.(*corev1.ConfigMap); ok {
			got, want := map[string]any{}, awkward
			for k, v := range m.Data {
				got[k] = v
			}
			if !maps.Equal(got, want) {
				t.Errorf("the ConfigMap has %q, want %q", got, want)
			}
			return
		}
	}
	t.Error("no ConfigMap is rendered")
}

// TestWrongValuesAreRefused with a message that names the value.
func TestWrongValuesAreRefused(t *testing.T) {
	tests := []struct {
		path  string
		value any
		says  []string
	}{
		{"xds.address", "istiod", []string{"xds/address", "does not match pattern"}},
		{"xds.address", "http://istiod:15010", []string{"xds/address"}},
		{"xds.address", "", []string{"neither xds.address nor xds.files is set"}},
		{"xds.files", files, []string{"xds.files and xds.address are both set"}},
		{"xds.files", map[string]any{"mesh.txt": "x"}, []string{"xds/files", "mesh.txt"}},
		{"xds.files", map[string]any{"../x.yaml": "x"}, []string{"xds/files"}},
		{"enroll.onUnready", "maybe", []string{"enroll/onUnready", "'wait', 'pass'"}},
		{"limits.flowsPerPod", 0, []string{"limits/flowsPerPod", "minimum"}},
		{"limits.flowsPerPod", "many", []string{"limits/flowsPerPod", "want integer"}},
		{"cni.mode", "overlay", []string{"cni/mode", "'auto', 'drop-in', 'in-place'"}},
		{"cni.binDir", "opt/cni", []string{"cni/binDir"}},
		{"cni.confDir", "/etc/../x; rm -rf", []string{"cni/confDir"}},
		{"cni.criSocket", "unix:///run/x", []string{"cni/criSocket"}},
		{"platform", "windows", []string{"platform", "'openshift'"}},
		{"metrics.bind", "15020", []string{"metrics/bind"}},
		{"metrics.bind", "localhost:15020", []string{"metrics/bind"}},
		{"image.digest", "sha256:beef", []string{"image/digest"}},
		{"image.pullPolicy", "Sometimes", []string{"image/pullPolicy"}},
		{"resources.helper.limits", map[string]any{"memory": "much"}, []string{"resources/helper/limits/memory"}},
		{"policy.unenforced", "refuse", []string{"policy/unenforced", "'report', 'refuse-enrolment'"}},
		{"policy.enforced", "report", []string{"policy", "enforced"}},
		{"unenforceable.actions", "ignore", []string{"unenforceable/actions", "'serve', 'refuse'"}},
		{"xds.istio.clusterId", "", []string{"xds/istio/clusterId"}},
		{"xds.istio.trustDomain", "spiffe://x", []string{"xds/istio/trustDomain"}},
		{"xds.istio.maxScopes", 0, []string{"xds/istio/maxScopes", "minimum"}},
		{"xds.adress", "x:1", []string{"xds", "adress"}},
	}
	for _, tt := range tests {
		text, _ := json.Marshal(tt.value)
		_, err := Chart(chartDir, Default, values(map[string]any{tt.path: tt.value}))
		if err == nil {
			t.Errorf("%s=%s is taken", tt.path, text)
			continue
		}
		for _, want := range tt.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s=%s: %v: does not say %q", tt.path, text, err, want)
			}
		}
	}
}
