// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/install"
)

// brokenConf: whatever the primary's owner writes, it is never worse for us, and when it is whole the plugin is in it.
func brokenConf(t *trial) {
	for i, v := range versions {
		mode := []install.Mode{install.InPlace, install.DropIn}[i%2]
		s := t.site(mode, v)
		start := s.holdings()
		good := s.primary(v)
		s.opts.Timing.War.Calm = time.Millisecond // each of these is a fault of its own, and no war
		in, stop := s.installer()
		s.ready(in)
		text := string(good)
		heal := func() {
			began := time.Now()
			s.put(good)
			_, err := t.until(settleLimit, func() error {
				if st := in.Status(); !st.Ready {
					return errors.New(st.Reason)
				}
				return s.inChain()
			})
			t.must(err)
			t.time(time.Since(began))
		}
		for _, c := range []struct {
			name string
			put  func() error
		}{
			{"empty", func() error { s.put(nil); return nil }},
			{"not UTF-8", func() error { s.put([]byte(strings.Replace(text, `"bridge"`, "\"bri\xffdge\"", 1))); return nil }},
			{"10 MiB", func() error {
				s.put([]byte(strings.Replace(text, `"bridge"`, `"`+strings.Repeat("b", 10<<20)+`"`, 1)))
				return nil
			}},
			{"comments", func() error { s.put([]byte("// mine\n" + text)); return nil }},
			{"another version", func() error { s.put([]byte(strings.Replace(text, `"`+v+`"`, `"9.9.9"`, 1))); return nil }},
			{"a symbolic link", func() error {
				real := filepath.Join(s.Dir, "real.conflist")
				return errors.Join(os.WriteFile(real, good, 0o640), os.RemoveAll(s.file), os.Symlink(real, s.file))
			}},
			{"a folder", func() error { return errors.Join(os.RemoveAll(s.file), os.Mkdir(s.file, 0o755)) }},
			{"a fifo", func() error { return errors.Join(os.RemoveAll(s.file), unix.Mkfifo(s.file, 0o600)) }},
			{"a stray file first", func() error {
				s.put(good)
				return os.WriteFile(filepath.Join(s.conf, "05-kubeconfig.conf"), []byte("apiVersion: v1\n"), 0o600)
			}},
		} {
			t.must(c.put())
			t.count(1)
			before := s.shape()
			reason := s.notReady(in)
			if after := s.shape(); after != before || s.tidy() != nil {
				t.claim("never written worse", false, "%s, %s: %s: was %s, is %s, %v", c.name, v, reason, before, after, s.tidy())
			}
			_ = os.Remove(filepath.Join(s.conf, "05-kubeconfig.conf"))
			heal()
			s.pods("after " + c.name)
		}
		// Nobody may read it: the installer as a pod that has dropped the capability to.
		stop()
		s.put(good)
		t.must(os.Chmod(s.file, 0))
		t.count(1)
		cmd := s.command("run", "")
		out, err := s.without(cmd)
		if info, serr := os.Stat(s.file); serr != nil || info.Mode().Perm() != 0 || s.same(good) != nil || !strings.Contains(out, "permission denied") {
			t.claim("never written worse", false, "of mode 0, %s: %v, %v, %s", v, err, s.same(good), out)
		}
		s.put(good)
		// Cut at every byte: the plan is an error, and writes nothing; a running one does what it plans.
		in, stop = s.installer()
		s.ready(in)
		whole := len(bytes.TrimRight(good, "\n"))
		planned := 0
		for i := range whole {
			if t.short && i%16 != 0 {
				continue
			}
			s.put(good[:i])
			opts := s.opts
			t.must(opts.Validate())
			if changes, err := opts.Chain(s.conf, mode); err == nil {
				t.claim("cut at every byte: an error, nothing written", false, "%d bytes, %s: %v", i, v, changes)
			}
			if err := s.same(good[:i]); err != nil {
				t.claim("cut at every byte: an error, nothing written", false, "%d bytes, %s: %v", i, v, err)
			}
			t.count(1)
			planned++
		}
		s.notReady(in)
		heal()
		s.pods("after it was cut")
		stop()
		s.uninstall(good)
		s.settled(start)
		t.note("%s, %s: cut at %d places", v, mode, planned)
	}
	t.claim("never written worse, the original untouched, and in the chain again when it is whole", true, "%d files", t.res.n)
}

