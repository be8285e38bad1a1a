// SPDX-License-Identifier: Apache-2.0

package hint

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/netns"
)

// next waits for a hint.
func next(t *testing.T, w *Watcher, want Hint) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case h := <-w.C:
			if h == want {
				return
			}
		case <-deadline:
			t.Fatalf("no hint %+v", want)
		}
	}
}

// Without CAP_NET_BROADCAST nothing is heard of what happens in pods, and all else is.
func TestWithoutCapability(t *testing.T) {
	var w *Watcher
	var log bytes.Buffer
	pins, slices := t.TempDir(), t.TempDir()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		done <- func() error {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			if err := unix.Capget(&hdr, &data[0]); err != nil {
				return err
			}
			data[0].Effective &^= 1 << unix.CAP_NET_BROADCAST
			if err := unix.Capset(&hdr, &data[0]); err != nil {
				return err
			}
			if f, err := listen(); !errors.Is(err, unix.EPERM) {
				return errors.Join(errors.New("it may listen"), err, f.Close())
			}
			w = New(pins, slog.New(slog.NewTextHandler(&log, nil)))
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if !strings.Contains(log.String(), "CAP_NET_BROADCAST") {
		t.Errorf("the log says %q, want the capability", log.String())
	}
	pod := netns.Known{NetnsCookie: 1, Cgroup: 7}
	pod.NetnsPath = "/proc/self/ns/net"
	dir := filepath.Join(slices, "pod1")
	w.Follow([]netns.Known{pod}, func(uint64) (string, error) { return dir, nil })
	for _, change := range []func(string, os.FileMode) error{os.Mkdir, func(p string, _ os.FileMode) error { return os.Remove(p) }} {
		if err := change(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		next(t, w, Hint{Cgroup: true})
	}
	if err := os.Mkdir(filepath.Join(pins, "c1"), 0o700); err != nil {
		t.Fatal(err)
	}
	next(t, w, Hint{New: true})
}

// Directories are watched while there are pods in them, and again when they come back.
func TestFollow(t *testing.T) {
	w := New(t.TempDir(), slog.New(slog.DiscardHandler))
	defer w.Close()
	top := t.TempDir()
	at := func(slice string) string { return filepath.Join(top, slice, "pod1") }
	follow := func(slices ...string) {
		var pods []netns.Known
		for i := range slices {
			pods = append(pods, netns.Known{NetnsCookie: uint64(i + 1), Cgroup: uint64(i)})
		}
		w.Follow(pods, func(inode uint64) (string, error) {
			if slices[inode] == "" {
				return "", unix.ESTALE
			}
			return at(slices[inode]), nil
		})
	}
	made := func(slice string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(top, slice), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	hears := func(slice string) {
		t.Helper()
		if err := os.Mkdir(at(slice), 0o700); err != nil {
			t.Fatal(err)
		}
		next(t, w, Hint{Cgroup: true})
		if err := os.Remove(at(slice)); err != nil {
			t.Fatal(err)
		}
		next(t, w, Hint{Cgroup: true})
	}
	made("a")
	made("b")
	follow("a", "b")
	hears("a")
	hears("b")
	follow("") // the cgroup is gone: it may come back where it was
	hears("a")
	hears("b")
	follow("b")
	if n := len(w.dirs); n != 2 {
		t.Errorf("%d directories are watched, want the pins and one: %v", n, w.dirs)
	}
	if err := os.Remove(filepath.Join(top, "b")); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for gone := false; !gone; {
		w.mu.Lock()
		gone = !w.dirs[filepath.Join(top, "b")]
		w.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("a directory that is gone is thought to be watched")
		}
		time.Sleep(time.Millisecond)
	}
	made("b")
	follow("b")
	hears("b")
}
