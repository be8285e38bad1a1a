// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// kmesh is Kmesh on the node: a real pod of its image, as the manifests have it.
type kmesh struct {
	spec *core.Pod // to make it again
	pod  *core.Pod // nil while there is none
}

// release is where Kmesh is installed.
const release = "kmesh-system"

// install does what Helm does with the chart, and waits until the pod of the node is Ready.
func (b *bed) install(mesh string) {
	b.Helper()
	if err := b.n.EnsureNamespace(b.ctx, release); err != nil {
		b.Fatal(err)
	}
	b.kmesh.spec = b.daemonPod(b.setMesh(mesh))
	b.startKmesh()
}

// setMesh applies the chart with this mesh, which is a ConfigMap then.
func (b *bed) setMesh(mesh string) []*unstructured.Unstructured {
	b.Helper()
	objects := b.chart(map[string]any{"xds": map[string]any{"address": "", "files": map[string]any{"mesh.yaml": mesh}}})
	if err := b.n.Apply(b.ctx, objects, false); err != nil {
		b.Fatalf("applying the chart: %v", err)
	}
	return objects
}

func (b *bed) startKmesh() {
	b.Helper()
	b.kmesh.pod = b.waitReady(b.create(b.kmesh.spec))[0]
}

// stopKmesh deletes the pod and waits until it is gone. What it put on the node stays.
func (b *bed) stopKmesh() {
	b.Helper()
	b.delete(b.kmesh.pod)
	b.kmesh.pod = nil
}

// killHelper ends the helper's process as a crash does; the kubelet starts it again.
func (b *bed) killHelper() {
	b.Helper()
	pids := b.processesOf(b.kmesh.pod, "kmesh-helper")
	if len(pids) != 1 {
		b.Fatalf("kmesh-helper runs as %v, want one process", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		b.Fatalf("killing the helper: %v", err)
	}
}

// processesOf are the processes of a program in a pod, as seen from outside.
func (b *bed) processesOf(p *core.Pod, program string) []int {
	b.Helper()
	files, err := filepath.Glob(filepath.Join(b.n.CgroupRoot, "kubepods", "*", "pod"+string(p.UID), "*", "cgroup.procs"))
	if err != nil {
		b.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		procs, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		for _, field := range strings.Fields(string(procs)) {
			exe, _ := os.Readlink(filepath.Join("/proc", field, "exe"))
			if pid, err := strconv.Atoi(field); err == nil && filepath.Base(exe) == program {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// begin makes a pod that is a container of Kmesh's with another command.
func (b *bed) begin(name, container string, command ...string) *core.Pod {
	b.Helper()
	p := b.kmesh.spec.DeepCopy()
	c := b.container(container)
	c.Command, c.Args = command, nil
	c.ReadinessProbe, c.LivenessProbe, c.StartupProbe = nil, nil, nil
	p.Name, p.Spec.InitContainers, p.Spec.RestartPolicy = name, nil, core.RestartPolicyNever
	p.Spec.Containers = []core.Container{c}
	return b.create(p)
}

// finish waits for the end of such a pod, which must be a good one, deletes it, and returns what it printed.
func (b *bed) finish(p *core.Pod) string {
	b.Helper()
	b.until(2*podsLimit, "pod "+p.Name+" did not end", func() error {
		p = b.get(p)
		if p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed {
			return nil
		}
		return fmt.Errorf("it is %s: %s", p.Status.Phase, b.log(p))
	})
	if p.Status.Phase != core.PodSucceeded {
		b.Errorf("pod %s failed: %s", p.Name, b.log(p))
	}
	log := b.log(p)
	b.delete(p)
	return log
}

// log is what a pod of one container printed.
func (b *bed) log(p *core.Pod) string {
	logs, err := b.n.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &core.PodLogOptions{}).DoRaw(b.ctx)
	if err != nil {
		return err.Error()
	}
	return string(logs)
}

// uninstallPlugin begins to take the plugin out of the chain, and waits until it is out. finish waits for the rest.
func (b *bed) uninstallPlugin() *core.Pod {
	b.Helper()
	args := append([]string{"/usr/local/bin/kmesh-install", "uninstall", "--drain=60s"}, b.container("install").Args...)
	p := b.begin("uninstall-plugin", "install", args...)
	b.until(podsLimit, "the plugin is still in the chain", func() error {
		if chain := b.chain(); strings.Contains(chain, "kmesh-cni") {
			return fmt.Errorf("%s; %s", chain, b.log(p))
		}
		return nil
	})
	return p
}

// uninstallHelper takes away the programs.
func (b *bed) uninstallHelper() {
	b.Helper()
	b.finish(b.begin("uninstall-helper", "helper", "/usr/local/bin/kmesh-helper", "uninstall"))
}

// uninstall takes Kmesh off a node without pods of the network, and looks whether that is as it was.
func (b *bed) uninstall() {
	b.Helper()
	b.stopKmesh()
	b.n.RecordPins()
	b.finish(b.uninstallPlugin())
	b.uninstallHelper()
	b.checkAsBefore()
}

// chain is all that is in the folder of networks.
func (b *bed) chain() string {
	b.Helper()
	var all strings.Builder
	for path, content := range b.network() {
		if strings.HasPrefix(path, "etc") {
			fmt.Fprintf(&all, "%s: %s\n", path, content)
		}
	}
	return all.String()
}

// network is what is in the folders of networks and of plugins, by path.
func (b *bed) network() map[string]string {
	b.Helper()
	files := map[string]string{}
	for _, dir := range []string{"etc/cni/net.d", "opt/cni/bin"} {
		err := fs.WalkDir(os.DirFS(b.n.Disk("")), dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			files[path] = d.Type().String()
			if !d.IsDir() {
				content, err := os.ReadFile(b.n.Disk(path))
				if errors.Is(err, fs.ErrNotExist) {
					delete(files, path) // it has just been renamed
					return nil
				}
				files[path] += " " + string(content)
				return err
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
	return files
}

// checkAsBefore looks whether the node is as it was before Kmesh, byte for byte.
func (b *bed) checkAsBefore() {
	b.Helper()
	now := b.network()
	for _, path := range slices.Sorted(maps.Keys(now)) {
		if before, was := b.before[path]; !was || before != now[path] {
			b.Errorf("%s is not as before Kmesh: %.200q, was %.200q", path, now[path], before)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(b.before)) {
		if _, is := now[path]; !is {
			b.Errorf("%s is gone", path)
		}
	}
	if _, err := os.Stat(b.n.BPFFS); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("%s is there still (%v)", b.n.BPFFS, err)
	}
	for _, dir := range []string{b.n.RunDir, b.n.StateDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			b.Error(err)
		}
		for _, e := range entries {
			b.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
}

func (b *bed) container(name string) core.Container {
	b.Helper()
	for _, c := range b.kmesh.spec.Spec.Containers {
		if c.Name == name {
			return c
		}
	}
	b.Fatalf("the manifests have no container %s", name)
	return core.Container{}
}
