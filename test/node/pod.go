// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containernetworking/cni/libcni"
)

// PodSpec says what pod to make.
type PodSpec struct {
	Name        string
	Namespace   string            // default "default"
	UID         string            // default: a random UUID
	Annotations map[string]string // see Enrolled
	QoS         string            // "guaranteed", "burstable" or "besteffort"; default "besteffort"
	// NoCgroupPath withholds the capability cgroupPath for this pod.
	NoCgroupPath bool
	// Version of the CNI specification that this pod's network configuration names. Default Options.CNIVersion.
	CNIVersion string
	// Cgroup is the pod's cgroup, below the cgroup v2 mount. Default: where the kubelet's cgroupfs driver puts it, below
	// the node's own. Folders above it are made and left.
	Cgroup string
}

// Pod is a pod: a cgroup, and the sandbox that lives in it.
type Pod struct {
	PodSpec
	CgroupPath   string // absolute
	CgroupParent string // as the kubelet tells the runtime: below the cgroup v2 mount; a test may change it
	CgroupID     uint64 // inode of CgroupPath

	*Sandbox // the present one

	n  *Node
	mu sync.Mutex
	// Those that were replaced (Node.Recreate) and not yet deleted.
	old   []*Sandbox
	agent *agent
}

// Sandbox is one life of a pod: a network namespace that went through CNI ADD.
type Sandbox struct {
	ContainerID string
	NetnsPath   string
	IP4, IP6    netip.Addr
	Result      []byte // what the chain answered to ADD, JSON

	pod *Pod
}

// AddPod makes a pod as the kubelet and a runtime do: cgroup, network namespace, CNI ADD. When ADD fails, its error is
// in the chain of the one returned (*types.Error of libcni) and nothing is left of the pod.
func (n *Node) AddPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	p, err := n.newPod(spec)
	if err != nil {
		return nil, err
	}
	s, err := n.addSandbox(ctx, p)
	if err != nil {
		n.checkCgroup(p)
		return nil, errors.Join(err, removeCgroup(p.CgroupPath))
	}
	n.enter(p, s)
	return p, nil
}

// PreparePod makes a pod as AddPod does, but leaves CNI ADD to the caller (Add): for tests of what happens when that
// fails, is repeated, or never comes. DelPod and LosePod end it.
func (n *Node) PreparePod(spec PodSpec) (*Pod, error) {
	p, err := n.newPod(spec)
	if err != nil {
		return nil, err
	}
	s, err := n.newSandbox(p)
	if err != nil {
		return nil, errors.Join(err, removeCgroup(p.CgroupPath))
	}
	n.enter(p, s)
	return p, nil
}

// enter gives a pod its sandbox and enters it into the node's list.
func (n *Node) enter(p *Pod, s *Sandbox) {
	p.Sandbox = s
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods = append(n.pods, p)
}

// newPod makes a pod's cgroup.
func (n *Node) newPod(spec PodSpec) (*Pod, error) {
	if spec.Name == "" {
		return nil, errors.New("adding a pod: name is empty")
	}
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.UID == "" {
		spec.UID = NewUID()
	}
	parent := "kubepods"
	switch spec.QoS {
	case "":
		spec.QoS, parent = "besteffort", "kubepods/besteffort"
	case "besteffort", "burstable":
		parent = "kubepods/" + spec.QoS
	case "guaranteed":
	default:
		return nil, fmt.Errorf("adding pod %s: qos %q: want guaranteed, burstable or besteffort", spec.Name, spec.QoS)
	}
	p := &Pod{PodSpec: spec, n: n}
	p.CgroupParent = "/" + filepath.Join(filepath.Base(n.CgroupRoot), parent, "pod"+spec.UID)
	if spec.Cgroup != "" {
		p.CgroupParent = spec.Cgroup
	}
	p.CgroupPath = filepath.Join(n.cgMnt, p.CgroupParent)
	if err := n.makeCgroup(p.CgroupPath); err != nil {
		return nil, fmt.Errorf("adding pod %s: %w", spec.Name, err)
	}
	p.CgroupID = n.seen.cgroupID(p.CgroupPath)
	return p, nil
}

// Recreate makes a new sandbox for a pod, as the kubelet does when the old one died, without deleting the old one:
// that is DelSandbox, early, late or never. Processes of the old one are gone.
func (n *Node) Recreate(ctx context.Context, p *Pod) (old *Sandbox, err error) {
	if err := p.kill(); err != nil {
		return nil, err
	}
	s, err := n.addSandbox(ctx, p)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, p.Sandbox = p.Sandbox, s
	p.old = append(p.old, old)
	return old, nil
}

func (n *Node) addSandbox(ctx context.Context, p *Pod) (*Sandbox, error) {
	s, err := n.newSandbox(p)
	if err != nil {
		return nil, err
	}
	if err := n.Add(ctx, s); err != nil {
		return nil, errors.Join(err, n.DelSandbox(context.WithoutCancel(ctx), s)) // a runtime deletes what failed, too
	}
	return s, nil
}

