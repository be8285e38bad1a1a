// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kmesh/bpf"
	"kmesh/netns"
	"kmesh/test/node"
)

// xds is the least mesh: one service with one endpoint, so that the node goes live.
const xds = `
version_info: "1"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: echo
  address: {socket_address: {address: 10.96.0.1, port_value: 80}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.tcp_proxy
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
        stat_prefix: echo
        cluster: echo
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: echo
  type: STATIC
  load_assignment:
    cluster_name: echo
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: 10.77.0.99, port_value: 8080}}}
`

// sandbox is a pod as the kubelet has it: the cgroup is the kubelet's, the rest the runtime's.
type sandbox struct {
	m      *machine
	id     string
	uid    string
	parent string
	cgroup string
	config *cri.PodSandboxConfig
}

func (m *machine) runSandbox(ctx context.Context, t *testing.T, name, uid, parent string, annotations map[string]string) *sandbox {
	t.Helper()
	root := filepath.Base(m.n.CgroupRoot)
	s := &sandbox{m: m, uid: uid, parent: "/" + filepath.Join(root, parent), cgroup: filepath.Join(m.n.CgroupRoot, parent)}
	if err := os.MkdirAll(s.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	s.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(m.n.Dir, "pod-logs", uid),
		Annotations:  annotations,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: s.parent, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	s.run(ctx, t)
	return s
}

func (s *sandbox) run(ctx context.Context, t *testing.T) {
	t.Helper()
	r, err := s.m.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: s.config})
	if err != nil {
		t.Fatalf("RunPodSandbox of %s: %v", s.config.Metadata.Name, err)
	}
	s.id = r.PodSandboxId
}

func (s *sandbox) stop(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := s.m.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.id}); err != nil {
		t.Errorf("StopPodSandbox of %s: %v", s.config.Metadata.Name, err)
	}
}

func (s *sandbox) remove(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := s.m.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.id}); err != nil {
		t.Errorf("RemovePodSandbox of %s: %v", s.config.Metadata.Name, err)
	}
}

// removeCgroup is the kubelet's last part.
func (s *sandbox) removeCgroup(t *testing.T) {
	t.Helper()
	if err := os.Remove(s.cgroup); err != nil {
		t.Errorf("the pod's cgroup is not empty after its end: %v", err)
	}
}

func (s *sandbox) inode(t *testing.T) uint64 {
	t.Helper()
	info, err := os.Stat(s.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	return inode(info)
}

// enrolled gives what the kernel and the pins say of the sandbox; nil when there is nothing.
func (s *sandbox) enrolled(ctx context.Context, t *testing.T) *netns.Pod {
	t.Helper()
	pods, err := netns.New(netns.Options{BPFFS: s.m.n.BPFFS, RunDir: s.m.n.RunDir}).List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pods, func(p netns.Pod) bool { return p.ContainerID == s.id })
	if i < 0 {
		return nil
	}
	return &pods[i]
}

