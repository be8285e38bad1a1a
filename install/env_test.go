// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kmesh/cni/entry"
)

// source holds the programs.
var source string

const primaryType = "kmesh-test-primary"

// rewriteRole is the variable that makes this program write a file every 50 ms.
const rewriteRole = "KMESH_TEST_REWRITE"

func TestMain(m *testing.M) {
	if os.Getenv(rewriteRole) != "" {
		if err := rewrite(strings.Split(os.Getenv(rewriteRole), "|")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if source != "" {
		os.RemoveAll(source)
	}
	os.Exit(code)
}

// programs builds them once; a fuzzer needs none.
var programs = sync.OnceValue(func() (err error) {
	if source, err = os.MkdirTemp("", "kmesh-install-test-"); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", source+"/", "kmesh/cni/kmesh-cni", "kmesh/install/kmesh-cni-stub", "kmesh/install/kmesh-install")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
})

// heard is a reporter for tests.
type heard struct {
	mu     sync.Mutex
	events []Event
}

func (h *heard) Report(_ context.Context, e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *heard) all() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

func (h *heard) find(reason string) []Event {
	return slices.DeleteFunc(h.all(), func(e Event) bool { return e.Reason != reason })
}

// env is a node's folders.
type env struct {
	t              testing.TB
	root           string
	conf, bin      string
	cache, state   string
	events         *heard
	opts           Options
	primary        string // path of it
	primaryContent string
}

// list is a primary as its owner wrote it.
const list = `{
  "cniVersion": "1.0.0",
  "name":  "pods",
  "x-owner": {"z": 12345678901234567890, "a": 1.50},
  "plugins": [
    {"type": "` + primaryType + `", "mtu": 1500},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func newEnv(t testing.TB) *env {
	t.Helper()
	if err := programs(); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	e := &env{t: t, root: root, conf: filepath.Join(root, "net.d"), bin: filepath.Join(root, "bin"), cache: filepath.Join(root, "cache"),
		state: filepath.Join(root, "lib/kmesh"), events: &heard{}}
	for _, dir := range []string{e.conf, e.bin, e.cache} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e.opts = Options{
		Owner: "test", Version: "v1", Source: source, CRISocket: NoCRI, ConfDir: e.conf, BinDir: e.bin, CacheDir: e.cache,
		Plugin:    entry.Conf{BPFFS: filepath.Join(root, "bpf"), RunDir: filepath.Join(root, "run"), StateDir: e.state},
		ReadyFile: filepath.Join(root, "ready"), Reporter: e.events, Timing: quick,
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return e
}

// quick is for tests: the same steps, sooner.
var quick = Timing{
	Resync: 200 * time.Millisecond, Gather: 10 * time.Millisecond, Confirm: 2 * time.Second, Trial: time.Second, Poll: 10 * time.Millisecond, Settle: 100 * time.Millisecond,
	War: WarTiming{Losses: 5, Pause: 100 * time.Millisecond, Calm: 5 * time.Second, Quiet: time.Second, MaxQuiet: time.Minute},
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil { // a log after the end of a test is a panic
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// put writes the primary.
func (e *env) put(name, content string) {
	e.t.Helper()
	e.primary, e.primaryContent = filepath.Join(e.conf, name), content
	if err := os.WriteFile(e.primary, []byte(content), 0o640); err != nil {
		e.t.Fatal(err)
	}
}

func (e *env) installer() *Installer {
	e.t.Helper()
	in, err := New(e.opts)
	if err != nil {
		e.t.Fatal(err)
	}
	return in
}

// once claims the node and looks at it once.
func (e *env) once() (*Installer, error) {
	e.t.Helper()
	in := e.installer()
	if err := in.start(e.t.Context()); err != nil {
		e.t.Fatal(err)
	}
	_, err := in.pass(e.t.Context())
	return in, err
}

// run runs an installer until the returned function is called.
func (e *env) run() (in *Installer, stop func()) {
	e.t.Helper()
	in = e.installer()
	ctx, cancel := context.WithCancel(e.t.Context())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			e.t.Error(err)
		}
	})
	e.t.Cleanup(stop)
	return in, stop
}

// tree is everything below a folder: names, modes, contents.
func tree(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		s := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s += "\n" + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " " + target
		}
		out[strings.TrimPrefix(path, root)] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sameTree says what differs.
func sameTree(t testing.TB, want, got map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%s is gone", path)
		} else if g != w {
			t.Errorf("%s is\n%.2000s\nand was\n%.2000s", path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is left", path)
		}
	}
}

// noTemps fails when a temporary file is left.
func (e *env) noTemps() {
	e.t.Helper()
	for path := range tree(e.t, e.root) {
		if strings.HasSuffix(path, ".tmp") {
			e.t.Errorf("%s is left", path)
		}
	}
}

// untouched fails when the primary is not as it was put.
func (e *env) untouched() {
	e.t.Helper()
	if data, err := os.ReadFile(e.primary); err != nil || string(data) != e.primaryContent {
		e.t.Errorf("the primary is now %v\n%.2000s", err, data)
	}
	e.noTemps()
}

func poll(t testing.TB, what string, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ready(in *Installer) func() error {
	return func() error {
		if s := in.Status(); !s.Ready {
			return errors.New(s.Reason)
		}
		return nil
	}
}

// rewrite writes a file over and over, as somebody does who does not know of us: PATH, the file with the content, how long;
// and whether always, or only when it is another one (restoring).
func rewrite(args []string) error {
	content, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	limit, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	end := time.After(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return nil
		case <-tick.C:
			if now, err := os.ReadFile(args[0]); args[3] == "restoring" && err == nil && bytes.Equal(now, content) {
				continue
			}
			tmp := filepath.Join(filepath.Dir(args[0]), ".other.tmp2")
			if err := os.WriteFile(tmp, content, 0o644); err != nil {
				return err
			}
			if err := os.Rename(tmp, args[0]); err != nil {
				return err
			}
		}
	}
}

// rewriter starts a process that does.
func (e *env) rewriter(path, content string, limit time.Duration, how string) *exec.Cmd {
	e.t.Helper()
	from := filepath.Join(e.t.TempDir(), "content")
	if err := os.WriteFile(from, []byte(content), 0o600); err != nil {
		e.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), rewriteRole+"="+strings.Join([]string{path, from, limit.String(), how}, "|"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// program runs the built kmesh-install on the node, as an administrator does.
func (e *env) program(args ...string) error {
	out, err := e.command(args...).CombinedOutput()
	e.t.Logf("kmesh-install %s: %v\n%s", strings.Join(args, " "), err, out)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func (e *env) command(args ...string) *exec.Cmd {
	o := e.opts
	cmd := exec.Command(filepath.Join(source, "kmesh-install"), append(args, "--owner", o.Owner, "--source", o.Source, "--mode", string(cmp.Or(o.Mode, Auto)),
		"--cri-socket", o.CRISocket, "--conf-dir", o.ConfDir, "--bin-dir", o.BinDir, "--cache-dir", o.CacheDir, "--state-dir", o.Plugin.StateDir,
		"--run-dir", o.Plugin.RunDir, "--bpffs", o.Plugin.BPFFS, "--ready-file", o.ReadyFile)...)
	return cmd
}
