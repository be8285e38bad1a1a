// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"kmesh/test/node"
	"kmesh/test/oci"
	"kmesh/test/plane"
)

const (
	criSocket = "/run/containerd/containerd.sock"
	// Image is the test's own: the sandbox's, and that of pods that serve and ask (command app).
	Image = "e2e.test/app:1"
)

func (n *Node) startContainerd(ctx context.Context) error {
	// In debug mode it says when it called the network's plugins, and when they had answered (Adds).
	config := fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
imports = []

[grpc]
  address = %q

[debug]
  level = "debug"
  format = "json"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %q

[plugins."io.containerd.nri.v1.nri"]
  disable = true
`, criSocket, Image, n.parts.runc)
	path := filepath.Join(n.Dir, "containerd.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	n.boot.containerd, err = n.startDaemon("containerd", filepath.Join(n.parts.containerd, "containerd"), "--config", path)
	if err != nil {
		return err
	}
	err = until(ctx, bootLimit, "it did not answer", func(ctx context.Context) error {
		select {
		case <-n.boot.containerd.Done():
			return errors.Join(n.boot.containerd.Wait(), plane.ErrEnded)
		default:
		}
		_, err := n.Ctr(ctx, "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.logTail("containerd", 10))
	}
	return n.importImages(ctx)
}

func (n *Node) importImages(ctx context.Context) error {
	own := filepath.Join(n.Dir, "app.tar")
	if _, err := os.Stat(own); err != nil {
		dir, err := node.Programs(ctx, "app")
		if err != nil {
			return err
		}
		if err := oci.WriteImage(own, Image, filepath.Join(dir, "app")); err != nil {
			return err
		}
	}
	for _, image := range append([]string{own}, n.opts.Images...) {
		if _, err := n.Ctr(ctx, "images", "import", image); err != nil {
			return err
		}
	}
	return nil
}

// Ctr runs containerd's ctr inside the machine, in the namespace of Kubernetes.
func (n *Node) Ctr(ctx context.Context, args ...string) ([]byte, error) {
	ctr := filepath.Join(n.parts.containerd, "ctr")
	out, err := n.Command(ctx, ctr, append([]string{"--address", criSocket, "--namespace", "k8s.io"}, args...)...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("ctr %s: %w: %s", args[0], err, out)
	}
	return out, nil
}
