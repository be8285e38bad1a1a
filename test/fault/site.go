// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"kmesh/cni/entry"
	"kmesh/install"
	"kmesh/netns"
	"kmesh/test/node"
)

// site is a bed whose network somebody else has configured, without us: the installer puts the plugin into it.
type site struct {
	*bed
	conf, bin string // folders of the runtime
	file      string // the primary's
	opts      install.Options

	mu     sync.Mutex
	events []install.Event
}

// Report makes a site the reporter of its installers.
func (s *site) Report(_ context.Context, e install.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// heard are the messages of a reason.
func (s *site) heard(reason string) (messages []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

// quick has an installer do the same steps sooner.
var quick = install.Timing{
	Resync: 100 * time.Millisecond, Gather: 10 * time.Millisecond, Confirm: 2 * time.Second, Trial: time.Second, Poll: 10 * time.Millisecond, Settle: 100 * time.Millisecond,
	War: install.WarTiming{Losses: 5, Pause: 100 * time.Millisecond, Calm: 5 * time.Second, Quiet: time.Second, MaxQuiet: time.Minute},
}

// site makes one with a live helper, and with the primary's configuration in a version.
func (t *trial) site(mode install.Mode, version string) *site {
	programs, err := node.Programs(t.ctx, "kmesh-cni", "kmesh-cni-stub", "kmesh-install")
	t.must(err)
	b := t.bed(node.Options{NoKmesh: true})
	s := &site{bed: b, conf: filepath.Join(b.Dir, "net.d"), bin: filepath.Join(b.Dir, "opt", "cni", "bin")}
	s.file = filepath.Join(s.conf, "10-primary.conflist")
	t.must(errors.Join(os.MkdirAll(s.conf, 0o755), os.MkdirAll(s.bin, 0o755)))
	t.must(b.Follow(s.conf, s.bin))
	s.put(s.primary(version))
	s.opts = install.Options{
		Owner: "fault", Version: "v1", Source: programs, CRISocket: install.NoCRI, BinDir: s.bin, ConfDir: s.conf, CacheDir: b.CacheDir(), Mode: mode,
		Plugin:    entry.Conf{BPFFS: b.BPFFS, RunDir: b.RunDir, StateDir: b.StateDir},
		ReadyFile: filepath.Join(b.Dir, "install.ready"), Reporter: s, Timing: quick,
	}
	b.serve()
	b.start("--sweep-every", "200ms")
	// The first pod makes what stays.
	in, stop := s.installer()
	s.ready(in)
	s.pods("at first")
	stop()
	s.uninstall(s.primary(version))
	return s
}

// primary is the configuration as its owner wrote it.
func (s *site) primary(version string) []byte {
	conf, err := s.ConflistIn(version)
	s.t.must(err)
	return append(conf, '\n')
}

// put writes the primary's file as its owner does.
func (s *site) put(content []byte) {
	tmp := filepath.Join(s.Dir, "primary.tmp")
	s.t.must(errors.Join(os.WriteFile(tmp, content, 0o640), os.RemoveAll(s.file), os.Rename(tmp, s.file)))
}

// installer runs one until the row is over, or stop is called.
func (s *site) installer(change ...func(*install.Options)) (in *install.Installer, stop func()) {
	opts := s.opts
	for _, c := range change {
		c(&opts)
	}
	in, err := install.New(opts)
	s.t.must(err)
	ctx, cancel := context.WithCancel(s.t.ctx)
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.fault(err)
		}
	})
	s.t.cleanup(stop)
	return in, stop
}

// ready waits until the plugin is installed, and says how long that took.
func (s *site) ready(in *install.Installer) time.Duration {
	took, err := s.t.until(settleLimit, func() error {
		if st := in.Status(); !st.Ready {
			return errors.New(st.Reason)
		}
		return nil
	})
	s.t.must(err)
	return took
}

// notReady waits until the installer has seen that it is not, and gives the reason.
func (s *site) notReady(in *install.Installer) string {
	_, err := s.t.until(settleLimit, func() error {
		if in.Status().Ready {
			return errors.New("it is ready still")
		}
		return nil
	})
	s.t.must(err)
	return in.Status().Reason
}

// pods: one that opts in is governed through the chain as it is now, one that does not is left alone.
func (s *site) pods(when string) {
	p := s.prepare(true)
	s.t.count(1)
	if err := s.Add(s.t.ctx, p.Sandbox); err != nil {
		s.t.claim("pods start through the chain", false, "%s: %v", when, err)
	} else if err := s.governed(p); err != nil {
		s.t.claim("pods are governed through the chain", false, "%s: %v", when, err)
	}
	s.del(p)
	s.bystander()
}

// same says whether the folder of configurations holds the primary's file alone, with this content.
func (s *site) same(want []byte) error {
	got, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the primary's file has %d bytes now, %d before", len(got), len(want))
	}
	return s.tidy()
}

// tidy looks for temporary files.
func (s *site) tidy() error {
	for _, dir := range []string{s.conf, s.bin, s.StateDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".tmp") {
				return fmt.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
	return nil
}

// command is the real kmesh-install on the site, as another owner where one is given.
func (s *site) command(verb, owner string, args ...string) *exec.Cmd {
	o := s.opts
	if owner == "" {
		owner = o.Owner
	}
	return exec.CommandContext(s.t.ctx, filepath.Join(o.Source, "kmesh-install"), slices.Concat([]string{verb, "--owner", owner, "--source", o.Source, "--mode", string(o.Mode),
		"--cri-socket", o.CRISocket, "--conf-dir", o.ConfDir, "--bin-dir", o.BinDir, "--cache-dir", o.CacheDir, "--state-dir", o.Plugin.StateDir,
		"--run-dir", o.Plugin.RunDir, "--bpffs", o.Plugin.BPFFS, "--ready-file", o.ReadyFile}, args)...)
}

// inChain says whether the chain has the plugin in it, as libcni reads it, exactly once and last.
func (s *site) inChain() error {
	data, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	inline := bytes.Count(data, []byte(`"`+entry.Type+`"`))
	drops, err := filepath.Glob(filepath.Join(s.conf, node.Network, "*.conf"))
	if err != nil || inline+len(drops) != 1 {
		return fmt.Errorf("it is there %d times inline and %d times as a drop-in, %v", inline, len(drops), err)
	}
	return nil
}

// left says whether something of an attachment is left.
func (s *site) left(a netns.Attachment) bool {
	_, err := s.netns.Get(s.t.ctx, a)
	return !errors.Is(err, netns.ErrNotEnrolled)
}
