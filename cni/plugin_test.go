// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/cni/optin"
	"kmesh/netns"
)

var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

func TestEveryVerbEveryVersion(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			e := newEnv(t)
			c := e.pod("sandbox1", optedIn).in(v)
			if out := e.must("ADD", c); out != c.prevResult {
				t.Errorf("ADD printed %q, want prevResult %q", out, c.prevResult)
			}
			e.wantLinks(nCgroup + nTC)
			if v >= "0.4.0" {
				if out := e.must("CHECK", c); out != "" {
					t.Errorf("CHECK printed %q", out)
				}
			} else {
				e.wantCode("CHECK", c, types.ErrIncompatibleCNIVersion, "version")
			}
			if v >= "1.1.0" {
				c.extra = map[string]string{"cni.dev/valid-attachments": `[{"containerID":"sandbox1","ifname":"eth0"}]`}
				if out := e.must("GC", c) + e.must("STATUS", c); out != "" {
					t.Errorf("GC and STATUS printed %q", out)
				}
				e.wantLinks(nCgroup + nTC)
				c.extra = nil
			} else {
				e.wantCode("GC", c, types.ErrIncompatibleCNIVersion, "version")
				e.wantCode("STATUS", c, types.ErrIncompatibleCNIVersion, "version")
			}
			for range 3 {
				if out := e.must("DEL", c); out != "" {
					t.Errorf("DEL printed %q", out)
				}
			}
			e.wantLinks(0)
			if left := files(t, filepath.Join(e.bpffs, "pods")); len(left) != 0 {
				t.Errorf("bpffs has %v", left)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	e := newEnv(t)
	var got struct {
		Supported []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal([]byte(e.must("VERSION", pluginCall{})), &got); err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		if !slices.Contains(got.Supported, v) {
			t.Errorf("%s is missing in %v", v, got.Supported)
		}
	}
	c := e.pod("c1", optedIn)
	c.version = "2.0.0"
	e.wantCode("ADD", c, types.ErrIncompatibleCNIVersion, "version")
}

// notEnrolled are pods that must get their raw prevResult back, whatever else is wrong.
func notEnrolled() map[string]func(t *testing.T, e *env, c *pluginCall) {
	return map[string]func(t *testing.T, e *env, c *pluginCall){
		"no annotation":   func(*testing.T, *env, *pluginCall) {},
		"no annotations":  func(_ *testing.T, _ *env, c *pluginCall) { c.annotations = nil },
		"no capabilities": func(_ *testing.T, _ *env, c *pluginCall) { c.annotations, c.cgroupPath = nil, "" },
		"opted out": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "false"}
		},
		"opted-out in an opted-in namespace": func(t *testing.T, e *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "false"}
			writeSet(t, e, optin.Set{Namespaces: map[string]optin.Mode{"shop": optin.Enroll}})
		},
		"sidecar": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "true", "sidecar.istio.io/status": "{}"}
		},
		"ambient": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "true", "ambient.istio.io/redirection": "enabled"}
		},
		"control plane": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations, c.args = optedIn, strings.Replace(c.args, "=shop", "=istio-system", 1)
		},
		"no CNI_ARGS":     func(_ *testing.T, _ *env, c *pluginCall) { c.args = "" },
		"broken CNI_ARGS": func(_ *testing.T, _ *env, c *pluginCall) { c.args = "a;b=c=d" },
		"cgroup root":     func(_ *testing.T, _ *env, c *pluginCall) { c.cgroupPath = "/" },
		"cgroupPath broken": func(_ *testing.T, _ *env, c *pluginCall) {
			c.extra = map[string]string{"runtimeConfig": `{"cgroupPath":7}`}
		},
		"bpffs missing": func(t *testing.T, e *env, _ *pluginCall) { e.bpffs = filepath.Join(t.TempDir(), "none") },
		"keys broken": func(_ *testing.T, _ *env, c *pluginCall) {
			c.extra = map[string]string{"bpffs": "7", "runDir": `"x"`, "stateDir": "[]", "cni.dev/valid-attachments": "7"}
		},
		"opted out, with policies": func(t *testing.T, e *env, c *pluginCall) {
			c.annotations = map[string]string{"kmesh.net/enroll": "false"}
			writeSet(t, e, optin.Set{Namespaces: map[string]optin.Mode{"shop": optin.Enroll}, Policies: optin.Policies{Everywhere: []string{"root/lock"}}})
		},
		"policies broken": func(t *testing.T, e *env, _ *pluginCall) {
			writeState(t, e, `{"version":1,"namespaces":{"shop":"enroll"},"policies":{"some":["shop"]}}`)
		},
		"namespace set broken": func(t *testing.T, e *env, _ *pluginCall) { writeState(t, e, "{") },
		"namespace set of the future": func(t *testing.T, e *env, _ *pluginCall) {
			writeState(t, e, `{"version":2,"namespaces":{"shop":"enroll"}}`)
		},
		"other annotations": func(_ *testing.T, _ *env, c *pluginCall) {
			c.annotations = map[string]string{"x": strings.Repeat("y", 1<<20), "kmesh.net/on-unready": "nonsense"}
		},
		"run directory is a file": func(t *testing.T, e *env, _ *pluginCall) {
			writeState(t, e, "{")
			if err := os.WriteFile(e.run, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func writeSet(t *testing.T, e *env, s optin.Set) {
	t.Helper()
	if err := optin.Write(e.state, s); err != nil {
		t.Fatal(err)
	}
}

func writeState(t *testing.T, e *env, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(e.state, 0o700), os.WriteFile(optin.Path(e.state), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// Byte for byte, no program, no bpf(2): the process would be killed.
func TestNotEnrolledIsUntouched(t *testing.T) {
	e0 := newEnv(t)
	for name, change := range notEnrolled() {
		for _, v := range versions {
			t.Run(name+"/"+v, func(t *testing.T) {
				e := *e0
				e.t, e.run, e.state = t, filepath.Join(t.TempDir(), "run"), filepath.Join(t.TempDir(), "state")
				c := e.pod("c1", map[string]string{}).in(v)
				change(t, &e, &c)
				c.noBPF = true
				verbs := []string{"ADD", "ADD", "DEL", "DEL"}
				if v >= "0.4.0" {
					verbs = append(verbs, "CHECK")
				}
				if v >= "1.1.0" {
					verbs = append(verbs, "STATUS")
				}
				for _, verb := range verbs {
					if name == "keys broken" && verb == "CHECK" {
						continue // CHECK may say what is wrong with the conflist
					}
					want := ""
					if verb == "ADD" {
						want = c.prevResult
					}
					if out := e.must(verb, c); out != want {
						t.Errorf("%s printed %q, want %q", verb, out, want)
					}
				}
				if left := files(t, filepath.Join(e0.bpffs, "pods")); len(left) != 0 {
					t.Errorf("bpffs has %v", left)
				}
				if left := files(t, filepath.Join(e.run, "pods")); len(left) != 0 {
					t.Errorf("records are %v", left)
				}
			})
		}
	}
	e0.wantLinks(0)
}

// The filter of the test above bites: the same call for a pod that opted in dies of it.
func TestEnrolledCannotDoWithoutBPF(t *testing.T) {
	e := newEnv(t)
	c := e.pod("c1", optedIn)
	c.noBPF = true
	_, err := e.do("ADD", c)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
		t.Fatalf("it ended with %v, want SIGSYS", err)
	}
}

func TestNamespaceOptIn(t *testing.T) {
	e := newEnv(t)
	writeSet(t, e, optin.Set{Namespaces: map[string]optin.Mode{"shop": optin.Enroll, "bank": optin.Required}})
	c := e.pod("c1", nil)
	e.must("ADD", c)
	e.wantLinks(nCgroup + nTC)
	e.must("CHECK", c)
	e.must("DEL", c)
	out := e.pod("c2", map[string]string{"kmesh.net/enroll": "false"})
	out.args = strings.Replace(out.args, "=shop", "=bank", 1)
	e.must("ADD", out)
	e.wantLinks(nCgroup + nTC)
	// Opted in after it was made: not CHECK's business, the helper enrols it.
	e.must("CHECK", e.pod("c3", nil))
}

func TestAnnotationThatCannotBeObeyed(t *testing.T) {
	e := newEnv(t)
	e.wantCode("ADD", e.pod("c1", map[string]string{"kmesh.net/enroll": "yes"}), CodeAnnotation, `kmesh.net/enroll has value "yes": set it to "true"`)
	e.wantCode("ADD", e.pod("c2", map[string]string{"kmesh.net/enroll": strings.Repeat("x", 4000)}), CodeAnnotation, "kmesh.net/enroll")
	e.wantCode("ADD", e.pod("c3", map[string]string{"kmesh.net/enroll": "true", "kmesh.net/on-unready": "fail"}), CodeAnnotation, "kmesh.net/on-unready")
	e.wantLinks(0)
}

func TestNotReadyPod(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, e *env){
		"no snapshot yet": func(t *testing.T, e *env) { e.setPhase(bpf.PhaseLoaded) },
		"nothing loaded": func(t *testing.T, e *env) {
			if err := bpf.Unpin(e.bpffs); err != nil {
				t.Fatal(err)
			}
		},
		"not a bpffs": func(t *testing.T, e *env) { e.bpffs = t.TempDir() },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			spoil(t, e)
			c := e.pod("c1", optedIn)
			e.wantCode("ADD", c, uint(netns.CodeNotReady), "")
			wantOutcome(t, e, "c1", netns.Failed)
			e.must("DEL", c)
			wantOutcome(t, e, "c1", "")

			c.annotations = map[string]string{"kmesh.net/enroll": "true", "kmesh.net/on-unready": "pass"}
			if out := e.must("ADD", c); out != c.prevResult {
				t.Errorf("ADD printed %q", out)
			}
			wantOutcome(t, e, "c1", netns.Passed)
			e.must("CHECK", c)
			e.must("STATUS", c.in("1.1.0"))
			e.must("DEL", c)
			wantOutcome(t, e, "c1", "")

			// What the configuration says holds for pods that say nothing.
			c = e.pod("c1", optedIn)
			c.extra = map[string]string{"onUnready": `"pass"`}
			if out := e.must("ADD", c); out != c.prevResult {
				t.Errorf("ADD printed %q", out)
			}
			wantOutcome(t, e, "c1", netns.Passed)
			e.must("CHECK", c)
			e.must("DEL", c)
			c.annotations = map[string]string{"kmesh.net/enroll": "true", "kmesh.net/on-unready": "wait"}
			e.wantCode("ADD", c, uint(netns.CodeNotReady), "")
			e.must("DEL", c)
			c.annotations, c.extra = optedIn, map[string]string{"onUnready": `"wait"`}
			e.wantCode("ADD", c, uint(netns.CodeNotReady), "")
			e.must("DEL", c)
		})
	}
}

