// SPDX-License-Identifier: Apache-2.0

// Package control is a mesh's control plane on a test's node: istiod as it was released, with its certificate authority
// and its check of identities on, on an API server that is real too (package plane).
//
//	c := control.ForTest(t, n)
//	err := c.Apply(ctx, objects, false)                        // services, VirtualServices, whatever istiod knows
//	pod, err := c.AddPod(ctx, spec, control.PodOptions{})     // at the API server, and on the node
//	h, err := n.StartHelper(ctx, c.HelperArgs()...)
//	c.StopIstiod()
//
// Invariant: the helper has no more than it has on a cluster: the address, the root certificate, and a token of its own
// service account that is bound to its pod. What else is done here plays the kubelet, the controllers, or a user.
package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"kmesh/test/node"
	"kmesh/test/plane"
)

const remedy = "run make istiod, or test/istiod/setup.sh once"

const (
	// Addr is where istiod serves xDS and signs certificates, in the node's network namespace.
	Addr = "127.0.0.1:15012"
	// ServerName is the name in its certificate.
	ServerName = "istiod.istio-system.svc"
	// ClusterID is what istiod knows the cluster as.
	ClusterID = "Kubernetes"

	// HelperNamespace, HelperAccount and HelperPod are who the helper is to the API server and to istiod: as the
	// manifests have it.
	HelperNamespace = "kmesh-system"
	HelperAccount   = "kmesh"
	HelperPod       = "kmesh-node-1"

	namespace = "istio-system"
	webAddr   = "127.0.0.1:15080"

	// ServiceRange are the addresses of services.
	ServiceRange = "10.79.0.0/24"

	// startLimit is how long istiod may take; a busy machine takes ten times what an idle one does.
	startLimit = 2 * time.Minute
)

// Control is a control plane. It is not safe for use from several goroutines.
type Control struct {
	*plane.Plane
	// Roots, Token and Kubeconfig are the helper's files: what istiod's certificate leads to, its token for istiod, and
	// its way to the API server.
	Roots, Token, Kubeconfig string

	n      *node.Node
	parts  parts
	dir    string
	istiod *node.Process // nil while it is stopped
}

// New starts the API server, gives it what it must know of Istio's objects, starts istiod, and makes the helper's pod and
// token.
func New(ctx context.Context, n *node.Node) (*Control, error) {
	parts, err := findParts(ctx)
	if err != nil {
		return nil, err
	}
	p, err := plane.Start(ctx, plane.Options{
		Node: n, Programs: parts.kubernetes, Address: netip.MustParseAddr("127.0.0.1"), Port: 6443, ServiceRange: ServiceRange,
	})
	if err != nil {
		return nil, err
	}
	c := &Control{Plane: p, n: n, parts: parts, dir: filepath.Join(n.Dir, "istiod")}
	if err := c.build(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("starting a mesh's control plane: %w", err)
	}
	return c, nil
}

// parts are the folders that setup.sh made, and Kmesh's own manifests.
type parts struct{ kubernetes, istio, manifests string }

func findParts(ctx context.Context) (parts, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return parts{}, fmt.Errorf("where this module is: %w", err)
	}
	root := strings.TrimSpace(string(out))
	setup := filepath.Join(root, "test", "istiod", "setup.sh")
	if out, err = exec.CommandContext(ctx, setup, "--dir").Output(); err != nil {
		return parts{}, fmt.Errorf("%s --dir: %w", setup, err)
	}
	dirs := strings.Fields(string(out))
	if len(dirs) != 2 {
		return parts{}, fmt.Errorf("%s --dir says %q, want two folders", setup, out)
	}
	p := parts{kubernetes: dirs[0], istio: dirs[1], manifests: filepath.Join(root, "manifests", "base")}
	for _, path := range []string{
		filepath.Join(p.kubernetes, "kube-apiserver"), filepath.Join(p.kubernetes, "etcd"),
		filepath.Join(p.istio, "pilot-discovery"), filepath.Join(p.istio, "istio.yaml"), filepath.Join(p.istio, "gateway"),
	} {
		if _, err := os.Stat(path); err != nil {
			return parts{}, fmt.Errorf("a part of the control plane is missing: %w: %s", err, remedy)
		}
	}
	return p, nil
}

func (c *Control) build(ctx context.Context) error {
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return err
	}
	config, err := c.AdminConfig()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.adminPath(), config, 0o600); err != nil {
		return err
	}
	if err := c.define(ctx); err != nil {
		return err
	}
	for _, name := range []string{namespace, HelperNamespace} {
		if err := c.EnsureNamespace(ctx, name); err != nil {
			return err
		}
	}
	rbac, err := os.ReadFile(filepath.Join(c.parts.manifests, "rbac.yaml"))
	if err != nil {
		return err
	}
	objects, err := plane.Objects(rbac)
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, objects, false); err != nil {
		return err
	}
	if err := c.makeHelper(ctx); err != nil {
		return err
	}
	if err := c.StartIstiod(ctx); err != nil {
		return err
	}
	return c.writeRoots(ctx)
}

