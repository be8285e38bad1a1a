// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"maps"
	"slices"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The API server takes the manifests as they are, and knows every field of them.
func TestServerTakesManifests(t *testing.T) {
	b := newBed(t)
	files := map[string]any{"xds": map[string]any{"address": "", "files": map[string]any{"mesh.yaml": b.mesh("10.78.0.2", "10.78.0.3")}}}
	sources := map[string][]*unstructured.Unstructured{
		"base": b.base(), "chart": b.chart(nil), "chart with files": b.chart(files), "chart on GKE": b.chart(map[string]any{"platform": "gke"}),
	}
	for _, name := range slices.Sorted(maps.Keys(sources)) { // the base first: it has the namespace
		objects := sources[name]
		// A dry run keeps nothing, not even the namespace that the others are in.
		for _, o := range objects {
			if o.GetKind() == "Namespace" {
				if err := b.n.Apply(b.ctx, []*unstructured.Unstructured{o}, false); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := b.n.Apply(b.ctx, objects, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		pod := b.daemonPod(objects)
		if _, err := b.n.Client.CoreV1().ServiceAccounts(pod.Namespace).Get(b.ctx, pod.Spec.ServiceAccountName, meta.GetOptions{}); !errors.IsNotFound(err) {
			t.Errorf("%s: the dry run left its account (%v)", name, err)
		}
		// What it asks of a node is no more than it says: it is in a namespace that lets everything pass, so nobody else
		// would tell.
		for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
			checkRestricted(t, name, c)
		}
	}
	// A field that there is not is refused: the dry run can fail.
	wrong := sources["base"][0].DeepCopy()
	wrong.Object["specc"] = map[string]any{}
	if err := b.n.Apply(b.ctx, []*unstructured.Unstructured{wrong}, true); err == nil {
		t.Error("an object with a field that there is not was taken")
	}
}

func checkRestricted(t *testing.T, source string, c core.Container) {
	t.Helper()
	s := c.SecurityContext
	if s == nil || s.Privileged != nil && *s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
		t.Errorf("%s: container %s has the security context %+v: want it unprivileged, without escalation, on a read-only root, with all capabilities dropped", source, c.Name, s)
	}
}
