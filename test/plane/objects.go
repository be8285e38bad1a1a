// SPDX-License-Identifier: Apache-2.0

package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Objects reads the objects of a YAML stream.
func Objects(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for docs := kubeyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var o unstructured.Unstructured
		err := docs.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading objects: %w", err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, &o)
		}
	}
}

// Apply gives objects to the API server (server-side apply), which must know every field of them. As a dry run it does
// all but to keep them.
func (p *Plane) Apply(ctx context.Context, objects []*unstructured.Unstructured, dryRun bool) error {
	groups, err := restmapper.GetAPIGroupResources(p.Client.Discovery())
	if err != nil {
		return err
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	client, err := dynamic.NewForConfig(p.Config)
	if err != nil {
		return err
	}
	opts := meta.PatchOptions{FieldManager: "test", FieldValidation: meta.FieldValidationStrict}
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
		if _, err := client.Resource(m.Resource).Namespace(o.GetNamespace()).Patch(ctx, o.GetName(), types.ApplyPatchType, body, opts); err != nil {
			return fmt.Errorf("%s %s: %w", kind.Kind, o.GetName(), err)
		}
		// What a controller would put there.
		if kind.Kind == "Namespace" && !dryRun {
			if err := p.EnsureNamespace(ctx, o.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
}
