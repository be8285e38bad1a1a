// SPDX-License-Identifier: Apache-2.0

package kubenode

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"kmesh/test/node"
)

// bootLimit is how long a node may take from nothing to Ready; a busy machine takes ten times what an idle one does.
const bootLimit = 2 * time.Minute

// boot is one life of the node's machine.
type boot struct {
	init       *node.Process
	containerd *node.Process // nsenter, which waits for it
	kubelet    *node.Process
}

// Boot starts the machine (init, containerd, kubelet) and waits until the Node is Ready.
func (n *Node) Boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	n.boot = &boot{}
	if err := n.startInit(ctx); err != nil {
		return fmt.Errorf("booting the node: %w", err)
	}
	if err := n.startContainerd(ctx); err != nil {
		return fmt.Errorf("booting the node: containerd: %w", err)
	}
	if err := n.startKubelet(ctx); err != nil {
		return fmt.Errorf("booting the node: kubelet: %w", err)
	}
	return nil
}

// Reboot ends the machine as a loss of power does and boots it again. What is in memory is gone: every process, /run,
// the bpf file system, the cgroups, the network's bridge. The disk stays; so does the API server.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.PowerOff(ctx); err != nil {
		return err
	}
	return n.Boot(ctx)
}

// PowerOff is the first half of Reboot.
func (n *Node) PowerOff(ctx context.Context) error {
	n.RecordPins()
	if err := n.halt(ctx); err != nil {
		return fmt.Errorf("ending the machine: %w", err)
	}
	if err := n.RemakeBPFFS(); err != nil {
		return err
	}
	if err := emptyFolder(n.RunDir); err != nil {
		return err
	}
	if err := n.removePodCgroups(ctx); err != nil {
		return err
	}
	return n.Do(func() error {
		l, err := netlink.LinkByName(bridgeName)
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) {
			return nil
		}
		return errors.Join(err, netlink.LinkDel(l))
	})
}

// halt ends every process of the machine: with the first process of a pid namespace all others end.
func (n *Node) halt(ctx context.Context) error {
	b := n.boot
	if b == nil || b.init == nil {
		return nil
	}
	n.boot = nil
	b.init.Kill()
	for _, p := range []*node.Process{b.containerd, b.kubelet} {
		if p != nil {
			select {
			case <-p.Done():
			case <-time.After(10 * time.Second):
				return fmt.Errorf("%s did not end with its machine", p.Path)
			}
		}
	}
	return nil
}

func (n *Node) startInit(ctx context.Context) error {
	log, err := n.openLog("init")
	if err != nil {
		return err
	}
	defer log.Close()
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), initEnv+"="+n.Dir)
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	n.boot.init, err = n.StartCmd(cmd, "init")
	w.Close()
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = out.SetReadDeadline(deadline)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "up" {
		return fmt.Errorf("its first process did not come up: %w\n%s", err, n.logTail("init", 10))
	}
	return nil
}

// InitPID is the machine's first process, as seen from outside.
func (n *Node) InitPID() int { return n.boot.init.Process.Pid }

// Command is a command inside the machine. It is seen there as its own pid; what is returned is the one that waits for it.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(n.InitPID()), "--mount", "--uts", "--ipc", "--pid", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = n.environ()
	return cmd
}

func (n *Node) environ() []string {
	path := strings.Join([]string{n.parts.containerd, filepath.Dir(n.parts.runc), "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":")
	return []string{"PATH=" + path, "HOME=/root"}
}

// startDaemon starts a program inside the machine, in a cgroup and with a log of its name.
func (n *Node) startDaemon(name string, argv ...string) (*node.Process, error) {
	log, err := n.openLog(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := n.Command(context.Background(), argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	return n.StartCmd(cmd, name)
}

// KillKubelet ends the kubelet at once; StartKubelet brings it back. Not by cgroup.kill: this kernel would kill whatever
// is cloned into a cgroup that has once been killed.
func (n *Node) KillKubelet() error {
	err := until(context.Background(), bootLimit, "the kubelet did not end", func(context.Context) error {
		procs, err := os.ReadFile(filepath.Join(n.CgroupRoot, "kubelet", "cgroup.procs"))
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(procs)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if len(procs) > 0 {
			return fmt.Errorf("it still has processes %s", procs)
		}
		return nil
	})
	if err != nil {
		return err
	}
	<-n.boot.kubelet.Done()
	return nil
}

func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// makeHierarchies makes the kubelet's cgroup root in every hierarchy: it asks for it in each.
func (n *Node) makeHierarchies() error {
	mounts, err := n.Hierarchies()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		root := filepath.Join(m, filepath.Base(n.CgroupRoot))
		if err := os.MkdirAll(root, 0o755); err != nil {
			return fmt.Errorf("making a cgroup: %w", err)
		}
		// In version 1 a new cpuset has no processors, and nothing runs in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(m, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(root, file), b, 0o644)
			}
			if err != nil {
				return fmt.Errorf("making a cgroup: %w", err)
			}
		}
	}
	return nil
}

// removePodCgroups removes the kubelet's cgroups, which a boot makes anew.
func (n *Node) removePodCgroups(ctx context.Context) error {
	mounts, err := n.Hierarchies()
	if err != nil {
		return err
	}
	return until(ctx, 10*time.Second, "the pods' cgroups did not go", func(context.Context) error {
		var errs []error
		for _, m := range mounts {
			top := filepath.Join(m, filepath.Base(n.CgroupRoot), "kubepods")
			var dirs []string
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("%s: %w", dirs[i], err))
				}
			}
		}
		return errors.Join(errs...)
	})
}
