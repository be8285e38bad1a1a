// SPDX-License-Identifier: Apache-2.0

// Package node makes a Kubernetes node inside one machine, for tests and the demo: a network namespace of its own with
// a bridge, the real bridge and host-local plugins chained with the real kmesh-cni through libcni, and pods that are a
// network namespace, a cgroup v2 directory as the kubelet makes it, and processes in both.
//
//	n := node.ForTest(t, node.Options{})                        // closed, and checked for leaks, when the test ends
//	h, err := n.StartHelper(ctx, "--xds-dir", dir)              // the real kmesh-helper, on this node
//	server, err := n.AddPod(ctx, node.PodSpec{Name: "v1"})      // CNI ADD
//	at, err := server.Listen(ctx, wire.Listen{Network: wire.TCP, Addr: ":80", Name: "v1"})
//	client, err := n.AddPod(ctx, node.PodSpec{Name: "client", Annotations: node.Enrolled()})
//	res, err := client.Dial(ctx, wire.Dial{Network: wire.TCP, Addr: "10.96.0.1:80"})
//
// A cgroup program acts by the cgroup of the process whose socket it is. A test's own goroutine, even one that has
// entered a pod's network namespace (Pod.Do), is not in the pod's cgroup and is not governed; Pod.Dial and its like
// are made by a process that is (package wire, command agent).
//
// Invariant: nothing leaks. All that a node makes hangs on one unique name: a folder under Base, a cgroup, a bpf file
// system of its own, a network namespace. Any number of nodes live side by side, the machine's own routes, links and
// pins are never touched, and Close proves that nothing is left: it remembers the id of every link, program and map
// that was ever pinned, every cgroup and every network namespace, and looks for each of them. What a killed test left
// behind is removed by the next New.
package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Base holds the folder of every node on this machine, by name.
const Base = "/run/kmesh-test"

// cgroupPrefix begins the name of every node's cgroup.
const cgroupPrefix = "kmesh-test-"

// EnrollAnnotation opts a pod in ("true") or out ("false").
const EnrollAnnotation = "kmesh.net/enroll"

// Enrolled is the annotations of a pod that opts in.
func Enrolled() map[string]string { return map[string]string{EnrollAnnotation: "true"} }

// Options of a node. The zero value is a good node.
type Options struct {
	// Version of the CNI specification that the network's configuration names. Default 1.1.0.
	CNIVersion string
	// Folder of the built kmesh-cni, kmesh-helper and kmeshctl. Default: built from this module, into a cache.
	BinDir string
	// NoKmesh leaves kmesh-cni out of the chain.
	NoKmesh bool
	// NoCgroupPath withholds the capability cgroupPath from the plugin, as containerd 1.6 does.
	NoCgroupPath bool
	// Plugin is merged into kmesh-cni's entry of the network's configuration.
	Plugin map[string]any
	// LateEnrolment: somebody enrols pods that run already, maybe while their DEL is under way: what comes after a DEL is taken back, but not at once.
	LateEnrolment bool
	// Ranges of the pods' addresses. Default 10.77.0.0/16 and fd77::/64.
	Subnet4, Subnet6 netip.Prefix
	// Where the node's processes' standard error goes, beside the files in Node.Dir. Default nowhere.
	Log io.Writer
}

// Node is a node. Its methods may be called from several goroutines.
type Node struct {
	Name       string // unique on this machine
	Dir        string // everything on disk: Base/Name
	NetnsPath  string // the node's own network namespace: bridge cni0, and where the helper runs
	BPFFS      string // for kmesh's pins, on a bpf file system of this node's own
	RunDir     string
	StateDir   string
	CgroupRoot string // the kubelet's --cgroup-root, below the cgroup v2 mount

	opts  Options
	cni   *chain
	lock  *os.File
	seen  ledger
	cgMnt string

	mu        sync.Mutex
	pods      []*Pod
	helper    *Helper
	ranHelper bool // ever
	closed    bool
}

