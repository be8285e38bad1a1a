// SPDX-License-Identifier: Apache-2.0

package place

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// only fails when the folder holds anything but this.
func only(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(data)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the folder holds %q, want %q", got, want)
	}
}

func TestReplaceKeepsWhoseItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, "old")
	if err := errors.Join(os.Chmod(path, 0o604), os.Chown(path, 12, 34), unix.Setxattr(path, "user.label", []byte("x"), 0)); err != nil {
		t.Fatal(err)
	}
	if err := (Disk{}).Replace(path, []byte("old"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	only(t, dir, map[string]string{"f": "new"})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	value := make([]byte, 8)
	n, err := unix.Getxattr(path, "user.label", value)
	if err != nil || info.Mode().Perm() != 0o604 || st.Uid != 12 || st.Gid != 34 || string(value[:n]) != "x" {
		t.Errorf("mode %v, owner %d:%d, label %q (%v)", info.Mode(), st.Uid, st.Gid, value[:n], err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, "theirs")
	want := map[string]string{"f": "theirs"}
	var d Disk
	for name, err := range map[string]error{
		"Replace": d.Replace(path, []byte("what I read"), []byte("new")),
		"Remove":  d.Remove(path, []byte("what I read")),
		"Create":  d.Create(path, []byte("new"), 0o600),
	} {
		if !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	only(t, dir, want)
	if err := d.Replace(filepath.Join(dir, "gone"), []byte("x"), []byte("y")); !errors.Is(err, ErrChanged) {
		t.Errorf("Replace of a file that is gone: %v", err)
	}
	if err := d.Remove(filepath.Join(dir, "gone"), []byte("x")); err != nil {
		t.Errorf("Remove of a file that is gone: %v", err)
	}
	only(t, dir, want)
}

func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	link, folder, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "folder"), filepath.Join(dir, "fifo")
	write(t, filepath.Join(dir, "f"), "x")
	if err := errors.Join(os.Symlink("f", link), os.Mkdir(folder, 0o700), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, folder, fifo} {
		if _, _, err := Read(path, 10); err == nil {
			t.Errorf("%s is read", path)
		}
		if err := (Disk{}).Replace(path, []byte("x"), []byte("y")); err == nil {
			t.Errorf("%s is replaced", path)
		}
	}
	if _, _, err := Read(filepath.Join(dir, "f"), 0); err == nil {
		t.Error("a file of more than the limit is read")
	}
	if data, err := os.ReadFile(link); err != nil || string(data) != "x" {
		t.Errorf("the link's file is %q, %v", data, err)
	}
}

// Somebody else writes the same file as fast as it goes. What was written last is never lost, and a reader never sees a part.
func TestAgainstAnotherWriter(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	body := func(n int) string { return fmt.Sprintf("%d %s\n", n, strings.Repeat("x", 10_000)) }
	write(t, path, body(0))
	const versions = 2000
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for n := 1; n <= versions; n++ {
			tmp := filepath.Join(dir, "theirs")
			if err := os.WriteFile(tmp, []byte(body(n)), 0o600); err != nil {
				t.Error(err)
				return
			}
			if err := os.Rename(tmp, path); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			data, err := os.ReadFile(path)
			if err != nil || !strings.HasSuffix(string(data), "x\n") && !strings.HasSuffix(string(data), "ours") {
				t.Errorf("a reader sees %d bytes, %v", len(data), err)
				return
			}
		}
	})
	replaced, changed := 0, 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fresh, _ := bytes.CutSuffix(old, []byte("ours"))
		switch err := (Disk{}).Replace(path, old, append(bytes.Clone(fresh), "ours"...)); {
		case err == nil:
			replaced++
		case errors.Is(err, ErrChanged):
			changed++
		default:
			t.Fatal(err)
		}
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(data), " ")
	if n, err := strconv.Atoi(first); err != nil || n != versions {
		t.Errorf("the last that is there is %q, want %d", first, versions)
	}
	if replaced == 0 || changed == 0 {
		t.Errorf("%d replaced, %d put back: the two never met", replaced, changed)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	t.Logf("%d versions written, %d replaced, %d put back", versions, replaced, changed)
}

