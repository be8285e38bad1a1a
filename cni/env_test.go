// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/netns"
)

// binary is the plugin, built once.
var binary string

const noBPF = "KMESH_CNI_TEST_NO_BPF"

func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == primaryType:
		os.Exit(primary())
	case os.Getenv(noBPF) != "":
		fmt.Fprintln(os.Stderr, execWithoutBPF(os.Args[1:]))
		os.Exit(3)
	}
	dir, err := os.MkdirTemp("", "kmesh-cni-test-")
	if err == nil {
		binary = filepath.Join(dir, "kmesh-cni")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", binary, "kmesh/cni/kmesh-cni").CombinedOutput(); err != nil {
			err = fmt.Errorf("build the plugin: %w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// execWithoutBPF becomes the program of args under a seccomp filter that kills the process on bpf(2).
func execWithoutBPF(args []string) error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}

var serial atomic.Uint64

// env is a node of its own for one test, with no helper: all that is there are pins.
type env struct {
	t                    testing.TB
	bpffs, run, state    string
	cgroups, cgroupsPath string // the test's subtree: in the file system, and below the cgroup2 mount
}

func newEnv(t testing.TB) *env {
	t.Helper()
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs (root needed): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	e := &env{t: t, bpffs: filepath.Join(mount, "kmesh"), run: filepath.Join(t.TempDir(), "run"), state: filepath.Join(t.TempDir(), "state")}
	e.setPhase(bpf.PhaseLive)
	e.cgroupsPath = fmt.Sprintf("/kmesh-cni-test-%d-%d", os.Getpid(), serial.Add(1))
	e.cgroups = cgroup2(t) + e.cgroupsPath
	e.mkcgroup(e.cgroups)
	e.mkcgroup(e.cgroups + "/kubepods")
	return e
}

// setPhase loads what is not loaded, as a helper that dies right after.
func (e *env) setPhase(p bpf.Phase) {
	e.t.Helper()
	rt, err := bpf.Load(bpf.LoadOptions{BPFFS: e.bpffs})
	if err == nil {
		err = errors.Join(rt.SetState(p, 1, 1), rt.Close())
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// cgroup2 is where the hierarchy is mounted.
func cgroup2(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			return f[4]
		}
	}
	t.Fatal("cgroup2 is not mounted")
	return ""
}

func (e *env) mkcgroup(dir string) {
	e.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { rmcgroup(e.t, dir) })
}

