// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	corev1 "k8s.io/api/core/v1"

	"kmesh/bpf"
	"kmesh/test/node"
)

// bench is a node whose helper runs in the manifest's container.
type bench struct {
	m   *machine
	xds string
}

// helper is the manifest's container of the helper, on this node. What differs from the manifest: the mesh is read
// from files, as the chart's xds.files has it, the folders are this node's, and rounds are quicker.
func (b *bench) helper(t *testing.T) *container {
	t.Helper()
	c := containerOf(t, "helper")
	n := b.m.n
	c.at = map[string]string{"/sys/fs/bpf": filepath.Dir(n.BPFFS), "/run/kmesh": n.RunDir, "/var/lib/kmesh": n.StateDir}
	c.setArg("--xds-server", "--xds-dir=/etc/kmesh/xds")
	c.Args = append(c.Args, "--sweep-every=200ms")
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "xds", MountPath: "/etc/kmesh/xds", ReadOnly: true})
	c.pod.Volumes = append(c.pod.Volumes, corev1.Volume{Name: "xds", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: b.xds}}})
	return c
}

// write changes the mesh, as a ConfigMap's volume does: at once.
func (b *bench) write(t *testing.T, mesh string) {
	t.Helper()
	path := filepath.Join(b.xds, "mesh.yaml")
	if err := os.WriteFile(path+".new", []byte(mesh), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// works says what of a helper's work cannot be seen, with a pod on the node.
func (b *bench) works(ctx context.Context, t *testing.T, r *running) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// It loads, attaches nothing that is not there, and publishes.
	if err := r.until(ctx, t, "ready", func() error { _, err := b.m.n.Get(ctx, "/readyz"); return err }); err != nil {
		return err
	}
	// It opens the programs that the pod's links run, by id.
	if err := r.until(ctx, t, "tags of programs", func() error { return b.tags(ctx) }); err != nil {
		return err
	}
	// It goes through the pod's cgroup by its inode, and into its network namespace: an endpoint that is removed ends
	// UDP sockets there. Both fail in the log only.
	b.write(t, strings.Replace(xds, "10.77.0.99", "10.77.0.98", 1))
	if err := r.until(ctx, t, "two generations and a round", func() error { return b.rounds(ctx, 2) }); err != nil {
		return err
	}
	for line := range strings.Lines(r.logged(t)) {
		if strings.Contains(line, "feature="+bpf.FeatureMapIterator+" ") && refusesMapIterators() {
			continue // to everybody: then the helper goes through the pods' network namespaces
		}
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") || strings.Contains(line, "operation not permitted") {
			return fmt.Errorf("its log has: %s", line)
		}
	}
	return nil
}

// tags asks for a tag of each program of each pod.
func (b *bench) tags(ctx context.Context) error {
	out, err := b.m.n.Kmeshctl(ctx, "pods", "-o", "json")
	if err != nil {
		return err
	}
	var answer struct {
		Pods []struct {
			Name  string
			Links []struct{ Hook, ProgTag string }
		}
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return err
	}
	if len(answer.Pods) != 1 || len(answer.Pods[0].Links) == 0 {
		return fmt.Errorf("it shows %+v, want one pod with its links", answer.Pods)
	}
	for _, l := range answer.Pods[0].Links {
		if l.ProgTag == "" {
			return fmt.Errorf("link %s has no program's tag", l.Hook)
		}
	}
	return nil
}

// rounds waits for a generation, and for three scrapes' time after it: rounds are more often.
func (b *bench) rounds(ctx context.Context, generation int) error {
	body, err := b.m.n.Get(ctx, "/metrics")
	if err != nil {
		return err
	}
	var have float64
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "kmesh_config_generation "); ok {
			if _, err := fmt.Sscan(rest, &have); err != nil {
				return err
			}
		}
	}
	if int(have) < generation {
		return fmt.Errorf("generation %v, want %d", have, generation)
	}
	return nil
}

// installer is one of the manifest's containers of the installer. The runtime here has its folders elsewhere, and the
// installer finds them by asking it: they are mounted where it says.
func (b *bench) installer(t *testing.T, name string) *container {
	t.Helper()
	c := containerOf(t, name)
	n, p := b.m.n, b.m.places
	c.at = map[string]string{"/run/kmesh": n.RunDir, "/var/lib/kmesh": n.StateDir, "/run/containerd": filepath.Dir(p.socket), "/opt/cni/bin": p.cniBin, "/etc/cni/net.d": p.cniConf}
	for i, m := range c.VolumeMounts {
		if at := c.at[m.MountPath]; m.Name == "cni-bin" || m.Name == "cni-conf" {
			c.VolumeMounts[i].MountPath = at
		}
	}
	c.setArg("--cri-socket", "--cri-socket=/run/containerd/"+filepath.Base(p.socket))
	// What is written into the entry is for the plugin, which sees the node and no container.
	c.Args = append(c.Args, "--bpffs="+n.BPFFS, "--run-dir="+n.RunDir, "--state-dir="+n.StateDir, "--ready-file=/run/kmesh/install.ready")
	for _, dir := range []string{n.RunDir, n.StateDir} {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: dir, MountPath: dir})
		c.pod.Volumes = append(c.pod.Volumes, corev1.Volume{Name: dir, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}})
	}
	return c
}

