// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kmesh/test/node"
	"kmesh/test/oci"
)

const sandboxImage = "kmesh.test/pause:1"

const remedy = "run make test, or test/containerd/setup.sh once"

// flavour is a containerd to test with.
type flavour struct {
	name       string
	version    string // that it must say
	cniVersion string
	containerd string // below the cache of setup.sh, as the others
	ctr        string
	shims      string // folder
	runc       string
	config     func(p places) string
	// Does it hand the pod's cgroup to the plugin (capability cgroupPath)?
	cgroupPath bool
}

// places are what a configuration names.
type places struct{ root, opt, socket, cniBin, cniConf, runc string }

var flavours = []flavour{
	{
		name: "containerd 2", version: "2.4.2", cniVersion: "1.1.0", cgroupPath: true,
		containerd: "v2/containerd", ctr: "v2/ctr", shims: "v2", runc: "runc/runc",
		config: func(p places) string {
			return fmt.Sprintf(`version = 3
root = %[1]q
state = "/run/containerd"
imports = []

[grpc]
  address = %[3]q

[plugins."io.containerd.internal.v1.opt"]
  path = %[2]q

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "`+sandboxImage+`"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%[4]q]
    conf_dir = %[5]q
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %[6]q

[plugins."io.containerd.nri.v1.nri"]
  disable = true
`, p.root, p.opt, p.socket, p.cniBin, p.cniConf, p.runc)
		},
	},
	{
		// Its libcni knows no 1.1.0.
		name: "Debian's containerd 1.6", version: "1.6.", cniVersion: "1.0.0", cgroupPath: false,
		containerd: "debian/usr/bin/containerd", ctr: "debian/usr/bin/ctr", shims: "debian/usr/bin", runc: "debian/usr/sbin/runc",
		config: func(p places) string {
			return fmt.Sprintf(`version = 2
root = %[1]q
state = "/run/containerd"

[grpc]
  address = %[3]q

[plugins."io.containerd.internal.v1.opt"]
  path = %[2]q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "`+sandboxImage+`"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[4]q
    conf_dir = %[5]q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = %[6]q
`, p.root, p.opt, p.socket, p.cniBin, p.cniConf, p.runc)
		},
	},
}

// machine is a containerd on a node.
type machine struct {
	n        *node.Node
	places   places
	cri      cri.RuntimeServiceClient
	recorded string // file of the recorder
	ctr      string // containerd's own client
	proc     *node.Process
}

// start runs a containerd until the test ends.
func start(t *testing.T, f flavour) *machine {
	t.Helper()
	return startWith(t, f, node.Options{})
}

func startWith(t *testing.T, f flavour, opts node.Options) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cache := cacheDir(t)
	for _, p := range []string{f.containerd, f.ctr, f.runc} {
		if _, err := os.Stat(filepath.Join(cache, p)); err != nil {
			t.Fatalf("%s is not there: %v: %s", f.name, err, remedy)
		}
	}
	opts.CNIVersion = f.cniVersion
	n := node.ForTest(t, opts)
	dir := filepath.Join(n.Dir, "containerd")
	p := places{
		root: filepath.Join(dir, "root"), opt: filepath.Join(dir, "opt"), socket: filepath.Join(dir, "sock"),
		cniBin: filepath.Join(dir, "cni-bin"), cniConf: filepath.Join(dir, "cni.d"), runc: filepath.Join(cache, f.runc),
	}
	m := &machine{n: n, places: p, recorded: filepath.Join(dir, "recorded")}
	for _, d := range []string{p.root, p.opt, p.cniBin, p.cniConf} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m.network(ctx, t, opts.NoKmesh)
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte(f.config(p)), 0o600); err != nil {
		t.Fatal(err)
	}

	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", filepath.Join(cache, f.containerd), "--config", config)
	cmd.Env = append(os.Environ(), initEnv+"="+n.Dir, "PATH="+filepath.Join(cache, f.shims)+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	proc, err := n.StartCmd(cmd, "containerd")
	if err != nil {
		t.Fatal(err)
	}
	m.proc = proc
	t.Cleanup(func() {
		proc.Kill() // the first process of its pid namespace: shims and pods end with it
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			for line := range strings.Lines(string(b)) {
				if !strings.Contains(line, "level=info") {
					t.Logf("containerd: %s", strings.TrimSpace(line))
				}
			}
		}
	})

	// It is not there at once: ask often.
	often := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}}
	conn, err := grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(often))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m.cri = cri.NewRuntimeServiceClient(conn)
	m.waitReady(ctx, t, f, proc)
	m.ctr = filepath.Join(cache, f.ctr)
	bin, err := node.Programs(ctx, "pause")
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image.tar")
	if err := oci.WriteImage(image, sandboxImage, filepath.Join(bin, "pause")); err != nil {
		t.Fatal(err)
	}
	m.importImage(ctx, t, image)
	return m
}

