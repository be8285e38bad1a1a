// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// everywhere renders the base, and the chart for each platform and with each value changed.
func everywhere(t *testing.T) map[string][]runtime.Object {
	t.Helper()
	base, err := Base(baseDir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]runtime.Object{"base": objects(t, base)}
	raw, err := os.ReadFile(filepath.Join(chartDir, "platforms.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var platforms map[string]any
	if err := yaml.Unmarshal(raw, &platforms); err != nil || len(platforms) == 0 {
		t.Fatalf("platforms: %v, %v", platforms, err)
	}
	for name := range platforms {
		out["platform "+name] = objects(t, render(t, map[string]any{"platform": name}))
	}
	for path, value := range others {
		out[path] = objects(t, render(t, with(path, value)))
	}
	return out
}

// hostPaths are the folders of the node that a container may see, and whether it may write there. What the platform
// names is checked by its volume.
var hostPaths = map[string]map[string]bool{
	"helper":  {"bpf": true, "cgroup": false, "netns": false, "cni-cache": false, "run": true, "state": true},
	"install": {"cni-bin": true, "cni-conf": true, "cni-cache": false, "runtime": false, "run": true, "state": true},
	"plugin":  {"cni-bin": true, "cni-conf": true, "cni-cache": false, "runtime": false, "run": true, "state": true},
}

// capabilities are those that the test of the running containers shows to be needed.
var capabilities = map[string][]corev1.Capability{
	"helper": {"BPF", "PERFMON", "NET_ADMIN", "NET_BROADCAST", "DAC_READ_SEARCH", "SYS_ADMIN"},
}

// TestNothingIsPrivileged, whatever the values.
func TestNothingIsPrivileged(t *testing.T) {
	for name, all := range everywhere(t) {
		pod := daemonSet(t, all).Spec.Template.Spec
		fault := func(format string, args ...any) { t.Errorf("%s: %s", name, fmt.Sprintf(format, args...)) }
		if pod.HostPID || pod.HostIPC || pod.ShareProcessNamespace != nil && *pod.ShareProcessNamespace {
			fault("the pod shares processes or memory with others")
		}
		if p := pod.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
			fault("the seccomp profile is %+v", p)
		}
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			s := c.SecurityContext
			switch {
			case s == nil || s.Capabilities == nil || s.AllowPrivilegeEscalation == nil || s.ReadOnlyRootFilesystem == nil:
				fault("container %s: something is not said: %+v", c.Name, s)
				continue
			case s.Privileged != nil && *s.Privileged, *s.AllowPrivilegeEscalation, !*s.ReadOnlyRootFilesystem, s.SeccompProfile != nil, s.ProcMount != nil:
				fault("container %s: %+v", c.Name, s)
			case !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, capabilities[c.Name]):
				fault("container %s: capabilities %+v, want %v alone", c.Name, s.Capabilities, capabilities[c.Name])
			}
			may, ok := hostPaths[c.Name]
			if !ok {
				fault("container %s is not known", c.Name)
			}
			for _, m := range c.VolumeMounts {
				i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
				if i < 0 {
					fault("container %s mounts %s, which is no volume", c.Name, m.Name)
					continue
				}
				if pod.Volumes[i].HostPath == nil {
					if !m.ReadOnly {
						fault("container %s may write to %s", c.Name, m.Name)
					}
					continue
				}
				if write, ok := may[m.Name]; !ok || write == m.ReadOnly {
					fault("container %s: %s, read-only %t, is not expected", c.Name, m.Name, m.ReadOnly)
				}
				if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
					fault("container %s: mounts of its own in %s reach the node", c.Name, m.Name)
				}
			}
			if c.LivenessProbe == nil && c.Name != "plugin" || c.Resources.Requests == nil && !strings.HasPrefix(name, "resources.") {
				fault("container %s has no probe or requests nothing", c.Name)
			}
		}
	}
}

// TestPermissions at the API server: reads of pods and namespaces, and events.
func TestPermissions(t *testing.T) {
	for name, all := range everywhere(t) {
		for _, o := range all {
			switch o := o.(type) {
			case *rbacv1.Role, *rbacv1.RoleBinding:
				t.Errorf("%s: %T is not expected", name, o)
			case *rbacv1.ClusterRole:
				for _, r := range o.Rules {
					for _, resource := range r.Resources {
						may := map[string][]string{"pods": {"list", "watch"}, "namespaces": {"list", "watch"}, "events": {"create", "patch"}}[resource]
						if resource == "securitycontextconstraints" && name == "platform openshift" {
							may = []string{"use"}
						}
						for _, verb := range r.Verbs {
							if !slices.Contains(may, verb) {
								t.Errorf("%s: it may %s %s", name, verb, resource)
							}
						}
					}
				}
			}
		}
	}
}

// TestArgumentsAreTheProgramsOwn: each container's program knows every flag that it is given, and what is given is good.
func TestArgumentsAreTheProgramsOwn(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "./helper/kmesh-helper", "./install/kmesh-install")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, all := range everywhere(t) {
		pod := daemonSet(t, all).Spec.Template.Spec
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			argv := slices.Concat(c.Command, c.Args, []string{"--help"}) // all else is parsed before it
			cmd := exec.Command(filepath.Join(bin, filepath.Base(argv[0])), argv[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: container %s: %q: %v\n%s", name, c.Name, argv, err, out)
			}
		}
	}
	// It is the flags that are looked at.
	if err := exec.Command(filepath.Join(bin, "kmesh-helper"), "run", "--nonsense=1", "--help").Run(); err == nil {
		t.Error("a flag that does not exist is taken")
	}
}