// TestUnderTheManifest: the manifest's containers do all their work under exactly its capabilities, seccomp profile,
// no_new_privs and root file system that cannot be written, in real containers made over CRI: the installer with no
// capability at all brings the plugin to the runtime, which enrols a pod, which the helper governs. When any one of
// the helper's capabilities is left out, something of it fails that can be seen.
func TestUnderTheManifest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	m := startWith(t, flavours[0], node.Options{NoKmesh: true})
	m.buildImage(ctx, t)
	b := &bench{m: m, xds: filepath.Join(m.n.Dir, "xds")}
	if err := os.Mkdir(b.xds, 0o700); err != nil {
		t.Fatal(err)
	}
	b.write(t, xds)
	for _, dir := range []string{m.n.RunDir, m.n.StateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // as the kubelet makes them
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := m.n.Uninstall(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})

	plugin := m.runContainer(ctx, t, b.installer(t, "plugin"))
	var code int32
	if err := plugin.until(ctx, t, "end of the plugin's installation", func() error { return errors.New("it runs") }); err == nil {
		t.Fatal("it never ended")
	}
	if code, _ = plugin.exited(ctx, t); code != 0 {
		t.Fatalf("installing the plugin ended with %d:\n%s", code, plugin.logged(t))
	}
	if _, err := os.Stat(filepath.Join(m.places.cniBin, "kmesh-cni")); err != nil {
		t.Fatal(err)
	}
	install := m.runContainer(ctx, t, b.installer(t, "install"))
	if err := install.until(ctx, t, "ready file", func() error { _, err := os.Stat(filepath.Join(m.n.RunDir, "install.ready")); return err }); err != nil {
		t.Fatalf("%v; its log:\n%s", err, install.logged(t))
	}

	first := m.runContainer(ctx, t, b.helper(t))
	if err := first.until(ctx, t, "ready", func() error { _, err := m.n.Get(ctx, "/readyz"); return err }); err != nil {
		t.Fatalf("%v; its log:\n%s", err, first.logged(t))
	}
	t.Logf("memory of the helper's container, with its maps: %s", first.memory(t))
	first.stop(ctx, t)
	uid := node.NewUID()
	pod := m.runSandbox(ctx, t, "enrolled", uid, "kubepods/besteffort/pod"+uid, node.Enrolled())
	pod.checkGoverned(ctx, t)

	t.Run("whole", func(t *testing.T) {
		b.write(t, xds)
		r := m.runContainer(ctx, t, b.helper(t))
		if err := b.works(ctx, t, r); err != nil {
			t.Fatalf("%v; its log:\n%s", err, r.logged(t))
		}
		r.checkConfined(t, b.helper(t))
	})
	install.checkConfined(t, b.installer(t, "install"))
	for _, capability := range b.helper(t).SecurityContext.Capabilities.Add {
		t.Run("without "+string(capability), func(t *testing.T) {
			b.write(t, xds)
			r := m.runContainer(ctx, t, b.helper(t).without(capability))
			err := b.works(ctx, t, r)
			if err == nil {
				t.Fatalf("all works: the manifest is not to add it; its log:\n%s", r.logged(t))
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			t.Logf("%v; its log ends:\n%s", err, tail(r.logged(t), 600))
		})
	}
	if err := install.until(ctx, t, "installer", func() error { return nil }); err != nil {
		t.Error(err)
	}
	pod.stop(ctx, t)
	pod.remove(ctx, t)
	pod.removeCgroup(t)
	install.stop(ctx, t)
	b.uninstall(ctx, t)
}

// refusesMapIterators tells whether this kernel refuses the smallest iterator over a map's elements, to root with every capability.
func refusesMapIterators() bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "bpf_sk_storage_map", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err == nil {
		p.Close()
	}
	return err != nil
}

// uninstall takes Kmesh off the node as the README has it: with the programs of the image, run on the node.
func (b *bench) uninstall(ctx context.Context, t *testing.T) {
	t.Helper()
	n, p := b.m.n, b.m.places
	at := filepath.Join(n.Dir, "image")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	b.m.ctrImages(ctx, t, "mount", imageName, at)
	defer b.m.ctrImages(ctx, t, "unmount", "--rm", at)
	program := filepath.Join(at, "usr/local/bin/kmesh-install")
	out, err := b.m.command(ctx, program, "uninstall", "--owner=kmesh-system/kmesh", "--source="+filepath.Dir(program), "--cri-socket="+p.socket,
		"--bin-dir="+p.cniBin, "--conf-dir="+p.cniConf, "--bpffs="+n.BPFFS, "--run-dir="+n.RunDir, "--state-dir="+n.StateDir, "--ready-file=").CombinedOutput()
	if err != nil {
		t.Errorf("kmesh-install uninstall: %v\n%s", err, out)
	}
	if err := filepath.WalkDir(p.cniConf, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), "kmesh-cni") {
			err = fmt.Errorf("%s still names the plugin:\n%s", path, text)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(p.cniBin, "kmesh-cni")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the plugin is there still: %v", err)
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