// New makes a node. Needs root.
func New(ctx context.Context, opts Options) (*Node, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("node: needs root, for network namespaces, cgroups and bpf")
	}
	if opts.CNIVersion == "" {
		opts.CNIVersion = "1.1.0"
	}
	if !opts.Subnet4.IsValid() {
		opts.Subnet4 = netip.MustParsePrefix("10.77.0.0/16")
	}
	if !opts.Subnet6.IsValid() {
		opts.Subnet6 = netip.MustParsePrefix("fd77::/64")
	}
	cgMnt, err := cgroup2Mount()
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	name := randomHex(4)
	dir := filepath.Join(Base, name)
	n := &Node{
		Name:       name,
		Dir:        dir,
		NetnsPath:  filepath.Join(dir, "netns", "node"),
		BPFFS:      filepath.Join(dir, "bpf", "kmesh"),
		RunDir:     filepath.Join(dir, "run"),
		StateDir:   filepath.Join(dir, "state"),
		CgroupRoot: filepath.Join(cgMnt, cgroupPrefix+name),
		opts:       opts,
		cgMnt:      cgMnt,
	}
	n.seen.init()
	if err := n.build(ctx); err != nil {
		_, cerr := n.Close(context.WithoutCancel(ctx))
		return nil, errors.Join(fmt.Errorf("node: %w", err), cerr)
	}
	return n, nil
}

func (n *Node) build(ctx context.Context) error {
	if err := n.claim(); err != nil {
		return err
	}
	for _, d := range []string{filepath.Dir(n.NetnsPath), filepath.Dir(n.BPFFS), n.RunDir, n.StateDir, n.logDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := mountBPF(filepath.Dir(n.BPFFS)); err != nil {
		return err
	}
	if err := n.makeCgroup(n.CgroupRoot); err != nil {
		return err
	}
	if err := n.makeNetns(n.NetnsPath); err != nil {
		return err
	}
	if err := n.Do(setUpNode); err != nil {
		return fmt.Errorf("setting up the node's network namespace: %w", err)
	}
	var err error
	n.cni, err = newChain(ctx, n)
	return err
}

func (n *Node) logDir() string { return filepath.Join(n.Dir, "log") }

// Do runs f on a thread in the node's network namespace. f must not start goroutines that rely on it, nor call
// FailNow and its like.
func (n *Node) Do(f func() error) error { return inNetns(n.NetnsPath, f) }

// CgroupMount is where the machine's cgroup v2 tree is mounted.
func (n *Node) CgroupMount() string { return n.cgMnt }

// Pods are the node's pods.
func (n *Node) Pods() []*Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pods)
}

// Close takes everything down in the order a node does (pods, helper, uninstall), looks for what is left, and then
// removes that too. The report says what was looked for; the error, what was found or went wrong. Closing twice is
// the same as once.
func (n *Node) Close(ctx context.Context) (Report, error) {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return Report{}, nil
	}
	n.closed = true
	n.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n.record(n.BPFFS) // before it is taken away
	var errs []error
	for _, p := range n.Pods() {
		if err := n.DelPod(ctx, p); err != nil {
			errs = append(errs, err)
		}
	}
	if h := n.currentHelper(); h != nil {
		if err := h.Stop(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if err := n.uninstall(ctx); err != nil {
		errs = append(errs, err)
	}
	left := n.leftInside(ctx)
	if err := n.remove(); err != nil {
		errs = append(errs, err)
	}
	report := n.seen.report()
	report.Left = append(left, n.leftOutside(ctx)...)
	if len(report.Left) > 0 {
		errs = append(errs, report.err())
	}
	return report, errors.Join(errs...)
}

// remove takes away whatever there still is, so that even a failing test leaves the machine as it was.
func (n *Node) remove() error {
	var errs []error
	if err := removeCgroups(filepath.Base(n.CgroupRoot)); err != nil {
		errs = append(errs, err)
	}
	if err := unmountBelow(n.Dir); err != nil {
		errs = append(errs, err)
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		errs = append(errs, err)
	}
	if n.lock != nil {
		n.lock.Close()
	}
	return errors.Join(errs...)
}

// TB is what ForTest needs of a *testing.T.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// ForTest makes a node that is closed when the test ends; the test fails if anything leaked.
func ForTest(t TB, opts Options) *Node {
	t.Helper()
	n, err := New(context.Background(), opts)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if _, err := n.Close(context.Background()); err != nil {
			t.Errorf("closing the node: %v", err)
		}
	})
	return n
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// NewUID is a random UUID, as the API server gives to pods. Never use one twice on a machine: a runtime that does not
// tell the pod's cgroup leaves the plugin to find it by the UID.
func NewUID() string {
	h := randomHex(16)
	return h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:]
}

// poll calls f every 5 ms until it is true or the time is over.
func poll(ctx context.Context, limit time.Duration, f func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return f()
		case <-tick.C:
		}
	}
	return true
}
