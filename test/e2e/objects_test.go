// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
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
	var objects []*unstructured.Unstructured
	for docs := kubeyaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096); ; {
		var o unstructured.Unstructured
		err := docs.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			b.Fatalf("what was rendered is no YAML: %v", err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, &o)
		}
	}
}

// apply gives objects to the API server (server-side apply), which must know every field of them. As a dry run it does
// all but to keep them.
func (b *bed) apply(objects []*unstructured.Unstructured, dryRun bool) error {
	b.Helper()
	groups, err := restmapper.GetAPIGroupResources(b.n.Client.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client, err := dynamic.NewForConfig(b.n.Config)
	if err != nil {
		return err
	}
	opts := meta.PatchOptions{FieldManager: "e2e", FieldValidation: meta.FieldValidationStrict}
	if dryRun {
		opts.DryRun = []string{meta.DryRunAll}
	}
	for _, o := range objects {
		kind := o.GroupVersionKind()
		m, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return err
		}
		body, err := json.Marshal(o)
		if err != nil {
			return err
		}
		if _, err := client.Resource(m.Resource).Namespace(o.GetNamespace()).Patch(b.ctx, o.GetName(), types.ApplyPatchType, body, opts); err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, o.GetName(), err)
		}
		// What a controller would put there.
		if kind.Kind == "Namespace" && !dryRun {
			if err := b.n.EnsureNamespace(b.ctx, o.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
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
