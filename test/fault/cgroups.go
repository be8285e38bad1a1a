// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"kmesh/netns"
	"kmesh/test/node"
	"kmesh/test/spoil"
)

// cgroupPaths: what a runtime may give as the pod's cgroup, and what is there then.
func cgroupPaths(t *trial) {
	b, _ := t.live(node.Options{})
	start := b.holdings()
	rootBefore, err := node.Attached(b.CgroupMount())
	t.must(err)
	other := b.prepare(false)
	t.broke(other, b.leftAlone(other))
	slice := strings.ReplaceAll(filepath.Base(b.CgroupRoot), "-", "") + ".slice"
	t.cleanup(func() {
		if err := unix.Rmdir(filepath.Join(b.CgroupMount(), slice)); err != nil && !errors.Is(err, unix.ENOENT) {
			t.fault(err)
		}
	})
	say := func(path string) func(*node.Pod) { return func(p *node.Pod) { p.CgroupParent = path } }
	for _, c := range []struct {
		name   string
		spec   func(*node.PodSpec)
		change func(*node.Pod)
		code   netns.Code // 0: governed
	}{
		{"right", nil, nil, 0},
		{"withheld: found by UID", func(s *node.PodSpec) { s.NoCgroupPath = true }, nil, 0},
		{"empty: found by UID", nil, say(""), 0},
		{"/", nil, say("/"), netns.CodeCgroup},
		{"//", nil, say("//"), netns.CodeCgroup},
		{"/..", nil, say("/.."), netns.CodeCgroup},
		{".. on the way", nil, func(p *node.Pod) { p.CgroupParent = filepath.Dir(p.CgroupParent) + "/../besteffort/pod" + p.UID }, netns.CodeCgroup},
		{"relative", nil, func(p *node.Pod) { p.CgroupParent = p.CgroupParent[1:] }, netns.CodeCgroup},
		{"a NUL in it", nil, func(p *node.Pod) { p.CgroupParent += "\x00" }, netns.CodeCgroup},
		{"the QoS class's", nil, func(p *node.Pod) { p.CgroupParent = filepath.Dir(p.CgroupParent) }, netns.CodeCgroup},
		{"another pod's", nil, say(other.CgroupParent), netns.CodeCgroup},
		{"missing", nil, func(p *node.Pod) { p.CgroupParent = "/kubepods/missing/pod" + p.UID }, netns.CodeCgroup},
		{"two of one UID", func(s *node.PodSpec) { s.NoCgroupPath = true }, func(p *node.Pod) {
			twin := filepath.Join(b.CgroupRoot, "kubepods", "burstable", "pod"+p.UID)
			t.must(os.MkdirAll(twin, 0o755))
			t.cleanup(func() { _ = unix.Rmdir(twin) })
		}, netns.CodeAmbiguous},
		{"a systemd slice's base name, as CRI-O has it", func(s *node.PodSpec) {
			s.UID = node.NewUID()
			leaf := strings.TrimSuffix(slice, ".slice") + "-pod" + strings.ReplaceAll(s.UID, "-", "_") + ".slice"
			s.Cgroup = "/" + slice + "/" + leaf
		}, func(p *node.Pod) { p.CgroupParent = filepath.Base(p.CgroupParent) }, 0},
		{"a static pod's UID", func(s *node.PodSpec) { s.UID = strings.ReplaceAll(node.NewUID(), "-", "") }, nil, 0},
		{"a UID that is no UUID", func(s *node.PodSpec) { s.UID = "rke2.node-1_" + node.NewUID()[:8] }, nil, 0},
		{"a UID that begins another's", func(s *node.PodSpec) { s.UID = other.UID[:len(other.UID)-1] }, say(other.CgroupParent), netns.CodeCgroup},
	} {
		for _, v := range versions {
			spec := func(s *node.PodSpec) {
				s.CNIVersion = v
				if c.spec != nil {
					c.spec(s)
				}
			}
			p := b.prepare(true, spec)
			if c.change != nil {
				c.change(p)
			}
			err := b.add(p)
			var own *types.Error
			switch {
			case c.code == 0 && err != nil, c.code != 0 && (!errors.As(err, &own) || own.Code != uint(c.code)):
				t.claim("refused with a code, or the exact inode", false, "%s, %s: %v", c.name, v, err)
			case c.code != 0:
				b.gone(p, c.name)
			}
			b.del(p)
			if c.name == "two of one UID" {
				t.must(unix.Rmdir(filepath.Join(b.CgroupRoot, "kubepods", "burstable", "pod"+p.UID)))
			}
			// What a runtime says of a pod that did not opt in is not even read.
			out := b.prepare(false, spec)
			if c.change != nil {
				c.change(out)
			}
			t.broke(out, b.leftAlone(out))
			t.broke(out, b.DelPod(t.ctx, out))
			if c.name == "two of one UID" {
				t.must(unix.Rmdir(filepath.Join(b.CgroupRoot, "kubepods", "burstable", "pod"+out.UID)))
			}
		}
	}
	b.ownCgroup()
	t.broke(other, b.untouched(other))
	b.del(other)
	rootAfter, err := node.Attached(b.CgroupMount())
	t.must(err)
	t.claim("the root cgroup has no program of ours", maps.Equal(rootBefore, rootAfter), "%d programs before and %d after", len(rootBefore), len(rootAfter))
	b.settled(start)
	t.note("a symbolic link on the way cannot be made on cgroupfs: the tests of package netns have it on another file system")
}