// wantOutcome looks for the pod's record; "" means none.
func wantOutcome(t *testing.T, e *env, id string, want netns.Outcome) {
	t.Helper()
	all, err := e.node().Records(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got netns.Outcome
	for _, r := range all {
		if r.ContainerID == id {
			got = r.Outcome
			if got != netns.Enrolled && (r.Reason == "" || r.Namespace != "shop" || r.Name != "web-0") {
				t.Errorf("record is %+v", r)
			}
		}
	}
	if got != want {
		t.Errorf("outcome on record is %q, want %q", got, want)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	err := guard(func(*skel.CmdArgs) error { panic("boom") })(nil)
	var own *types.Error
	if !errors.As(err, &own) || own.Code != types.ErrInternal || !strings.Contains(own.Msg, "boom") {
		t.Errorf("error is %v", err)
	}
}

func TestLogIsBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	for range 3 {
		openLog(dir).Info(strings.Repeat("x", maxLog))
	}
	for _, f := range []string{"cni.log", "cni.log.1"} {
		if info, err := os.Stat(filepath.Join(dir, f)); err != nil || info.Size() > maxLog+4096 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	if left := files(t, dir); len(left) != 2 {
		t.Errorf("run directory has %v", left)
	}
	openLog("/proc/nowhere").Info("lost, and nobody minds")
}

// The plugin's graph is small: it starts fast, and cannot talk to anybody.
func TestImportGraph(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "kmesh/cni/kmesh-cni").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		pkg := strings.TrimSpace(line)
		for _, no := range []string{"k8s.io/", "google.golang.org/", "envoyproxy", "kmesh/helper", "sigs.k8s.io", "prometheus", "fsnotify"} {
			if strings.Contains(pkg, no) {
				t.Errorf("the plugin imports %s", pkg)
			}
		}
	}
	ours := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if pkg := strings.TrimSpace(line); strings.HasPrefix(pkg, "kmesh/") {
			ours[pkg] = true
		}
	}
	want := map[string]bool{
		"kmesh/bpf": true, "kmesh/netns": true, "kmesh/netns/failpoint": true, "kmesh/cni": true, "kmesh/cni/entry": true,
		"kmesh/cni/optin": true, "kmesh/cni/kmesh-cni": true,
	}
	if !maps.Equal(ours, want) {
		t.Errorf("of ours it imports %v", ours)
	}
}
