// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"kmesh/test/plane"
)

// chart is what Helm installs with these values.
func (b *bed) chart(values map[string]any) []*unstructured.Unstructured {
	b.Helper()
	raw, err := yaml.Marshal(values)
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "values.yaml")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		b.Fatal(err)
	}
	return b.render("-values", file)
}

// base is what kustomize installs.
func (b *bed) base() []*unstructured.Unstructured {
	b.Helper()
	return b.render("-base")
}

// render runs the command that has Helm and kustomize in it, which are not of this module.
func (b *bed) render(args ...string) []*unstructured.Unstructured {
	b.Helper()
	cmd := exec.CommandContext(b.ctx, "go", append([]string{"run", "./render"}, args...)...)
	cmd.Dir = "../manifests"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("rendering the manifests: %v\n%s", err, stderr.String())
	}
	objects, err := plane.Objects(out)
	if err != nil {
		b.Fatalf("what was rendered: %v", err)
	}
	return objects
}

// daemonPod is the pod that the controller of DaemonSets would make of the one among some objects, and the scheduler put
// on the node. Its containers, their security context and its volumes are the manifest's, untouched.
func (b *bed) daemonPod(objects []*unstructured.Unstructured) *core.Pod {
	b.Helper()
	for _, o := range objects {
		if o.GetKind() != "DaemonSet" {
			continue
		}
		var ds apps.DaemonSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &ds, true); err != nil {
			b.Fatal(err)
		}
		p := &core.Pod{ObjectMeta: ds.Spec.Template.ObjectMeta, Spec: ds.Spec.Template.Spec}
		p.Name, p.Namespace, p.Spec.NodeName = ds.Name+"-"+b.n.Name, ds.Namespace, b.n.Name
		return p
	}
	b.Fatal("no DaemonSet among the objects")
	return nil
}