// ownCgroup: a plugin that runs in the very cgroup that it is given.
func (b *bed) ownCgroup() {
	for _, v := range versions {
		p := b.prepare(true, func(s *node.PodSpec) { s.CNIVersion = v })
		dir, err := os.Open(p.CgroupPath)
		b.t.must(err)
		b.t.count(1)
		err = b.Add(before(b.t.ctx, "ADD", func(c *node.Call) {
			c.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		}), p.Sandbox)
		b.t.must(dir.Close())
		var own *types.Error
		if !errors.As(err, &own) || own.Code != uint(netns.CodeCgroup) {
			b.t.claim("refused with a code, or the exact inode", false, "the plugin's own, %s: %v", v, err)
		}
		b.del(p)
	}
}

// foreign: programs of others leave no room for ours.
func foreign(t *trial) {
	b, _ := t.live(node.Options{})
	start := b.holdings()
	for _, c := range []struct {
		name, says string
		spoil      func(p *node.Pod) (undo func() error, err error)
	}{
		{"an exclusive program above", "exclusive", func(p *node.Pod) (func() error, error) { return spoil.Exclusive(filepath.Dir(p.CgroupPath)) }},
		{"64 programs", "64 programs", func(p *node.Pod) (func() error, error) { return spoil.FillCgroup(p.CgroupPath) }},
	} {
		for _, v := range versions {
			for range t.of(5, 1) {
				p := b.prepare(true, func(s *node.PodSpec) { s.CNIVersion, s.QoS = v, "burstable" })
				undo, err := c.spoil(p)
				t.must(err)
				err = b.add(p)
				var own *types.Error
				if !errors.As(err, &own) || own.Code != uint(netns.CodeForeign) || !strings.Contains(own.Msg, c.says) {
					t.claim("an error that names the cause", false, "%s, %s: %v", c.name, v, err)
				}
				if _, err := b.netns.Get(t.ctx, attachment(p.Sandbox)); !errors.Is(err, netns.ErrNotEnrolled) {
					t.claim("nothing is left", false, "%s, %s: %v", c.name, v, err)
				}
				b.bystanderBeside(p)
				t.must(undo())
				t.must(b.Del(t.ctx, p.Sandbox, nil)) // so the runtime, and the kubelet tries again
				if err := b.add(p); err != nil {
					t.claim("it works when the cause is gone", false, "%s, %s: %v", c.name, v, err)
				}
				b.del(p)
			}
		}
	}
	t.claim("an error that names the cause, with code 114", true, "%d ADDs, and as many when the cause was gone", t.res.n/2)
	b.settled(start)
}

// bystanderBeside is a pod that did not opt in, under the same cgroup; programs that are on it are others'.
func (b *bed) bystanderBeside(p *node.Pod) {
	b.bystander(func(s *node.PodSpec) { s.QoS = p.QoS })
}

// remade: the pod's cgroup is made anew between ADD and the start of its containers, as systemd may.
func remade(t *trial) {
	b := t.bed(node.Options{})
	b.serve()
	b.start()
	b.warm()
	start := b.holdings()
	const repair = 5 * time.Second
	n, repaired := t.of(20, 2), 0
	for range n {
		p, err := b.optedIn()
		t.must(err)
		t.must(os.Remove(p.CgroupPath))
		t.must(os.Mkdir(p.CgroupPath, 0o755))
		var st unix.Stat_t
		t.must(unix.Stat(p.CgroupPath, &st))
		p.CgroupID = st.Ino
		took, err := t.until(repair, func() error { return b.governed(p) })
		if err == nil {
			repaired++
			t.time(took)
		} else {
			t.note("%s: after %s: %v", p.Name, ms(took), err)
		}
		b.bystander()
		b.del(p)
	}
	b.settled(start)
	t.res.unenrolled += n - repaired
	t.claim("each is governed again", repaired == n, "%d of %d", repaired, n)
	t.limit("within 1 s", t.res.percentile(100) < time.Second, shared, "%s at most", ms(t.res.percentile(100)))
}