func rmcgroup(t testing.TB, dir string) {
	t.Helper()
	poll(t, "remove "+dir, func() error {
		if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func poll(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// newNetns makes a network namespace with an eth0, bound to a path.
func newNetns(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"})
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { dropNetns(t, path) })
	return path
}

func dropNetns(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount network namespace: %v", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// call is one call of the plugin. Its fields are what a runtime sends; extra replaces or adds keys of the configuration, raw JSON by key.
type pluginCall struct {
	verb, id, netns, ifName, args string
	version, network              string
	annotations                   map[string]string
	cgroupPath                    string
	prevResult                    string
	extra                         map[string]string
	noBPF                         bool
	attr                          *syscall.SysProcAttr
}

// pod is a call for a new pod with a sandbox of its own.
func (e *env) pod(id string, annotations map[string]string) pluginCall {
	e.t.Helper()
	uid := fmt.Sprintf("7a1e0c55-0000-4000-8000-%08x%04x", os.Getpid(), serial.Add(1))
	e.mkcgroup(e.cgroups + "/kubepods/pod" + uid)
	return pluginCall{
		id: id, netns: newNetns(e.t), ifName: "eth0", version: "1.0.0", network: "cluster.net",
		args:        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=" + id + ";K8S_POD_UID=" + uid,
		annotations: annotations, cgroupPath: e.cgroupsPath + "/kubepods/pod" + uid, prevResult: result("1.0.0"),
	}
}

var optedIn = map[string]string{"kmesh.net/enroll": "true"}

func (c pluginCall) attachment() netns.Attachment {
	return netns.Attachment{ContainerID: c.id, Network: c.network, IfName: c.ifName}
}

// in gives the call in another version of the specification.
func (c pluginCall) in(version string) pluginCall {
	c.version, c.prevResult = version, result(version)
	return c
}

// result is a primary's result with what a struct would lose: white space, order, an unknown key, a large number.
func result(version string) string {
	ip := `{"address":"10.7.0.2/24","gateway":"10.7.0.1","interface":0}`
	if version < "1" {
		ip = `{"version":"4","address":"10.7.0.2/24","gateway":"10.7.0.1","interface":0}`
	}
	return `{ "ips":[` + ip + `],"unknown":12345678901234567890,
	"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/x"}], "cniVersion":"` + version + `"}`
}

func (e *env) stdin(c pluginCall) []byte {
	keys := map[string]string{
		"cniVersion": quote(c.version), "name": quote(c.network), "type": `"kmesh-cni"`,
		"capabilities": `{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true}`,
		"bpffs":        quote(e.bpffs), "runDir": quote(e.run), "stateDir": quote(e.state),
	}
	if c.prevResult != "" {
		keys["prevResult"] = c.prevResult
	}
	if c.annotations != nil || c.cgroupPath != "" {
		data, _ := json.Marshal(map[string]any{"io.kubernetes.cri.pod-annotations": c.annotations, "cgroupPath": c.cgroupPath})
		keys["runtimeConfig"] = string(data)
	}
	for k, v := range c.extra {
		keys[k] = v
	}
	var parts []string
	for k, v := range keys {
		if v != "" {
			parts = append(parts, quote(k)+":"+v)
		}
	}
	return []byte("{" + strings.Join(parts, ",") + "}")
}

func quote(s string) string {
	data, _ := json.Marshal(s)
	return string(data)
}

// command prepares the call.
func (e *env) command(c pluginCall) *exec.Cmd {
	cmd := exec.Command(binary)
	if c.noBPF {
		self, err := os.Executable()
		if err != nil {
			e.t.Fatal(err)
		}
		cmd = exec.Command(self, binary)
		cmd.Env = append(cmd.Env, noBPF+"=1")
	}
	cmd.Env = append(cmd.Env, "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.netns, "CNI_IFNAME="+c.ifName, "CNI_ARGS="+c.args, "CNI_PATH=/nowhere")
	cmd.Stdin = bytes.NewReader(e.stdin(c))
	cmd.SysProcAttr = c.attr
	return cmd
}

// do calls the plugin. The error is the plugin's own, or how its process ended.
func (e *env) do(verb string, c pluginCall) (stdout string, err error) {
	c.verb = verb
	cmd := e.command(c)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err = cmd.Run()
	if stderr.Len() > 0 {
		return out.String(), fmt.Errorf("stderr: %s (%w)", stderr.String(), err)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		own := struct {
			CNIVersion string `json:"cniVersion"`
			types.Error
		}{}
		if jsonErr := json.Unmarshal(out.Bytes(), &own); jsonErr != nil || own.Code == 0 || own.CNIVersion == "" {
			return out.String(), fmt.Errorf("stdout of a failed call is %q: %w", out.String(), err)
		}
		return "", &own.Error
	}
	return out.String(), err
}

func (e *env) must(verb string, c pluginCall) string {
	e.t.Helper()
	out, err := e.do(verb, c)
	if err != nil {
		e.t.Fatalf("%s %s: %v", verb, c.id, err)
	}
	return out
}

// wantCode calls the plugin and wants an error of the code that says something.
func (e *env) wantCode(verb string, c pluginCall, code uint, says string) {
	e.t.Helper()
	out, err := e.do(verb, c)
	var own *types.Error
	if !errors.As(err, &own) || own.Code != code || !strings.Contains(own.Msg, says) {
		e.t.Fatalf("%s gave %q, %v; want code %d and %q", verb, out, err, code, says)
	}
	if len(own.Msg) > 200 || strings.Contains(own.Msg, "\n") {
		e.t.Errorf("message of %d bytes: %s", len(own.Msg), own.Msg)
	}
}

func (e *env) node() *netns.Node { return netns.New(netns.Options{BPFFS: e.bpffs, RunDir: e.run}) }

// programs are the ids of the pinned programs.
func (e *env) programs() map[ebpf.ProgramID]bool {
	e.t.Helper()
	ids := make(map[ebpf.ProgramID]bool)
	for _, hooks := range [][]bpf.Hook{bpf.CgroupHooks, bpf.TCHooks} {
		for _, h := range hooks {
			p, err := ebpf.LoadPinnedProgram(bpf.ProgPath(e.bpffs, h.Name), nil)
			if err != nil {
				e.t.Fatal(err)
			}
			info, err := p.Info()
			p.Close()
			if err != nil {
				e.t.Fatal(err)
			}
			id, _ := info.ID()
			ids[id] = true
		}
	}
	return ids
}

const (
	nCgroup = 9 // links of one cgroup
	nTC     = 2 // links of one interface
)

// wantLinks polls for the exact number of links in the kernel that run our programs.
func (e *env) wantLinks(want int) {
	e.t.Helper()
	ours := e.programs()
	poll(e.t, "links of this node in the kernel", func() error {
		got := 0
		it := new(link.Iterator)
		defer it.Close()
		for it.Next() {
			if info, err := it.Link.Info(); err == nil && ours[info.Program] {
				got++
			}
		}
		if err := it.Err(); err != nil || got != want {
			return fmt.Errorf("%d links, want %d (%v)", got, want, err)
		}
		return nil
	})
}

// files lists what is below a directory, itself not included.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		if path != dir {
			out = append(out, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