func (n *Node) newSandbox(p *Pod) (*Sandbox, error) {
	s := &Sandbox{ContainerID: randomHex(32), pod: p}
	s.NetnsPath = filepath.Join(n.Dir, "netns", s.ContainerID[:12])
	if err := n.makeNetns(s.NetnsPath); err != nil {
		return nil, fmt.Errorf("adding pod %s: %w", p.Name, err)
	}
	return s, nil
}

// Add does CNI ADD for a sandbox, and nothing else, also when that fails.
func (n *Node) Add(ctx context.Context, s *Sandbox) error {
	if err := n.cni.add(ctx, s); err != nil {
		return fmt.Errorf("adding pod %s: %w", s.pod.Name, err)
	}
	n.recordPod(s)
	return nil
}

// Del does CNI DEL for a sandbox, and nothing else. change may be nil, or change what the runtime says.
func (n *Node) Del(ctx context.Context, s *Sandbox, change func(*libcni.RuntimeConf)) error {
	n.recordPod(s)
	if change == nil {
		change = func(*libcni.RuntimeConf) {}
	}
	if err := n.cni.del(ctx, s, change); err != nil {
		return fmt.Errorf("deleting sandbox %.12s of pod %s: %w", s.ContainerID, s.pod.Name, err)
	}
	return nil
}

// ForgetResult removes what libcni remembers of a sandbox's ADD, so that its next DEL has no result to pass on.
func (n *Node) ForgetResult(s *Sandbox) error { return os.Remove(n.cni.cached(s)) }

// DelSandbox does CNI DEL and removes the network namespace. Deleting twice succeeds twice.
func (n *Node) DelSandbox(ctx context.Context, s *Sandbox) error {
	errs := []error{n.Del(ctx, s, func(rt *libcni.RuntimeConf) {
		if _, err := os.Stat(s.NetnsPath); err != nil {
			rt.NetNS = "" // so says a runtime that no longer has it
		}
	})}
	if err := removeNetns(s.NetnsPath); err != nil {
		errs = append(errs, err)
	}
	s.pod.mu.Lock()
	s.pod.old = slices.DeleteFunc(s.pod.old, func(o *Sandbox) bool { return o == s })
	s.pod.mu.Unlock()
	return errors.Join(errs...)
}

// DropNetns removes a sandbox's network namespace behind the runtime's back.
func (n *Node) DropNetns(s *Sandbox) error {
	if err := s.pod.kill(); err != nil {
		return err
	}
	return removeNetns(s.NetnsPath)
}

// DelPod ends a pod as the kubelet and a runtime do: its processes, CNI DEL of each of its sandboxes, the network
// namespaces, the cgroup. It goes on after an error. Deleting twice is the same as once.
func (n *Node) DelPod(ctx context.Context, p *Pod) error {
	n.mu.Lock()
	i := slices.Index(n.pods, p)
	if i >= 0 {
		n.pods = slices.Delete(n.pods, i, i+1)
	}
	n.mu.Unlock()
	if i < 0 {
		return nil
	}
	errs := []error{p.kill()}
	p.mu.Lock()
	sandboxes := append(slices.Clone(p.old), p.Sandbox)
	p.mu.Unlock()
	for _, s := range sandboxes {
		errs = append(errs, n.DelSandbox(ctx, s))
	}
	n.checkCgroup(p)
	errs = append(errs, removeCgroup(p.CgroupPath))
	return errors.Join(errs...)
}

// LosePod forgets a pod without CNI DEL: processes, network namespaces and cgroup go, as when a node loses power for
// a pod's whole end. What the plugin pinned stays, for a sweep to find.
func (n *Node) LosePod(p *Pod) error {
	n.mu.Lock()
	n.pods = slices.DeleteFunc(n.pods, func(o *Pod) bool { return o == p })
	n.mu.Unlock()
	errs := []error{p.kill()}
	p.mu.Lock()
	sandboxes := append(slices.Clone(p.old), p.Sandbox)
	p.mu.Unlock()
	for _, s := range sandboxes {
		n.recordPod(s)
		errs = append(errs, removeNetns(s.NetnsPath), n.cni.forget(s))
	}
	errs = append(errs, removeCgroup(p.CgroupPath))
	return errors.Join(errs...)
}

// Do runs f on a thread in the pod's network namespace; not in its cgroup. See Node.Do.
func (p *Pod) Do(f func() error) error { return inNetns(p.NetnsPath, f) }

// EachNetns runs f in the network namespace of every pod.
func (n *Node) EachNetns(f func() error) error {
	for _, p := range n.Pods() {
		if err := inNetns(p.NetnsPath, f); err != nil {
			return err
		}
	}
	return nil
}