// Each step fails once: all is as before, and no temporary file is left.
func TestStepsFail(t *testing.T) {
	operations := map[string]func(d Disk, path string) error{
		"Replace": func(d Disk, path string) error { return d.Replace(path, []byte("old"), []byte("new")) },
		"Remove":  func(d Disk, path string) error { return d.Remove(path, []byte("old")) },
		"Create":  func(d Disk, path string) error { return d.Create(path+"2", []byte("new"), 0o600) },
		"Copy":    func(d Disk, path string) error { return d.Copy("/proc/self/exe", path, 0o755) },
	}
	for name, f := range operations {
		for _, step := range []Step{StepCreate, StepWrite, StepMode, StepSync, StepRename, StepVerify, StepSyncDir, StepUnlink} {
			t.Run(name+", "+string(step), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "f")
				write(t, path, "old")
				asked := false
				err := f(Disk{Fail: func(s Step, _ string) error {
					if s != step {
						return nil
					}
					asked = true
					return unix.EIO
				}}, path)
				switch {
				case !asked && err != nil:
					t.Error(err)
				case asked && step == StepUnlink && name == "Replace":
					// The new file is in place, and the old one's last name is taken away all the same.
					only(t, dir, map[string]string{"f": "new"})
				case asked && !(name == "Copy" && step == StepSyncDir):
					if !errors.Is(err, unix.EIO) {
						t.Errorf("error %v", err)
					}
					only(t, dir, map[string]string{"f": "old"})
				}
				if found, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(found) > 0 {
					t.Errorf("left: %v, %v", found, err)
				}
			})
		}
	}
}

// Where a file system cannot exchange two names, it is a rename.
func TestWithoutExchange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, "old")
	d := Disk{Fail: func(s Step, _ string) error {
		if s == StepRename {
			return unix.EINVAL
		}
		return nil
	}}
	if err := d.Replace(path, []byte("other"), []byte("new")); !errors.Is(err, ErrChanged) {
		t.Errorf("error %v", err)
	}
	only(t, dir, map[string]string{"f": "old"})
	if err := d.Replace(path, []byte("old"), []byte("new")); err != nil {
		t.Error(err)
	}
	only(t, dir, map[string]string{"f": "new"})
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, ".kmesh-abc.tmp"), "left by a killed one")
	write(t, filepath.Join(dir, ".other.tmp"), "theirs")
	write(t, filepath.Join(dir, "kmesh-abc.tmp"), "theirs")
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	only(t, dir, map[string]string{".other.tmp": "theirs", "kmesh-abc.tmp": "theirs"})
	if err := Sweep(filepath.Join(dir, "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// A program is replaced while it runs.
func TestCopyOverARunningProgram(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sleep")
	var d Disk
	if err := d.Copy("/bin/sleep", path, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(path, []string{path, "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = p.Wait() }()
	defer func() { _ = p.Kill() }()
	began := time.Now()
	if err := d.Copy("/bin/true", path, 0o755); err != nil {
		t.Fatalf("after %s: %v", time.Since(began), err)
	}
	if err := p.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the running one: %v", err)
	}
}

// A program can be run as soon as it is in place, whatever else this process starts meanwhile: a child that came to be while the file was written would
// have it open for writing until its own exec.
func TestCopiedProgramIsNotBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "true")
	done := make(chan struct{})
	var others sync.WaitGroup
	for range 8 {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_ = exec.Command("/bin/true").Run()
				}
			}
		})
	}
	defer others.Wait()
	defer close(done)
	var d Disk
	for i := range 60 {
		if err := d.Copy("/bin/true", path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command(path).Run(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}
