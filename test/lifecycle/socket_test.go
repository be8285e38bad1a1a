// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kmesh/test/node"
)

// TestSocketRefusesOtherUsers: the real helper's socket answers root. A process of another user does not reach it, and
// where the modes of the files would let it, it is refused by what the kernel says of it, and that is logged.
func TestSocketRefusesOtherUsers(t *testing.T) {
	const nobody = 65534
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()

	// Where another user may run it, by folders that he may enter.
	programs, err := node.Programs(b.ctx, "kmeshctl")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kmesh-socket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := os.ReadFile(filepath.Join(programs, "kmeshctl"))
	if err != nil {
		t.Fatal(err)
	}
	ctl := filepath.Join(dir, "kmeshctl")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(ctl, program, 0o755), os.Chmod(ctl, 0o755)); err != nil {
		t.Fatal(err)
	}
	ask := func(uid uint32) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(b.ctx, ctl, "--socket", b.node.Socket(), "status")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	check := func(when string) {
		t.Helper()
		if out, code := ask(0); code != 0 || !strings.Contains(out, b.node.BPFFS) {
			t.Errorf("%s: root is answered with code %d: %s", when, code, out)
		}
		if out, code := ask(nobody); code == 0 || strings.Contains(out, b.node.BPFFS) {
			t.Errorf("%s: another user is answered with code %d: %s", when, code, out)
		}
	}
	check("as the helper makes it")
	logged := func() bool {
		log, err := os.ReadFile(h.LogPath)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(log), "uid=65534")
	}
	if logged() {
		t.Error("another user reached the socket, though its folder is closed to him")
	}
	// Every folder on the way, and the socket itself, are opened to all.
	for path := b.node.Socket(); path != "/run"; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(path, info.Mode().Perm()) })
	}
	check("with all modes open")
	if !logged() {
		t.Error("that another user was refused is not in the log")
	}
}

// TestPinsAreClosedToOthers: what a helper and an enrolled pod leave on the bpf file system and in the run directory
// is root's alone.
func TestPinsAreClosedToOthers(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	b.start()
	b.only(b.client("client"), "v1", 1)
	seen := 0
	for _, dir := range []string{b.node.BPFFS, b.node.RunDir} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			seen++
			if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: uid %d, mode %#o", path, st.Uid, info.Mode().Perm())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 50 {
		t.Errorf("only %d pins and files are there", seen)
	}
}