// shape is what the primary's file is and holds.
func (s *site) shape() string {
	info, err := os.Lstat(s.file)
	if err != nil {
		return err.Error()
	}
	what := info.Mode().String()
	if info.Mode().IsRegular() {
		data, err := os.ReadFile(s.file)
		s.t.must(err)
		what += fmt.Sprintf(" %d bytes %x", len(data), sum(data))
	}
	return what
}

func sum(data []byte) (h uint64) {
	for _, c := range data {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// without runs the installer with the capabilities that get round file modes dropped, until it has told why it waits.
func (s *site) without(cmd *exec.Cmd) (string, error) {
	const caps = "-dac_override,-dac_read_search"
	args := append([]string{"--bounding-set", caps, "--inh-caps", caps, cmd.Path}, cmd.Args[1:]...)
	dropped := exec.CommandContext(s.t.ctx, "setpriv", args...)
	log := new(lockedBuffer)
	dropped.Stdout, dropped.Stderr = log, log
	if err := dropped.Start(); err != nil {
		return "", err
	}
	_, err := s.t.until(settleLimit, func() error {
		if !strings.Contains(log.String(), "permission denied") {
			return errors.New("it has not said why it waits")
		}
		return nil
	})
	_ = dropped.Process.Signal(syscall.SIGTERM)
	return log.String(), errors.Join(err, dropped.Wait())
}

// lockedBuffer is written by a process and read meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rewritten: another writer puts its own file back every 50 ms for 10 s.
func rewritten(t *trial) {
	limit := 10 * time.Second
	if t.short {
		limit = 3 * time.Second
	}
	var pods atomic.Int64
	t.each(t.of(len(versions), 1), len(versions), func(i int) {
		v := versions[i]
		s := t.site(install.InPlace, v)
		good := s.primary(v)
		in, stop := s.installer()
		s.ready(in)
		before := in.Status()
		cmd := exec.CommandContext(t.ctx, "/proc/self/exe", s.file, limit.String())
		cmd.Args[0] = "rewriter"
		cmd.Env = []string{roleEnv + "=" + roleRewrite}
		cmd.Stdin, cmd.Stderr = bytes.NewReader(good), os.Stderr
		t.must(cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		for over := false; !over; {
			select {
			case err := <-done:
				t.must(err)
				over = true
			default:
				s.bystander() // the network works at every moment
				pods.Add(1)
			}
		}
		began := time.Now()
		during := in.Status()
		_, err := t.until(time.Minute, func() error {
			if st := in.Status(); !st.Ready {
				return errors.New(st.Reason)
			}
			return s.inChain()
		})
		t.time(time.Since(began))
		t.claim("in the chain when the other has ended", err == nil, "%s: %v, after %s", v, err, ms(time.Since(began)))
		writes := during.ConfWrites - before.ConfWrites
		most := quick.War.Losses + during.Wars
		t.claim(fmt.Sprintf("at most %d writes", most), writes <= most, "%s: %d, against %d of the other", v, writes, int(limit/(50*time.Millisecond)))
		heard := s.heard(install.ReasonRewriteWar)
		named := len(heard) > 0 && strings.Contains(heard[0], fmt.Sprintf("process %d (", cmd.Process.Pid))
		t.claim("an event names the other writer", named, "%s: %.200q", v, heard)
		s.pods("after the war")
		stop()
		t.count(int(limit / (50 * time.Millisecond)))
	})
	t.claim("no pod fails meanwhile", t.res.broken == 0, "%d pods came and went", pods.Load())
}

// ends: the installer is stopped, upgraded, and taken away; and an old one wakes up late.
func ends(t *trial) {
	for i, v := range versions {
		mode := []install.Mode{install.InPlace, install.DropIn}[i%2]
		s := t.site(mode, v)
		good := s.primary(v)
		running := func(owner string) *exec.Cmd {
			cmd := s.command("run", owner)
			t.must(cmd.Start())
			return cmd
		}
		installed := func(when string) {
			_, err := t.until(settleLimit, func() error {
				if _, err := os.Stat(s.opts.ReadyFile); err != nil {
					return err
				}
				return s.inChain()
			})
			if err != nil {
				t.claim("installed", false, "%s, %s: %v", when, v, err)
			}
		}
		in := func(when string) {
			if err := s.inChain(); err != nil {
				t.claim("everything stays in place", false, "%s, %s: %v", when, v, err)
			}
			s.pods(when)
		}
		start := s.holdings()

		old := running("")
		installed("first")
		s.pods("installed")
		// An upgrade: the new one begins before the old one is told to go, and the old one is late.
		fresh := running("")
		_, err := t.until(settleLimit, func() error { return s.inChain() })
		t.must(err)
		in("both run")
		t.must(old.Process.Signal(syscall.SIGTERM))
		err = old.Wait()
		t.claim("SIGTERM ends it in good order", err == nil, "%s: %v", v, err)
		installed("the new one alone")
		in("after SIGTERM of the old one")

		// Somebody else's uninstall, and that of one who thinks it is this one's.
		out, err := s.command("uninstall", "another", "--drain", "1s").CombinedOutput()
		t.claim("another owner's uninstall is refused", err != nil && strings.Contains(string(out), "owner"), "%s: %v: %.200s", v, err, out)
		in("after another owner's uninstall")

		// SIGTERM of the last: nothing changes, as with a node that is drained or a pod that is moved.
		t.must(fresh.Process.Signal(syscall.SIGTERM))
		t.must(fresh.Wait())
		in("after SIGTERM of the last one")

		// Uninstall while a pod is there whose attachment, as it is cached, names the plugin.
		p, err := s.optedIn()
		t.must(err)
		began := time.Now()
		out, err = s.command("uninstall", "", "--drain", "200ms").CombinedOutput()
		if err := s.same(good); err != nil {
			t.claim("the entry goes first", false, "%s: %v", v, err)
		}
		if mode == install.InPlace {
			t.claim("the binary stays while an attachment names it", err != nil && strings.Contains(string(out), "still name the plugin"), "%s: %v: %.200s", v, err, out)
			if _, err := os.Stat(filepath.Join(s.bin, "kmesh-cni")); err != nil {
				t.claim("the binary stays while an attachment names it", false, "%s: %v", v, err)
			}
		} else { // libcni does not remember drop-ins: nothing names it
			t.claim("a drop-in's binary goes at once, as libcni remembers none", err == nil, "%s: %v: %.200s", v, err, out)
		}
		s.bystander()
		// The chain of the moment, by which this runtime ends pods, has no plugin of ours: the helper's sweep does the rest.
		t.must(s.Del(t.ctx, p.Sandbox, nil))
		t.must(s.LosePod(p))
		_, err = t.until(settleLimit, func() error {
			if s.left(attachment(p.Sandbox)) {
				return errors.New("its links are there still")
			}
			return nil
		})
		t.claim("what the pod left is swept", err == nil, "%s: %v", v, err)
		out, err = s.command("uninstall", "", "--drain", "10s").CombinedOutput()
		t.claim("uninstalled, the file is as its owner wrote it", err == nil && s.same(good) == nil, "%s: %v, %v: %.200s", v, err, s.same(good), out)
		t.time(time.Since(began))
		if _, err := os.Stat(filepath.Join(s.bin, "kmesh-cni")); !errors.Is(err, os.ErrNotExist) {
			t.claim("the binary goes when nothing names it", false, "%s: %v", v, err)
		}
		s.bystander()
		s.settled(start)
	}
	t.claim("only the owner's uninstall takes anything away, the entry first, the binary last", true, "%d pods", t.res.n)
}