// cacheDir asks setup.sh where it puts things.
func cacheDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("./setup.sh", "--dir").Output()
	if err != nil {
		t.Fatalf("setup.sh --dir: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// network gives containerd the node's own chain, with the recorder at its end.
func (m *machine) network(ctx context.Context, t *testing.T, noKmesh bool) {
	t.Helper()
	p := m.places
	var conf map[string]any
	if err := json.Unmarshal(m.n.Conflist(), &conf); err != nil {
		t.Fatal(err)
	}
	conf["plugins"] = append(conf["plugins"].([]any), map[string]any{
		"type": recorderName, "log": m.recorded,
		"capabilities": map[string]any{"io.kubernetes.cri.pod-annotations": true, "cgroupPath": true},
	})
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.cniConf, "10-kmesh-test.conflist"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	plugins := []string{"bridge", "host-local", "loopback"}
	if !noKmesh {
		plugins = append(plugins, "kmesh-cni")
	}
	dir, err := node.Programs(ctx, plugins...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range plugins {
		if err := os.Symlink(filepath.Join(dir, name), filepath.Join(p.cniBin, name)); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(p.cniBin, recorderName)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) waitReady(ctx context.Context, t *testing.T, f flavour, proc *node.Process) {
	t.Helper()
	began := time.Now()
	var last error
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if last = m.ready(ctx, f.version); last == nil {
			tick.Stop()
			t.Logf("%s was ready after %s", f.name, time.Since(began).Round(time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not become ready: %v", f.name, last)
		case <-proc.Done():
			t.Fatalf("%s ended: %v", f.name, proc.Wait())
		case <-tick.C:
		}
	}
}

func (m *machine) ready(ctx context.Context, version string) error {
	v, err := m.cri.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(v.RuntimeVersion, version) {
		return fmt.Errorf("it is version %s, not %s: %s", v.RuntimeVersion, version, remedy)
	}
	st, err := m.cri.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range st.Status.Conditions {
		if !c.Status && (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) {
			return fmt.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

func (m *machine) importImage(ctx context.Context, t *testing.T, image string) {
	t.Helper()
	m.ctrImages(ctx, t, "import", image)
}

func (m *machine) ctrImages(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{m.ctr, "--address", m.places.socket, "--namespace", "k8s.io", "images"}, args...)
	if out, err := m.command(ctx, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// command is run where containerd sees what is mounted, as an administrator's is on a node.
func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", m.proc.Process.Pid), "--"}, args...)...)
}

// calls are what the recorder saw of a sandbox.
func (m *machine) calls(t *testing.T, sandbox string) []called {
	t.Helper()
	b, err := os.ReadFile(m.recorded)
	if err != nil {
		t.Fatalf("the plugin chain was never called: %v", err)
	}
	var calls []called
	for line := range strings.Lines(string(b)) {
		var c called
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			t.Fatal(err)
		}
		if c.Args["K8S_POD_INFRA_CONTAINER_ID"] == sandbox {
			calls = append(calls, c)
		}
	}
	return calls
}
