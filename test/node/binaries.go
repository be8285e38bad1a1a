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
	"kmesh-cni":    "kmesh/cni/kmesh-cni",
	"kmesh-helper": "kmesh/helper/kmesh-helper",
	"kmeshctl":     "kmesh/helper/kmeshctl",
	"agent":        "kmesh/test/node/agent",
	"pause":        "kmesh/test/containerd/pause",
}

// Programs builds programs of this module, static, into a cache that all tests share, and returns their folder. The
// go command decides what is out of date, so the second time costs little. A program in use is never written over.
func Programs(ctx context.Context, names ...string) (string, error) {
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

func build(ctx context.Context, dir, name string) error {
	pkg, ok := mains[name]
	if !ok {
		return fmt.Errorf("building %s: no such program", name)
	}
	builtMu.Lock()
	defer builtMu.Unlock()
	if built[name] {
		return nil
	}
	lock, err := lockFile(filepath.Join(dir, name+".lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()

	root, err := moduleRoot()
	if err != nil {
		return err
	}
	fresh := filepath.Join(dir, name+".build")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", fresh, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	if err := place(fresh, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("building %s: %w", pkg, err)
	}
	built[name] = true
	return nil
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
	if n.opts.BinDir == "" {
		dir, err := Programs(ctx, name)
		return filepath.Join(dir, name), err
	}
	dir, err := filepath.Abs(n.opts.BinDir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run make build first", err)
	}
	return path, nil
}
