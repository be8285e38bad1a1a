// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"kmesh/test/node"
)

// The image and the manifest that are tested, as the repository has them.
const (
	imageName = "kmesh.net/kmesh:devel"
	manifest  = "../../manifests/base/daemonset.yaml"
)

// daemonSet reads the manifest.
func daemonSet(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	raw, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	// It anchors what two containers have in common, which the strict decoder does not know of: JSON has no anchors.
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(raw, &ds); err != nil {
		t.Fatal(err)
	}
	return &ds
}

// container is one of the manifest's, to be run as the kubelet would run it.
type container struct {
	corev1.Container
	pod *corev1.PodSpec
	// at says where this test's node has a folder of the manifest's.
	at map[string]string
}

func containerOf(t *testing.T, name string) *container {
	t.Helper()
	pod := &daemonSet(t).Spec.Template.Spec
	all := slices.Concat(pod.InitContainers, pod.Containers)
	i := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("%s has no container %s", manifest, name)
	}
	return &container{Container: all[i], pod: pod, at: map[string]string{}}
}

// without leaves a capability out.
func (c *container) without(capability corev1.Capability) *container {
	add := c.SecurityContext.Capabilities.Add
	c.SecurityContext.Capabilities.Add = slices.DeleteFunc(slices.Clone(add), func(have corev1.Capability) bool { return have == capability })
	return c
}

// setArg replaces the argument that begins with a flag.
func (c *container) setArg(flag, arg string) {
	for i, a := range c.Args {
		if strings.HasPrefix(a, flag+"=") {
			c.Args[i] = arg
		}
	}
}

// config is what the kubelet makes of it for the runtime.
func (c *container) config(t *testing.T, log string) *cri.ContainerConfig {
	t.Helper()
	s := c.SecurityContext
	caps := &cri.Capability{}
	for _, a := range s.Capabilities.Add {
		caps.AddCapabilities = append(caps.AddCapabilities, string(a))
	}
	for _, d := range s.Capabilities.Drop {
		caps.DropCapabilities = append(caps.DropCapabilities, string(d))
	}
	profile := s.SeccompProfile
	if profile == nil {
		profile = c.pod.SecurityContext.SeccompProfile
	}
	if profile == nil || profile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Fatalf("container %s: seccomp profile %+v, this test knows RuntimeDefault", c.Name, profile)
	}
	out := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.Name},
		Image:    &cri.ImageSpec{Image: imageName},
		Command:  c.Command, Args: c.Args,
		LogPath: log,
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			Privileged:       s.Privileged != nil && *s.Privileged,
			Capabilities:     caps,
			NoNewPrivs:       s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
			ReadonlyRootfs:   s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem,
			RunAsUser:        &cri.Int64Value{Value: *s.RunAsUser},
			RunAsGroup:       &cri.Int64Value{Value: *s.RunAsGroup},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			NamespaceOptions: hostNetwork,
			// The kubelet's own, for procMount: Default.
			MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		}},
	}
	if o := c.pod.SecurityContext.SELinuxOptions; o != nil {
		out.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(c.pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("container %s mounts volume %s, which is not there", c.Name, m.Name)
		}
		host := c.pod.Volumes[i].HostPath
		if host == nil {
			continue // the token: there is no API server here
		}
		path, ok := c.at[host.Path]
		if !ok {
			path = host.Path
		}
		mount := &cri.Mount{HostPath: path, ContainerPath: m.MountPath, Readonly: m.ReadOnly}
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationHostToContainer {
			mount.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		}
		out.Mounts = append(out.Mounts, mount)
	}
	return out
}

var hostNetwork = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}

// running is a container that runs, in a sandbox of its own.
type running struct {
	m       *machine
	sandbox string
	cgroup  string
	id      string
	log     string
}

// runContainer runs c as the kubelet would, until the test ends or it is stopped.
func (m *machine) runContainer(ctx context.Context, t *testing.T, c *container) *running {
	t.Helper()
	uid := node.NewUID()
	parent := "/" + filepath.Join(filepath.Base(m.n.CgroupRoot), "kubepods/burstable/pod"+uid)
	logs := filepath.Join(m.n.Dir, "pod-logs", uid)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "kmesh-" + c.Name, Namespace: "kmesh-system", Uid: uid},
		LogDirectory: logs,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: parent, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: hostNetwork,
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	r, err := m.cri.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatalf("RunPodSandbox of %s: %v", c.Name, err)
	}
	run := &running{m: m, sandbox: r.PodSandboxId, cgroup: filepath.Join(filepath.Dir(m.n.CgroupRoot), parent), log: filepath.Join(logs, c.Name+".log")}
	t.Cleanup(func() { run.stop(context.WithoutCancel(ctx), t) })
	created, err := m.cri.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: c.config(t, c.Name+".log"), SandboxConfig: sandbox})
	if err != nil {
		t.Fatalf("CreateContainer of %s: %v", c.Name, err)
	}
	run.id = created.ContainerId
	if _, err := m.cri.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: run.id}); err != nil {
		t.Fatalf("StartContainer of %s: %v", c.Name, err)
	}
	return run
}

