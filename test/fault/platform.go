// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/cni/optin"
	"kmesh/netns"
	"kmesh/test/node"
)

// rebooted: bpffs and run directory are wiped, the network's configuration and the state directory stay.
func rebooted(t *trial) {
	b := t.bed(node.Options{})
	namespaces := func(s *node.PodSpec) { s.Namespace, s.Annotations = "shop", nil }
	t.must(os.WriteFile(optin.Path(b.StateDir), []byte(`{"version":1,"namespaces":{"shop":"enroll"}}`), 0o600))
	for range t.of(5, 1) {
		b.serve()
		h := b.start()
		for range versions {
			_, err := b.optedIn()
			t.must(err)
		}
		b.bystander()
		t.must(b.Reboot())
		b.serve()
		for i := range 2 * len(versions) {
			change := func(*node.PodSpec) {}
			if i%2 == 1 {
				change = namespaces // the helper has told of it before the restart
			}
			p := b.prepare(true, change)
			b.refusedWith(p, netns.CodeNotReady, "start kmesh-helper")
			b.bystander()
			b.del(p)
		}
		// The kubelet tries again and again while the helper comes up.
		began := time.Now()
		started := make(chan struct{})
		go func() {
			defer close(started)
			var err error
			if h, err = b.StartHelper(t.ctx, "--xds-dir", b.xds); err != nil {
				t.fault(err)
			}
		}()
		_, err := t.until(settleLimit, func() error {
			p, err := b.AddPod(t.ctx, node.PodSpec{Name: "waiting", Namespace: "shop"})
			if err == nil {
				t.time(time.Since(began))
				if err := b.governed(p); err != nil {
					t.claim("it recovers when the helper loads", false, "%v", err)
				}
				b.del(p)
			}
			return err
		})
		<-started
		t.claim("it recovers when the helper loads", err == nil, "%v", err)
		for _, p := range b.Pods() {
			b.del(p)
		}
		h.Kill9()
	}
	t.claim("opted-in pods wait with code 110, those of an opted-in namespace too", true, "%d ADDs", t.res.n)
}

// refusedWith does an ADD that must fail with a code and a sentence, and leave nothing.
func (b *bed) refusedWith(p *node.Pod, code netns.Code, says string) {
	err := b.add(p)
	var own *types.Error
	if !errors.As(err, &own) || own.Code != uint(code) || !strings.Contains(own.Msg, says) {
		b.t.claim("one clear error", false, "%s: %v; want code %d and %q", p.CNIVersion, err, code, says)
		return
	}
	if len(own.Msg) > 200 || strings.Contains(own.Msg, "\n") {
		b.t.claim("one clear error", false, "its message is %d bytes long: %s", len(own.Msg), own.Msg)
	}
}

// noBPFFS: what should be a bpf file system is a plain folder, or another file system.
func noBPFFS(t *trial) {
	b, h := t.live(node.Options{})
	h.Kill9()
	for _, kind := range []string{"", "sysfs", "tmpfs"} {
		t.must(b.UnmountBPFFS())
		if kind != "" {
			t.must(b.MountBPFFS(kind))
		}
		for range t.of(2, 1) {
			for _, v := range versions {
				p := b.prepare(true, func(s *node.PodSpec) { s.CNIVersion = v })
				b.refusedWith(p, netns.CodeNotReady, "mount -t bpf bpf /sys/fs/bpf")
				b.bystander(func(s *node.PodSpec) { s.CNIVersion = v })
				b.del(p)
			}
		}
		h, err := b.LaunchHelper(t.ctx, "--xds-dir", b.xds)
		t.must(err)
		ended, log := h.Wait(), ""
		if data, err := os.ReadFile(h.LogPath); err == nil {
			log = strings.TrimSpace(string(data))
		}
		t.claim(fmt.Sprintf("the helper ends with one clear error (%s)", named(kind)), ended != nil && strings.Contains(log, "mount -t bpf"), "%v: %s", ended, log)
		h.Kill9()
		if kind == "" {
			t.must(b.MountBPFFS("bpf"))
		}
	}
	t.must(b.UnmountBPFFS())
	t.must(b.MountBPFFS("bpf"))
	b.start()
	for range versions {
		p, err := b.optedIn()
		t.claim("it works when it is mounted", err == nil, "%v", err)
		b.del(p)
	}
}

func named(kind string) string {
	if kind == "" {
		return "a plain folder"
	}
	return kind
}

// oldKernel: system calls fail as they do on kernels that lack a feature.
func oldKernel(t *trial) {
	b, h := t.live(node.Options{})
	dir, err := node.Tagged(t.ctx, "failpoint", "kmesh-cni")
	t.must(err)
	b.UsePlugin(dir)
	start := b.holdings()
	for range t.of(10, 1) {
		for range versions {
			p := b.prepare(true)
			t.count(1)
			err := b.Add(failing(b.timed("ADD"), "ADD", "unsupported@attach tcx"), p.Sandbox)
			if err == nil {
				err = b.governed(p)
			}
			if err != nil {
				t.claim("without TCX: filters on clsact", false, "%s: %v", p.CNIVersion, err)
			}
			b.bystander()
			b.del(p)

			p = b.prepare(true)
			t.count(1)
			err = b.Add(failing(t.ctx, "ADD", "EINVAL@attach to cgroup"), p.Sandbox)
			var own *types.Error
			if !errors.As(err, &own) || own.Code != uint(netns.CodeUnsupported) || !strings.Contains(own.Msg, "Linux 6.1 or newer") {
				t.claim("without cgroup links: code 113", false, "%s: %v", p.CNIVersion, err)
			}
			b.gone(p, "ADD without cgroup links")
			b.del(p)
		}
	}
	b.settled(start)
	t.claim("without TCX: filters on clsact, gone after DEL; without cgroup links: code 113", true, "%d ADDs", t.res.n)
	h.Kill9()
	b.withoutBTF()
	t.note("a real Linux 6.1, which has no TCX, routes requests in `make vm`")
}

// withoutBTF starts a helper that does not find the kernel's types.
func (b *bed) withoutBTF() {
	t := b.t
	real, err := node.Programs(t.ctx, "kmesh-helper", "kmeshctl")
	t.must(err)
	dir := filepath.Join(b.Dir, "without-btf")
	t.must(os.Mkdir(dir, 0o700))
	script := "#!/bin/sh\nexec unshare -m /bin/sh -c 'mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"' " + filepath.Join(real, "kmesh-helper") + " \"$@\"\n"
	t.must(os.WriteFile(filepath.Join(dir, "kmesh-helper"), []byte(script), 0o700))
	t.must(b.UnmountBPFFS()) // nothing is loaded yet
	t.must(b.MountBPFFS("bpf"))
	b.UseHelper(dir)
	h, err := b.StartHelper(t.ctx, "--xds-dir", b.xds)
	b.UseHelper(real)
	if err == nil {
		t.claim("without BTF: the helper works, or says so", true, "it works: %s", h.ReadyLine)
		return
	}
	t.claim("without BTF: the helper works, or says so", strings.Contains(err.Error(), "BTF"), "%v", err)
}
