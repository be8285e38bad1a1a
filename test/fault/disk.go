// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/install"
	"kmesh/install/place"
)

// badDisk: no room, read-only, an error of the disk at each step.
func badDisk(t *trial) {
	for i, v := range versions {
		mode := []install.Mode{install.InPlace, install.DropIn}[i%2]
		s := t.site(mode, v)
		start := s.holdings()
		good := s.primary(v)
		steps := []place.Step{place.StepCreate, place.StepWrite, place.StepMode, place.StepSync, place.StepRename, place.StepVerify, place.StepSyncDir, place.StepUnlink}
		for _, cause := range []error{unix.EIO, unix.ENOSPC, unix.EROFS} {
			for _, step := range steps {
				var hits, armed atomic.Int64
				armed.Store(1)
				in, stop := s.installer(func(o *install.Options) {
					o.Disk.Fail = func(at place.Step, path string) error {
						ours := strings.HasPrefix(path, s.conf) || strings.HasPrefix(path, s.bin)
						if at == step && ours && armed.Load() > 0 {
							hits.Add(1)
							return cause
						}
						return nil
					}
				})
				// It fails again and again, or the step is none of this form's.
				_, err := t.until(2*time.Second, func() error {
					if hits.Load() >= 2 || in.Status().Ready {
						return nil
					}
					return errors.New(in.Status().Reason)
				})
				if err != nil {
					t.claim("it goes on trying", false, "%s at %s, %s: %v", cause, step, v, err)
				}
				if hits.Load() > 0 {
					t.count(1)
					if !in.Status().Ready {
						// It tries again meanwhile: what it is writing just now is not left.
						if _, err := t.until(time.Second, func() error { return s.same(good) }); err != nil {
							t.claim("the old file is intact, no temporary file is left", false, "%s at %s, %s: %v", cause, step, v, err)
						}
					}
					s.bystander()
				}
				armed.Store(0)
				t.time(s.ready(in))
				if err := s.inChain(); err != nil {
					t.claim("installed when the disk is well", false, "%s at %s, %s: %v", cause, step, v, err)
				}
				stop()
				s.uninstall(good)
				if t.short {
					break
				}
			}
		}
		s.smallDisk(good)
		s.settled(start)
	}
	t.claim("the old file is intact, no temporary file is left, installed when the disk is well", true, "%d faults", t.res.n)
}

// uninstall takes the plugin away; the node is as it was.
func (s *site) uninstall(good []byte) {
	in, err := install.New(s.opts)
	s.t.must(err)
	if err := in.Uninstall(s.t.ctx, settleLimit); err != nil || s.same(good) != nil {
		s.t.claim("uninstalled, the file is as its owner wrote it", false, "%v, %v", err, s.same(good))
	}
}

// smallDisk: a real file system without room, and one that is read-only.
func (s *site) smallDisk(good []byte) {
	t := s.t
	mount := func(options string) {
		t.must(unix.Mount("tmpfs", s.conf, "tmpfs", 0, options))
		t.must(os.WriteFile(s.file, good, 0o640))
	}
	unmount := func() { t.must(unix.Unmount(s.conf, unix.MNT_DETACH)) }

	mount("size=64k")
	big, err := os.Create(filepath.Join(s.conf, "big"))
	t.must(err)
	for err == nil {
		_, err = big.Write(make([]byte, 512))
	}
	t.must(big.Close())
	in, stop := s.installer()
	_, err = t.until(settleLimit, func() error {
		if r := in.Status().Reason; !strings.Contains(r, "make room") {
			return errors.New(r)
		}
		return s.same(good)
	})
	t.claim("no room: an error with the remedy, the old file intact", err == nil, "%s", in.Status().Reason)
	t.count(1)
	s.bystander()
	t.must(os.Remove(big.Name()))
	s.ready(in)
	s.pods("when there is room")
	stop()
	s.uninstall(good)
	unmount()

	mount("size=64k")
	t.must(unix.Mount("", s.conf, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	in, stop = s.installer()
	_, err = t.until(settleLimit, func() error {
		if r := in.Status().Reason; !strings.Contains(r, "read-only") {
			return errors.New(r)
		}
		return s.same(good)
	})
	t.claim("read-only: an error with the remedy, the old file intact", err == nil, "%s", in.Status().Reason)
	t.count(1)
	s.bystander()
	t.must(unix.Mount("", s.conf, "", unix.MS_REMOUNT, ""))
	s.ready(in)
	s.pods("when it can be written to")
	stop()
	s.uninstall(good)
	unmount()
}
