// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/cni/entry"
	"kmesh/install/place"
)

// Whatever the primary is, it is never worse after a look than before, and the error says what to do.
func TestBrokenPrimary(t *testing.T) {
	tests := []struct{ name, content, says string }{
		{"empty", "", "it is empty"},
		{"not UTF-8", strings.Replace(list, "x-owner", "x-\xff\xfe", 1), "is not UTF-8"},
		{"10 MiB", strings.Replace(list, "x-owner", strings.Repeat("x", 10<<20), 1), "more than"},
		{"comments", "// mine\n" + list, "not JSON"},
		{"another version", strings.Replace(list, `"1.0.0"`, `"0.2.0"`, 1), `cniVersion is "0.2.0": set one of`},
		{"no version", strings.Replace(list, `  "cniVersion": "1.0.0",`, "", 1), `cniVersion is ""`},
		{"only ours", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"kmesh-cni"}]}`, "no other plugin"},
	}
	for _, mode := range []Mode{InPlace, DropIn} {
		for _, tt := range tests {
			t.Run(string(mode)+", "+tt.name, func(t *testing.T) {
				e := newEnv(t)
				e.opts.Mode = mode
				e.put("10-x.conflist", tt.content)
				in, err := e.once()
				if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "10-x.conflist") {
					t.Errorf("error %v, want %q", err, tt.says)
				}
				if in.Status().Ready || in.Status().ConfWrites > 0 {
					t.Errorf("status %+v", in.Status())
				}
				e.untouched()
			})
		}
	}
}

func TestTruncatedPrimary(t *testing.T) {
	for _, mode := range []Mode{InPlace, DropIn} {
		e := newEnv(t)
		e.opts.Mode = mode
		e.opts.Log = nil
		e.put("10-x.conflist", "")
		in, _ := e.once()
		whole := len(strings.TrimRight(list, "\n"))
		for i := range whole {
			e.put("10-x.conflist", list[:i])
			before := tree(t, e.conf)
			if _, err := in.pass(t.Context()); err == nil {
				t.Fatalf("%s, %d bytes: installed", mode, i)
			}
			sameTree(t, before, tree(t, e.conf))
			if t.Failed() {
				t.FailNow()
			}
		}
		e.put("10-x.conflist", list)
		if _, err := in.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: cut at each of %d bytes, the file stayed as it was; whole, it was installed", mode, whole)
	}
}

func TestOddPrimary(t *testing.T) {
	t.Run("symlink", func(t *testing.T) {
		e := newEnv(t)
		e.put("real", list)
		link := filepath.Join(e.conf, "10-x.conflist")
		if err := os.Symlink("real", link); err != nil {
			t.Fatal(err)
		}
		before := tree(t, e.conf)
		if _, err := e.once(); err == nil || !strings.Contains(err.Error(), "symbolic link, to real") {
			t.Errorf("error %v", err)
		}
		sameTree(t, before, tree(t, e.conf))
	})
	t.Run("directory", func(t *testing.T) {
		e := newEnv(t)
		if err := os.Mkdir(filepath.Join(e.conf, "10-x.conflist"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := e.once(); !errors.Is(err, errNoPrimary) {
			t.Errorf("error %v", err)
		}
		// It is no configuration to a runtime either: the next one is the first.
		e.put("20-x.conflist", list)
		if _, err := e.once(); err != nil || types(e.loads()) != primaryType+" portmap kmesh-cni" {
			t.Errorf("error %v, chain %s", err, types(e.loads()))
		}
	})
	t.Run("fifo", func(t *testing.T) {
		e := newEnv(t)
		if err := unix.Mkfifo(filepath.Join(e.conf, "10-x.conflist"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := e.once(); err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("stray file first", func(t *testing.T) {
		e := newEnv(t)
		e.put("10-x.conflist", list)
		if err := os.WriteFile(filepath.Join(e.conf, "05-kubeconfig.conf"), []byte("apiVersion: v1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		// A runtime loads nothing at all then: an edit of the other would look like a success.
		if _, err := e.once(); err == nil || !strings.Contains(err.Error(), "05-kubeconfig.conf") {
			t.Errorf("error %v", err)
		}
		e.untouched()
	})
	t.Run("mode 0", func(t *testing.T) {
		e := newEnv(t)
		e.put("10-x.conflist", list)
		if err := os.Chmod(e.primary, 0); err != nil {
			t.Fatal(err)
		}
		before := tree(t, e.conf)
		// As in a pod that has dropped every capability: root that may not read it.
		e.without("dac_override,dac_read_search", "permission denied", "run")
		sameTree(t, before, tree(t, e.conf))
		// With the capability it is edited, and keeps its mode.
		if _, err := e.once(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(e.primary); err != nil || info.Mode().Perm() != 0 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	})
}

// without runs the program without some capabilities until it says something, and then ends it.
func (e *env) without(caps string, until string, args ...string) {
	e.t.Helper()
	c := e.command(args...)
	var drop []string
	for name := range strings.SplitSeq(caps, ",") {
		drop = append(drop, "-"+name)
	}
	log, err := os.Create(filepath.Join(e.t.TempDir(), "log"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("setpriv", append([]string{"--bounding-set", strings.Join(drop, ","), "--inh-caps", strings.Join(drop, ","), c.Path}, c.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	poll(e.t, "kmesh-install without "+caps, 10*time.Second, func() error {
		if data, err := os.ReadFile(log.Name()); err != nil || !strings.Contains(string(data), until) {
			return fmt.Errorf("%w: %s", err, data)
		}
		return nil
	})
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		e.t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		e.t.Error(err)
	}
}

// mount puts a small file system of its own on a folder.
func (e *env) mount(dir, options string) {
	e.t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			e.t.Error(err)
		}
	})
}

// fill leaves no room on a file system.
func (e *env) fill(dir string) (free func()) {
	e.t.Helper()
	path := filepath.Join(dir, "big")
	f, err := os.Create(path)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, n := range []int{4096, 1} {
		for chunk := make([]byte, n); err == nil; {
			_, err = f.Write(chunk)
		}
		if !errors.Is(err, unix.ENOSPC) {
			e.t.Fatal(err)
		}
		err = nil
	}
	f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			e.t.Fatal(err)
		}
	}
}

func TestDiskFull(t *testing.T) {
	for _, mode := range []Mode{InPlace, DropIn} {
		t.Run(string(mode), func(t *testing.T) {
			e := newEnv(t)
			e.opts.Mode = mode
			e.mount(e.conf, "size=64k")
			e.mount(e.bin, "size=1m")
			e.put("10-x.conflist", list)
			freeConf, freeBin := e.fill(e.conf), e.fill(e.bin)
			in, err := e.once()
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "bin-dir") || !strings.Contains(err.Error(), "make room") {
				t.Errorf("error %v", err)
			}
			e.untouched()
			freeBin()
			// One megabyte is too little for it as well.
			if _, err := in.pass(t.Context()); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("error %v", err)
			}
			e.untouched()
			if err := unix.Mount("", e.bin, "", unix.MS_REMOUNT, "size=64m"); err != nil {
				t.Fatal(err)
			}
			if _, err := in.pass(t.Context()); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "conf-dir") || !strings.Contains(err.Error(), "make room") {
				t.Errorf("error %v", err)
			}
			e.untouched()
			freeConf()
			poll(t, "installed", 5*time.Second, func() error { _, err := in.pass(t.Context()); return err })
			// And taken away on a disk that is full again.
			free := e.fill(e.conf)
			err = e.installer().Uninstall(t.Context(), time.Second)
			if mode == InPlace && (!errors.Is(err, unix.ENOSPC) || types(e.loads()) != primaryType+" portmap kmesh-cni") {
				t.Errorf("uninstall: %v, chain %s", err, types(e.loads()))
			}
			e.noTemps()
			free()
			if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
			e.untouched()
		})
	}
}

func TestReadOnly(t *testing.T) {
	e := newEnv(t)
	e.mount(e.conf, "size=64k")
	e.mount(e.bin, "size=64m")
	e.put("10-x.conflist", list)
	remount := func(dir string, flags uintptr) {
		t.Helper()
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(e.bin, unix.MS_RDONLY)
	in, err := e.once()
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "bin-dir") || !strings.Contains(err.Error(), "writable") {
		t.Errorf("error %v", err)
	}
	e.untouched()
	remount(e.bin, 0)
	remount(e.conf, unix.MS_RDONLY)
	if _, err := in.pass(t.Context()); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "conf-dir") || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("error %v", err)
	}
	e.untouched()
	// A folder that is read-only, with the right program in it, is as good as any.
	remount(e.conf, 0)
	remount(e.bin, unix.MS_RDONLY)
	poll(t, "installed", 5*time.Second, func() error { _, err := in.pass(t.Context()); return err })
	remount(e.bin, 0)
}

// Each step of each write fails once, with each thing that is written: the file is as it was, nothing is left, and the next look repairs it.
func TestEveryStepFails(t *testing.T) {
	injected := errors.New("injected")
	steps := []place.Step{place.StepCreate, place.StepWrite, place.StepMode, place.StepSync, place.StepRename, place.StepVerify, place.StepSyncDir, place.StepUnlink}
	forms := []struct {
		name, file, content string
		mode                Mode
	}{
		{"in place", "10-x.conflist", list, InPlace}, {"drop-in", "10-x.conflist", list, DropIn}, {"single", "10-x.conf", single, Auto},
	}
	hit := map[string]int{}
	for _, form := range forms {
		for _, step := range steps {
			for _, cause := range []error{injected, unix.EIO, unix.ENOSPC} {
				t.Run(fmt.Sprintf("%s, %s, %v", form.name, step, cause), func(t *testing.T) {
					e := newEnv(t)
					e.opts.Mode = form.mode
					e.opts.Log = nil
					e.put(form.file, form.content)
					in, err := e.once()
					if err != nil {
						t.Fatal(err)
					}
					installed := tree(t, e.conf)
					failed := 0
					fail := func(s place.Step, path string) error {
						if s == step && strings.HasPrefix(path, e.conf) && failed == 0 {
							failed++
							hit[form.name+", "+string(step)]++
							return cause
						}
						return nil
					}
					// Lost, and put back.
					if err := os.WriteFile(in.last.path, []byte(form.content), 0o640); err != nil {
						t.Fatal(err)
					}
					if form.mode != InPlace {
						if err := os.Remove(in.last.path); err != nil {
							t.Fatal(err)
						}
					}
					if form.mode == DropIn { // as it is where nothing has been put yet
						if err := os.Remove(filepath.Dir(in.last.path)); err != nil {
							t.Fatal(err)
						}
					}
					lost := tree(t, e.conf)
					e.opts.Disk.Fail = fail
					broken := e.installer()
					if err := broken.start(t.Context()); err != nil {
						t.Fatal(err)
					}
					_, err = broken.pass(t.Context())
					if failed > 0 && step != place.StepUnlink && !errors.Is(err, cause) {
						t.Errorf("error %v, want %v", err, cause)
					}
					if err != nil {
						sameTree(t, lost, tree(t, e.conf))
					}
					e.noTemps()
					poll(t, "repaired", 5*time.Second, func() error { _, err := broken.pass(t.Context()); return err })
					sameTree(t, installed, tree(t, e.conf))
					// Taken away, with the same fault.
					failed = 0
					e.opts.Disk.Fail = fail
					if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
						if !errors.Is(err, cause) {
							t.Errorf("uninstall: %v", err)
						}
						sameTree(t, installed, tree(t, e.conf))
						e.noTemps()
						if err := e.installer().Uninstall(t.Context(), time.Second); err != nil {
							t.Error(err)
						}
					}
					e.untouched()
				})
			}
		}
	}
	for _, form := range forms {
		for _, step := range steps {
			name := form.name + ", " + string(step)
			// What is made anew is not verified; nothing is unlinked there but by the uninstall.
			if hit[name] == 0 {
				t.Errorf("%s: never failed", name)
			}
		}
	}
}

// The entry is what the plugin's own side of it says.
func TestEntry(t *testing.T) {
	e := newEnv(t)
	stamp, err := entry.StampOf(e.opts.entry("10-x.conf"))
	if err != nil || stamp == nil || *stamp != (entry.Stamp{Owner: "test", From: "10-x.conf"}) {
		t.Errorf("stamp %+v, %v", stamp, err)
	}
	o := Defaults()
	if got := string(o.entry("")); got != `{"type":"kmesh-cni","capabilities":{"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true},"installedBy":{"owner":"kmesh"}}` {
		t.Errorf("entry of the defaults is %s", got)
	}
}
