// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	auth "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	kerrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kmesh/test/node"
)

// NodeName is the node's name at the API server.
const NodeName = "node-1"

// helperIP is the helper's pod's address. It has no interface: the helper runs in the node's own network namespace.
var helperIP = netip.MustParseAddr("10.78.9.1")

// PodOptions are what the API server has of a pod, and a test's node has not.
type PodOptions struct {
	Labels map[string]string
	// Account is the pod's service account, which is made if need be. Default "default".
	Account string
}

// makeHelper makes the node and the helper's pod on it, and asks for a token as the kubelet does for a pod that has a
// projected volume.
func (c *Control) makeHelper(ctx context.Context) error {
	n := &core.Node{ObjectMeta: meta.ObjectMeta{Name: NodeName, Labels: map[string]string{
		core.LabelTopologyRegion: "r1", core.LabelTopologyZone: "z1",
	}}}
	if _, err := c.Client.CoreV1().Nodes().Create(ctx, n, meta.CreateOptions{}); err != nil {
		return fmt.Errorf("making the node: %w", err)
	}
	p, err := c.makePod(ctx, meta.ObjectMeta{Namespace: HelperNamespace, Name: HelperPod}, HelperAccount)
	if err != nil {
		return err
	}
	if err := c.setReady(ctx, p, helperIP); err != nil {
		return err
	}
	token, err := c.RequestToken(ctx, p, "istio-ca")
	if err != nil {
		return err
	}
	own, err := c.RequestToken(ctx, p)
	if err != nil {
		return err
	}
	config, err := c.TokenConfig(own)
	if err != nil {
		return err
	}
	c.Token, c.Kubeconfig, c.Roots = filepath.Join(c.dir, "token"), filepath.Join(c.dir, "helper-kubeconfig"), filepath.Join(c.dir, "root.pem")
	return errors.Join(os.WriteFile(c.Token, []byte(token), 0o600), os.WriteFile(c.Kubeconfig, config, 0o600))
}

// AddPod makes a pod as a cluster does: at the API server, on the node (CNI ADD), and then the API server is told its
// address and that it is ready.
func (c *Control) AddPod(ctx context.Context, spec node.PodSpec, opts PodOptions) (*node.Pod, error) {
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if opts.Account == "" {
		opts.Account = "default"
	}
	about := meta.ObjectMeta{Namespace: spec.Namespace, Name: spec.Name, Labels: opts.Labels, Annotations: spec.Annotations}
	o, err := c.makePod(ctx, about, opts.Account)
	if err != nil {
		return nil, err
	}
	spec.UID = string(o.UID)
	p, err := c.n.AddPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	return p, c.setReady(ctx, o, p.IP4)
}

func (c *Control) makePod(ctx context.Context, about meta.ObjectMeta, account string) (*core.Pod, error) {
	v1 := c.Client.CoreV1()
	if err := c.EnsureNamespace(ctx, about.Namespace); err != nil {
		return nil, err
	}
	_, err := v1.ServiceAccounts(about.Namespace).Create(ctx, &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Name: account}}, meta.CreateOptions{})
	if err != nil && !kerrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("making a service account: %w", err)
	}
	p, err := v1.Pods(about.Namespace).Create(ctx, &core.Pod{
		ObjectMeta: about,
		Spec: core.PodSpec{
			NodeName: NodeName, ServiceAccountName: account,
			Containers: []core.Container{{Name: "app", Image: "none"}},
		},
	}, meta.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("making pod %s: %w", about.Name, err)
	}
	return p, nil
}

func (c *Control) setReady(ctx context.Context, p *core.Pod, ip netip.Addr) error {
	p.Status.Phase = core.PodRunning
	p.Status.PodIP, p.Status.PodIPs = ip.String(), []core.PodIP{{IP: ip.String()}}
	p.Status.Conditions = []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue}}
	if _, err := c.Client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("telling the state of pod %s: %w", p.Name, err)
	}
	return nil
}

// Label sets the labels of a pod at the API server.
func (c *Control) Label(ctx context.Context, p *node.Pod, labels map[string]string) error {
	o, err := c.Client.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, meta.GetOptions{})
	if err != nil {
		return err
	}
	o.Labels = labels
	_, err = c.Client.CoreV1().Pods(p.Namespace).Update(ctx, o, meta.UpdateOptions{})
	return err
}

// RequestToken asks for a token of a pod's service account that is bound to the pod; without audiences it is for the API
// server.
func (c *Control) RequestToken(ctx context.Context, p *core.Pod, audiences ...string) (string, error) {
	seconds := int64(3600)
	r, err := c.Client.CoreV1().ServiceAccounts(p.Namespace).CreateToken(ctx, p.Spec.ServiceAccountName, &auth.TokenRequest{Spec: auth.TokenRequestSpec{
		Audiences: audiences, ExpirationSeconds: &seconds,
		BoundObjectRef: &auth.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}, meta.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("requesting a token for %s/%s: %w", p.Namespace, p.Spec.ServiceAccountName, err)
	}
	return r.Status.Token, nil
}

// writeRoots waits for the root certificate, which istiod puts into every namespace.
func (c *Control) writeRoots(ctx context.Context) error {
	return Until(ctx, startLimit, "istiod has not published its root certificate", func(ctx context.Context) error {
		m, err := c.Client.CoreV1().ConfigMaps(HelperNamespace).Get(ctx, "istio-ca-root-cert", meta.GetOptions{})
		if err != nil {
			return err
		}
		return os.WriteFile(c.Roots, []byte(m.Data["root-cert.pem"]), 0o600)
	})
}

// NodeID is what a client of istiod announces to be a pod.
func NodeID(namespace, name string, ip netip.Addr) string {
	return "sidecar~" + ip.String() + "~" + name + "." + namespace + "~" + namespace + ".svc.cluster.local"
}

// HelperID is what the helper announces: its own pod.
func HelperID() string { return NodeID(HelperNamespace, HelperPod, helperIP) }

// HelperMetadata are what istiod has to know of the node beside its id.
func HelperMetadata() map[string]string {
	return map[string]string{"NAMESPACE": HelperNamespace, "CLUSTER_ID": ClusterID, "ISTIO_VERSION": "1.31.0"}
}

// HelperArgs are the helper's flags that lead to istiod.
func (c *Control) HelperArgs() []string {
	var metadata []string
	for _, key := range []string{"NAMESPACE", "CLUSTER_ID", "ISTIO_VERSION"} {
		metadata = append(metadata, key+"="+HelperMetadata()[key])
	}
	return []string{
		"--xds-server", Addr, "--xds-roots", c.Roots, "--xds-token", c.Token, "--xds-server-name", ServerName,
		"--xds-cluster-id", ClusterID, "--node-id", HelperID(), "--node-metadata", strings.Join(metadata, ","),
	}
}