// adminPath is the kubeconfig of an administrator, which istiod uses.
func (c *Control) adminPath() string { return filepath.Join(c.dir, "kubeconfig") }

// define gives the API server the definitions of Istio's and of the Gateway API's objects, and waits until it serves them.
func (c *Control) define(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(c.parts.istio, "gateway", "*.yaml"))
	if err != nil {
		return err
	}
	var all []*unstructured.Unstructured
	for _, f := range append(files, filepath.Join(c.parts.istio, "istio.yaml")) {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		objects, err := plane.Objects(text)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, objects...)
	}
	all = slices.DeleteFunc(all, func(o *unstructured.Unstructured) bool { return o.GetKind() != "CustomResourceDefinition" })
	if err := c.Apply(ctx, all, false); err != nil {
		return err
	}
	want := map[string]bool{}
	for _, o := range all {
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
		want[group+" "+plural] = true
	}
	return Until(ctx, startLimit, "the API server does not serve all definitions", func(context.Context) error {
		_, lists, err := c.Client.Discovery().ServerGroupsAndResources()
		if err != nil {
			return err
		}
		missing := len(want)
		seen := map[string]bool{}
		for _, l := range lists {
			group, _, _ := strings.Cut(l.GroupVersion, "/")
			for _, r := range l.APIResources {
				if key := group + " " + r.Name; want[key] && !seen[key] {
					seen[key] = true
					missing--
				}
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d are missing", missing, len(want))
		}
		return nil
	})
}

// StartIstiod starts istiod, again if it was stopped, and waits until it is ready.
func (c *Control) StartIstiod(ctx context.Context) error {
	if c.istiod != nil {
		return errors.New("istiod runs already")
	}
	mesh := filepath.Join(c.dir, "mesh.yaml")
	if err := os.WriteFile(mesh, []byte("trustDomain: cluster.local\n"), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(c.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.parts.istio, "pilot-discovery"), "discovery",
		"--registries", "Kubernetes", "--kubeconfig", c.adminPath(), "--meshConfig", mesh,
		"--grpcAddr", "", "--secureGRPCAddr", Addr, "--httpAddr", webAddr, "--httpsAddr", "",
		"--monitoringAddr", "127.0.0.1:15014", "--ctrlz_port", "0", "--log_output_level", "default:info")
	cmd.Dir = c.dir // it keeps its certificates in its working directory
	cmd.Env = append(os.Environ(),
		"POD_NAME=istiod-0", "POD_NAMESPACE="+namespace, "CLUSTER_ID="+ClusterID, "PILOT_ENABLE_AMBIENT=true",
		"CA_TRUSTED_NODE_ACCOUNTS="+HelperNamespace+"/"+HelperAccount)
	cmd.Stdout, cmd.Stderr = log, log
	if c.istiod, err = c.n.StartCmd(cmd, "istiod"); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: c.n.DialContext, DisableKeepAlives: true}}
	err = Until(ctx, startLimit, "istiod was not ready", func(ctx context.Context) error {
		select {
		case <-c.istiod.Done():
			return fmt.Errorf("it ended: %w", errors.Join(c.istiod.Wait(), plane.ErrEnded))
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+webAddr+"/ready", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, plane.LogTail(c.LogPath(), 20))
	}
	return nil
}

// StopIstiod kills istiod. Whoever follows it sees its connections end.
func (c *Control) StopIstiod() {
	if c.istiod != nil {
		c.istiod.Kill()
		c.istiod = nil
	}
}

// LogPath is the file that istiod writes its log to, of all its lives.
func (c *Control) LogPath() string { return filepath.Join(c.n.Dir, "log", "istiod.log") }

// Close ends all.
func (c *Control) Close() {
	c.StopIstiod()
	c.Stop()
}

// TB is what ForTest needs of a *testing.T.
type TB interface {
	node.TB
	Context() context.Context
	Failed() bool
}

// ForTest makes a control plane that is ended when the test ends; a test that fails shows the end of each log.
func ForTest(t TB, n *node.Node) *Control {
	t.Helper()
	began := time.Now()
	c, err := New(t.Context(), n)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Logf("etcd, kube-apiserver and istiod are there after %s", time.Since(began).Round(10*time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"etcd", "kube-apiserver", "istiod"} {
				t.Logf("%s", plane.LogTail(filepath.Join(n.Dir, "log", name+".log"), 20))
			}
		}
		c.Close()
	})
	return c
}

// Until asks every 20 ms until the answer is nil, and gives the last one when the time is over.
func Until(ctx context.Context, limit time.Duration, what string, ask func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := ask(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s, within %s: %w", what, limit, last)
		case <-tick.C:
		}
	}
}
