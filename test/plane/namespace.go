// SPDX-License-Identifier: Apache-2.0

package plane

import (
	"context"
	"fmt"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EnsureNamespace makes a namespace, and what controllers put into each: the account "default" and the authority that
// the API server's certificate is checked against.
func (p *Plane) EnsureNamespace(ctx context.Context, name string) error {
	v1 := p.Client.CoreV1()
	_, nerr := v1.Namespaces().Create(ctx, &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: name}}, meta.CreateOptions{})
	_, aerr := v1.ServiceAccounts(name).Create(ctx, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: "default"}}, meta.CreateOptions{})
	_, cerr := v1.ConfigMaps(name).Create(ctx, &core.ConfigMap{
		ObjectMeta: meta.ObjectMeta{Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": string(p.CA)},
	}, meta.CreateOptions{})
	for _, err := range []error{nerr, aerr, cerr} {
		if err != nil && !errors.IsAlreadyExists(err) {
			return fmt.Errorf("making namespace %s: %w", name, err)
		}
	}
	return nil
}