// checkGoverned asks for exactly one live link of each hook, all on this pod's cgroup or interface, and asks the
// cgroup itself, which knows nothing of our pins.
func (s *sandbox) checkGoverned(ctx context.Context, t *testing.T) {
	t.Helper()
	p := s.enrolled(ctx, t)
	if p == nil {
		t.Fatalf("pod %s is not enrolled", s.config.Metadata.Name)
	}
	if !p.Ready || !p.Owner || p.Cgroup != s.inode(t) || p.UID != s.uid {
		t.Errorf("pod %s: enrolled as %+v, want it ready, owner, on cgroup %d, uid %s", s.config.Metadata.Name, *p, s.inode(t), s.uid)
	}
	want := map[string]int{}
	for _, h := range slices.Concat(bpf.CgroupHooks, bpf.TCHooks) {
		want[h.Name] = 1
	}
	got := map[string]int{}
	for _, l := range p.Links {
		got[l.Hook]++
		onCgroup := slices.ContainsFunc(bpf.CgroupHooks, func(h bpf.Hook) bool { return h.Name == l.Hook })
		if !l.Live || onCgroup && l.CgroupID != s.inode(t) || !onCgroup && l.Ifindex == 0 {
			t.Errorf("pod %s: link %+v: want it live, and on cgroup %d or an interface", s.config.Metadata.Name, l, s.inode(t))
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("pod %s: links by hook %v, want %v", s.config.Metadata.Name, got, want)
	}
	attached, err := node.Attached(s.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range bpf.CgroupHooks {
		if attached[h.Attach] != 1 {
			t.Errorf("cgroup of pod %s: %d programs at %s, want 1", s.config.Metadata.Name, attached[h.Attach], h.Name)
		}
	}
}

func (s *sandbox) checkUntouched(ctx context.Context, t *testing.T) {
	t.Helper()
	if p := s.enrolled(ctx, t); p != nil {
		t.Errorf("pod %s: enrolled as %+v, want nothing", s.config.Metadata.Name, *p)
	}
	attached, err := node.Attached(s.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if len(attached) > 0 {
		t.Errorf("cgroup of pod %s has programs: %v", s.config.Metadata.Name, attached)
	}
}

// checkCall looks at what the runtime gave to the chain.
func (s *sandbox) checkCall(t *testing.T, f flavour, command string) {
	t.Helper()
	calls := s.m.calls(t, s.id)
	i := slices.IndexFunc(calls, func(c called) bool { return c.Command == command })
	if i < 0 {
		t.Errorf("the chain got no %s for pod %s, only %+v", command, s.config.Metadata.Name, calls)
		return
	}
	c := calls[i]
	if c.Args["K8S_POD_UID"] != s.uid || !c.HadPrevious {
		t.Errorf("%s of pod %s: CNI_ARGS %v, previous result %t; want uid %s and a result", command, s.config.Metadata.Name, c.Args, c.HadPrevious, s.uid)
	}
	var annotations map[string]string
	if raw := c.CapArgs["io.kubernetes.cri.pod-annotations"]; raw != nil {
		if err := json.Unmarshal(raw, &annotations); err != nil {
			t.Error(err)
		}
	}
	if !maps.Equal(annotations, s.config.Annotations) {
		t.Errorf("%s of pod %s: annotations %v, want %v", command, s.config.Metadata.Name, annotations, s.config.Annotations)
	}
	var path string
	if raw := c.CapArgs["cgroupPath"]; raw != nil {
		if err := json.Unmarshal(raw, &path); err != nil {
			t.Error(err)
		}
	}
	want := ""
	if f.cgroupPath {
		want = s.parent
	}
	if path != want {
		t.Errorf("%s of pod %s: cgroupPath %q, want %q", command, s.config.Metadata.Name, path, want)
	}
}

func TestRuntimeEnrolsPods(t *testing.T) {
	for _, f := range flavours {
		t.Run(f.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			m := start(t, f)
			dir := filepath.Join(m.n.Dir, "xds")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(xds), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := m.n.StartHelper(ctx, "--xds-dir", dir); err != nil {
				t.Fatal(err)
			}

			uid1, uid2 := node.NewUID(), node.NewUID()
			uid3 := strings.ReplaceAll(node.NewUID(), "-", "") // as of a static pod
			enrolled := m.runSandbox(ctx, t, "enrolled", uid1, "kubepods/besteffort/pod"+uid1, node.Enrolled())
			enrolled.checkCall(t, f, "ADD")
			enrolled.checkGoverned(ctx, t)
			plain := m.runSandbox(ctx, t, "plain", uid2, "kubepods/burstable/pod"+uid2, nil)
			plain.checkCall(t, f, "ADD")
			plain.checkUntouched(ctx, t)
			static := m.runSandbox(ctx, t, "static", uid3, "kubepods/pod"+uid3, node.Enrolled())
			static.checkCall(t, f, "ADD")
			static.checkGoverned(ctx, t)
			enrolled.checkGoverned(ctx, t)

			// The kubelet replaces a dead sandbox: the new one first, or the old one's end first.
			first := *enrolled
			enrolled.config.Metadata.Attempt++
			enrolled.run(ctx, t)
			enrolled.checkGoverned(ctx, t)
			first.stop(ctx, t)
			first.remove(ctx, t)
			enrolled.checkGoverned(ctx, t)

			for _, s := range []*sandbox{enrolled, plain, static} {
				s.stop(ctx, t)
				s.checkCall(t, f, "DEL")
				s.checkUntouched(ctx, t)
				s.remove(ctx, t)
				s.removeCgroup(t)
			}
		})
	}
}

func inode(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
