// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Where each program's main package is. The CNI plugins' version is the one in go.mod.
var mains = map[string]string{
	"bridge":       "github.com/containernetworking/plugins/plugins/main/bridge",
	"host-local":   "github.com/containernetworking/plugins/plugins/ipam/host-local",
	"loopback":     "github.com/containernetworking/plugins/plugins/main/loopback",
	"app":          "kmesh/test/e2e/app",
	"kmesh-cni":    "kmesh/cni/kmesh-cni",
	"kmesh-helper": "kmesh/helper/kmesh-helper",
	"kmeshctl":     "kmesh/helper/kmeshctl",

	"kmesh-install":  "kmesh/install/kmesh-install",
	"kmesh-cni-stub": "kmesh/install/kmesh-cni-stub",

	"agent": "kmesh/test/node/agent",
	"pause": "kmesh/test/containerd/pause",
}

// Modules that programs are built from as they were released, with the versions their authors released them with. What
// they need is none of this module's business.
var released = map[string]string{
	// The last one without a scripting language in it.
	"fortio": "fortio.org/fortio@v1.68.2",
}

// BuiltPrograms is the variable that names a folder where all of them are built, for machines without Go.
const BuiltPrograms = "KMESH_PROGRAMS"

// Programs builds programs of this module, static, into a cache that all tests share, and returns their folder. The
// go command decides what is out of date, so the second time costs little. A program in use is never written over.
func Programs(ctx context.Context, names ...string) (string, error) {
	if dir := os.Getenv(BuiltPrograms); dir != "" {
		return dir, nil
	}
	dir, err := programDir()
	if err != nil {
		return "", fmt.Errorf("where to build programs: %w", err)
	}
	for _, name := range names {
		if err := build(ctx, dir, name); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// Version builds some of kmesh's own programs as another version: with this number of the
// layout of the maps, and other programs in the kernel for each edition. 0: as they are.
func Version(ctx context.Context, layout, edition int, names ...string) (string, error) {
	set := fmt.Sprintf("-s -w -X kmesh/bpf.edition=%d", edition)
	if layout != 0 {
		set += fmt.Sprintf(" -X kmesh/bpf.layout=%d", layout)
	}
	return buildAs(ctx, fmt.Sprintf("version-%d.%d", layout, edition), []string{"-ldflags", set}, names)
}

// Tagged builds some of kmesh's own programs with a build tag, such as failpoint.
func Tagged(ctx context.Context, tag string, names ...string) (string, error) {
	return buildAs(ctx, "tag-"+tag, []string{"-tags", tag}, names)
}

// buildAs builds programs in a way of their own, in a folder of their own.
func buildAs(ctx context.Context, folder string, flags, names []string) (string, error) {
	dir, err := programDir()
	if err != nil {
		return "", fmt.Errorf("where to build programs: %w", err)
	}
	dir = filepath.Join(dir, folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := build(ctx, dir, name, flags...); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// programDir is one folder for each checkout of the module.
var programDir = sync.OnceValues(func() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(cache, "kmesh", "bin", "module-"+hex.EncodeToString(sum[:4]))
	return dir, os.MkdirAll(dir, 0o755)
})

var moduleRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("not inside the kmesh module; give Options.BinDir, or run from a checkout")
	}
	return filepath.Dir(mod), nil
})

var (
	builtMu sync.Mutex
	built   = map[string]bool{} // once in a process is enough
)

func build(ctx context.Context, dir, name string, flags ...string) error {
	pkg, ok := mains[name]
	if !ok {
		pkg, ok = released[name]
	}
	if !ok {
		return fmt.Errorf("building %s: no such program", name)
	}
	builtMu.Lock()
	defer builtMu.Unlock()
	if built[filepath.Join(dir, name)] {
		return nil
	}
	lock, err := lockFile(filepath.Join(dir, name+".lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()

	fresh := filepath.Join(dir, name+".build")
	if _, ok := released[name]; ok {
		fresh = filepath.Join(dir, path.Base(pkg))
		err = install(ctx, pkg, fresh)
	} else {
		err = compile(ctx, pkg, fresh, flags...)
	}
	if err != nil {
		return err
	}
	if err := place(fresh, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("building %s: %w", pkg, err)
	}
	built[filepath.Join(dir, name)] = true
	return nil
}

// compile builds a package with the versions that go.mod names.
func compile(ctx context.Context, pkg, to string, flags ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-trimpath"}, flags...), "-o", to, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// install builds a released module's program, once: to is named by its version.
func install(ctx context.Context, pkg, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), "install-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	name, _, _ := strings.Cut(filepath.Base(to), "@")
	return os.Rename(filepath.Join(dir, name), to)
}

// place puts a copy of a program where others run it, by a rename; nothing when it is there already. The two are not
// one file, because the go command writes into its output in place, which a running program forbids.
func place(from, to string) error {
	f, err := os.Stat(from)
	if err != nil {
		return err
	}
	if t, err := os.Stat(to); err == nil && t.Size() == f.Size() && t.ModTime().Equal(f.ModTime()) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := to + ".new"
	dst, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, f.ModTime(), f.ModTime()); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// program is where one of kmesh's own programs is.
func (n *Node) program(ctx context.Context, name string) (string, error) {
	n.mu.Lock()
	binDir := n.opts.BinDir
	n.mu.Unlock()
	if binDir == "" {
		dir, err := Programs(ctx, name)
		return filepath.Join(dir, name), err
	}
	dir, err := filepath.Abs(binDir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make build first", err)
	}
	return path, nil
}

// UsePlugin makes the plugin in a folder the one that is run from now on, and UseHelper
// the helper, kmeshctl and uninstall: as an update does.
func (n *Node) UsePlugin(binDir string) { n.cni.use(binDir) }

// UseHelper: see UsePlugin.
func (n *Node) UseHelper(binDir string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opts.BinDir = binDir
}
