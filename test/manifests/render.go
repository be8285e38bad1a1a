// SPDX-License-Identifier: Apache-2.0

// Package manifests renders what manifests/ installs, as Helm and kustomize themselves do,
// and holds it to its promises: nothing privileged, every value in use, both ways the same.
//
// It is a module of its own, so that Helm and what it needs are not among ours. The
// invariant: nothing here reads a template or a kustomization by itself.
package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Release is what Helm calls an installation of the chart.
type Release struct{ Name, Namespace string }

// Default is the release that the kustomize base is the same as.
var Default = Release{Name: "kmesh", Namespace: "kmesh-system"}

// Chart renders the chart in dir as `helm template` does, values checked against its schema.
func Chart(dir string, r Release, values map[string]any) ([]byte, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("chart: %w", err)
	}
	if values == nil {
		values = map[string]any{}
	}
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: r.Name, Namespace: r.Namespace, Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return nil, fmt.Errorf("chart: %w", err)
	}
	var out bytes.Buffer
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(files[name]) != "" {
			fmt.Fprintf(&out, "---\n# %s\n%s\n", name, strings.TrimSpace(files[name]))
		}
	}
	return out.Bytes(), nil
}

// Base builds a kustomization as `kubectl kustomize` does.
func Base(dir string) ([]byte, error) {
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("kustomize: %w", err)
	}
	return all.AsYaml()
}

// Objects decodes rendered YAML into Kubernetes' own types. A field that they do not have is an error.
func Objects(rendered []byte) ([]runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for docs := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(rendered))); ; {
		doc := make([]byte, len(rendered)+1)
		n, err := docs.Read(doc)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(doc[:n])) == 0 {
			continue
		}
		object, _, err := decoder.Decode(doc[:n], nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in:\n%s", err, doc[:n])
		}
		out = append(out, object)
	}
}