// stop ends the container and its sandbox; twice does no harm.
func (r *running) stop(ctx context.Context, t *testing.T) {
	t.Helper()
	if r.sandbox == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if r.id != "" {
		if _, err := r.m.cri.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: r.id, Timeout: 5}); err != nil {
			t.Errorf("StopContainer: %v", err)
		}
	}
	if _, err := r.m.cri.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: r.sandbox}); err != nil {
		t.Errorf("StopPodSandbox: %v", err)
	}
	if _, err := r.m.cri.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.sandbox}); err != nil {
		t.Errorf("RemovePodSandbox: %v", err)
	}
	if err := os.Remove(r.cgroup); err != nil { // the kubelet's last part
		t.Errorf("the pod's cgroup is not empty after its end: %v", err)
	}
	r.sandbox = ""
}

// logged is what it has written so far.
func (r *running) logged(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(r.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// memory is what the container is charged with, maps included.
func (r *running) memory(t *testing.T) string {
	t.Helper()
	for _, path := range []string{
		filepath.Join(r.cgroup, r.id, "memory.current"),
		filepath.Join(strings.Replace(r.cgroup, "/unified/", "/memory/", 1), r.id, "memory.usage_in_bytes"),
	} {
		if b, err := os.ReadFile(path); err == nil {
			return strings.TrimSpace(string(b)) + " bytes"
		}
	}
	return "not known here"
}

// checkConfined asks the kernel what the container's processes may do: it is what the manifest says and no more, and
// the tests above would mean nothing if it were not.
func (r *running) checkConfined(t *testing.T, c *container) {
	t.Helper()
	var want uint64
	for _, name := range c.SecurityContext.Capabilities.Add {
		bit, ok := map[corev1.Capability]int{
			"BPF": unix.CAP_BPF, "PERFMON": unix.CAP_PERFMON, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BROADCAST": unix.CAP_NET_BROADCAST,
			"DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
		}[name]
		if !ok {
			t.Fatalf("container %s: capability %s is not known to this test", c.Name, name)
		}
		want |= 1 << bit
	}
	procs, err := os.ReadFile(filepath.Join(r.cgroup, r.id, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(procs))
	if len(pids) == 0 {
		t.Fatalf("container %s: no process", c.Name)
	}
	for _, pid := range pids {
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(line, ":")
			got[key] = strings.TrimSpace(value)
		}
		hex := fmt.Sprintf("%016x", want)
		for key, want := range map[string]string{"Seccomp": "2", "NoNewPrivs": "1", "CapBnd": hex, "CapPrm": hex, "CapInh": "0000000000000000"} {
			if got[key] != want {
				t.Errorf("container %s: %s is %s, want %s", c.Name, key, got[key], want)
			}
		}
		if err := os.WriteFile(filepath.Join("/proc", pid, "root/usr/local/bin/new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("container %s: writing to its root file system: %v, want that it cannot be", c.Name, err)
		}
	}
}

// exited gives the exit code of a container that has ended.
func (r *running) exited(ctx context.Context, t *testing.T) (code int32, ended bool) {
	t.Helper()
	// Also when the time of what is waited for has just ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	st, err := r.m.cri.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: r.id})
	if err != nil {
		t.Fatalf("ContainerStatus: %v", err)
	}
	return st.Status.ExitCode, st.Status.State == cri.ContainerState_CONTAINER_EXITED
}

// until polls for want until it is so, or the container has ended, or time is up.
func (r *running) until(ctx context.Context, t *testing.T, what string, want func() error) error {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := want()
		if err == nil {
			return nil
		}
		if code, ended := r.exited(ctx, t); ended {
			return fmt.Errorf("%s: it ended with code %d: %w", what, code, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// buildImage builds the image, of all platforms, and gives it to the runtime.
func (m *machine) buildImage(ctx context.Context, t *testing.T) {
	t.Helper()
	out := filepath.Join(m.n.Dir, "kmesh.tar")
	cmd := exec.CommandContext(ctx, "go", "run", "kmesh/manifests/image", "-o", out, "-name", imageName)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the image: %v\n%s", err, b)
	}
	m.importImage(ctx, t, out)
}
