// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// initEnv makes the test program the node's first process; its value is the node's folder.
const initEnv = "KMESH_TEST_E2E_INIT"

const hostname = "kmesh-e2e"

// Main is a test program's: it runs the tests, or is the node's first process.
func Main(m interface{ Run() int }) {
	if dir := os.Getenv(initEnv); dir != "" {
		if err := beInit(dir); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
		}
		os.Exit(1) // it has no end of its own
	}
	var interrupted atomic.Bool
	go closeOnSignal(&interrupted)
	code := m.Run()
	if interrupted.Load() {
		select {} // until all is taken down
	}
	os.Exit(code)
}

// closeOnSignal takes down the nodes of a test that is interrupted.
func closeOnSignal(interrupted *atomic.Bool) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	sig := <-ch
	interrupted.Store(true)
	for _, n := range alive.all() {
		fmt.Fprintf(os.Stderr, "%s: taking down node %s\n", sig, n.Name)
		if err := n.Close(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(1)
}

// alive are the nodes that are not closed.
var alive nodes

type nodes struct {
	mu  sync.Mutex
	set map[*Node]bool
}

func (s *nodes) add(n *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[*Node]bool{}
	}
	s.set[n] = true
}

// remove says whether it was there.
func (s *nodes) remove(n *Node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.set[n]
	delete(s.set, n)
	return was
}

func (s *nodes) all() []*Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.set))
}

// overlays are the folders of the machine that the node may write to without the machine noticing, for what has to be
// made there (mount points, links to pods' logs).
var overlays = []string{"/etc", "/opt", "/var/lib", "/var/log"}

type place struct{ from, to string }

// diskMounts are the folders that are the node's own, and survive a reboot.
var diskMounts = []place{
	{"etc/cni/net.d", "/etc/cni/net.d"},
	{"opt/cni/bin", "/opt/cni/bin"},
	{"var/lib/cni", "/var/lib/cni"},
	{"var/lib/containerd", "/var/lib/containerd"},
	{"var/lib/kubelet", "/var/lib/kubelet"},
	{"var/log/pods", "/var/log/pods"},
}

// sysctls are those that the kubelet writes. They are the whole machine's, so it gets files of its own to write to.
var sysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// beInit is the first process in new mount, pid, uts and ipc namespaces: it makes them a machine of its own, says so on
// standard output, and then only buries the dead.
func beInit(dir string) error {
	if err := os.Unsetenv(initEnv); err != nil {
		return err
	}
	if err := makeMachine(dir); err != nil {
		return err
	}
	fmt.Println("up")
	ch := make(chan os.Signal, 64)
	signal.Notify(ch, syscall.SIGCHLD)
	for range ch {
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
	return nil
}

func makeMachine(dir string) error {
	// Private first, so that nothing reaches the machine; then shared among the node's own, as systemd makes it: mounts
	// with propagation in pods need that.
	if err := errors.Join(
		mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""),
	); err != nil {
		return err
	}
	keep, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer keep.Close()
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// With all below it: the node's disk and its bpf file system.
	if err := mount(fmt.Sprintf("/proc/self/fd/%d", keep.Fd()), dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	disk := filepath.Join(dir, "disk")
	for _, o := range overlays {
		upper, work := filepath.Join(disk, "overlay", o, "upper"), filepath.Join(disk, "overlay", o, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if err := mount("overlay", o, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o, upper, work)); err != nil {
			return err
		}
	}
	binds := []place{
		{filepath.Join(dir, "bpf"), "/sys/fs/bpf"},
		{filepath.Join(dir, "run"), "/run/kmesh"},
		{filepath.Join(dir, "state"), "/var/lib/kmesh"},
	}
	for _, m := range diskMounts {
		binds = append(binds, place{filepath.Join(disk, m.from), m.to})
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.to, 0o755); err != nil {
			return err
		}
		if err := mount(b.from, b.to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := os.Mkdir("/run/sysctl", 0o755); err != nil {
		return err
	}
	for name, value := range sysctls {
		file := filepath.Join("/run/sysctl", filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte(hostname))
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, target, err)
	}
	return nil
}
