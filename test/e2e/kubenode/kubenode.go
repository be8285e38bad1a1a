// SPDX-License-Identifier: Apache-2.0

// Package kubenode is a real Kubernetes node inside one machine: etcd and kube-apiserver beside it, and containerd, runc
// and the kubelet in mount, pid, uts and ipc namespaces of their own, on the network namespace, cgroup and bpf file
// system of a node of package node.
//
//	func TestMain(m *testing.M) { kubenode.Main(m) }
//	n := kubenode.ForTest(t, kubenode.Options{})
//	pod, err := n.Client.CoreV1().Pods("default").Create(ctx, ...)   // with n.Name as its nodeName
//	err = n.Reboot(ctx)                                              // the API server stays, the disk stays
//
// Inside, everything is where it is on any node: /etc/cni/net.d, /opt/cni/bin, /run/kmesh, /var/lib/kmesh,
// /sys/fs/bpf. Outside, nothing of it is seen but through the node's own folder.
//
// Invariant: nothing stands in for Kubernetes. There is no scheduler and no controller manager, so a test gives its pods
// a nodeName and its namespaces what a controller would put there (EnsureNamespace); all else is what the released
// programs do. Close ends every process and proves that nothing is left, as package node does.
package kubenode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/test/node"
	"kmesh/test/plane"
)

const remedy = "run make e2e, or test/e2e/setup.sh once"

// Options of a node. The zero value is a good node.
type Options struct {
	// Images are archives to import, beside the test's own image.
	Images []string
	// Conflist is the network's configuration. Default: DefaultConflist.
	Conflist []byte
}

// Node is a node of a cluster. Its Name is the Node object's.
type Node struct {
	*node.Node
	*plane.Plane

	opts  Options
	parts parts
	boot  *boot // nil while it is down
}

// parts are the folders of the programs that setup.sh built.
type parts struct{ kubernetes, containerd, runc, cni string }

// New makes a node, and waits until it is Ready.
func New(ctx context.Context, opts Options) (*Node, error) {
	if opts.Conflist == nil {
		opts.Conflist = DefaultConflist
	}
	p, err := findParts(ctx)
	if err != nil {
		return nil, err
	}
	for i, image := range opts.Images {
		if opts.Images[i], err = filepath.Abs(image); err != nil {
			return nil, err
		}
		if _, err := os.Stat(image); err != nil {
			return nil, fmt.Errorf("an image is missing: %w: %s", err, remedy)
		}
	}
	base, err := node.New(ctx, node.Options{NoKmesh: true})
	if err != nil {
		return nil, err
	}
	n := &Node{Node: base, opts: opts, parts: p}
	alive.add(n)
	if err := n.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("making a Kubernetes node: %w", err), n.Close(context.WithoutCancel(ctx)))
	}
	return n, nil
}

func findParts(ctx context.Context) (parts, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return parts{}, fmt.Errorf("where this module is: %w", err)
	}
	setup := filepath.Join(strings.TrimSpace(string(root)), "test", "e2e", "setup.sh")
	out, err := exec.CommandContext(ctx, setup, "--dir").Output()
	if err != nil {
		return parts{}, fmt.Errorf("%s --dir: %w", setup, err)
	}
	dirs := strings.Fields(string(out))
	if len(dirs) != 2 {
		return parts{}, fmt.Errorf("%s --dir says %q, want two folders", setup, out)
	}
	p := parts{kubernetes: dirs[0], containerd: filepath.Join(dirs[1], "v2"), runc: filepath.Join(dirs[1], "runc", "runc")}
	for _, path := range []string{
		filepath.Join(p.kubernetes, "kubelet"), filepath.Join(p.kubernetes, "kube-apiserver"), filepath.Join(p.kubernetes, "etcd"),
		filepath.Join(p.containerd, "containerd"), filepath.Join(p.containerd, "containerd-shim-runc-v2"), filepath.Join(p.containerd, "ctr"), p.runc,
	} {
		if _, err := os.Stat(path); err != nil {
			return parts{}, fmt.Errorf("a part of the node is missing: %w: %s", err, remedy)
		}
	}
	p.cni, err = node.Programs(ctx, cniPlugins...)
	return p, err
}

func (n *Node) build(ctx context.Context) error {
	if err := n.makeHierarchies(); err != nil {
		return err
	}
	if err := n.makeDisk(); err != nil {
		return err
	}
	if err := n.Do(addAddresses); err != nil {
		return fmt.Errorf("giving the node its addresses: %w", err)
	}
	if err := n.startPlane(ctx); err != nil {
		return err
	}
	return n.Boot(ctx)
}

// Close ends everything and looks for what is left. Closing twice is the same as once.
func (n *Node) Close(ctx context.Context) error {
	if !alive.remove(n) {
		return nil
	}
	errs := []error{n.halt(ctx)}
	n.Plane.Stop()
	// The network's bridge is a node's own: it stays as long as the node.
	report, err := n.Node.Close(ctx)
	if err != nil {
		err = fmt.Errorf("closing the node: %w (%s)", err, report)
	}
	return errors.Join(append(errs, err)...)
}

// TB is what ForTest needs of a *testing.T.
type TB interface {
	node.TB
	Name() string
	Context() context.Context
	Failed() bool
}

// ForTest makes a node that is closed when the test ends. A test that fails shows the end of each component's log.
func ForTest(t TB, opts Options) *Node {
	t.Helper()
	began := time.Now()
	n, err := New(t.Context(), opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Logf("node %s is Ready after %s", n.Name, time.Since(began).Round(10*time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			for _, tail := range n.logTails(20) {
				t.Logf("%s", tail)
			}
			kept, err := n.keepLogs(t.Name())
			t.Logf("all logs, those of pods too, are in %s (%v)", kept, err)
		}
		failed := t.Failed()
		err := n.Close(context.Background())
		if err != nil && failed {
			// A test that ended early leaves pods, of which each is a dozen things: they are gone now too.
			first, _, _ := strings.Cut(err.Error(), "\n")
			err = errors.New(first)
		}
		if err != nil {
			t.Errorf("%v", err)
		}
	})
	return n
}

// makeDisk makes what survives a reboot: a file system that fits below an overlay, whatever the machine's own is.
func (n *Node) makeDisk() error {
	disk := n.Disk("")
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting the node's disk: %w", err)
	}
	for _, m := range diskMounts {
		if err := os.MkdirAll(n.Disk(m.from), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(n.Disk("etc/cni/net.d/10-pods.conflist"), n.opts.Conflist, 0o644); err != nil {
		return err
	}
	for _, name := range cniPlugins {
		if err := copyFile(filepath.Join(n.parts.cni, name), n.Disk("opt/cni/bin/"+name)); err != nil {
			return err
		}
	}
	return nil
}

// Disk is where a path on the node's disk is outside: one of /etc/cni, /opt/cni, /var/lib/... .
func (n *Node) Disk(path string) string { return filepath.Join(n.Dir, "disk", path) }

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// until asks every 20 ms until the answer is nil, and gives the last one when the time is over.
func until(ctx context.Context, limit time.Duration, what string, ask func(ctx context.Context) error) error {
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
