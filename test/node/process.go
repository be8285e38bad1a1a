// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// container is the cgroup below the pod's in which its processes run, as a container's do: a pod's own cgroup is empty.
const container = "container"

// Process is a running process of a pod or of the node.
type Process struct {
	*exec.Cmd
	done chan struct{}
	err  error
}

// Wait waits for its end.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed at its end.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends it at once and waits.
func (p *Process) Kill() {
	_ = p.Process.Kill()
	<-p.done
}

// start begins a process in a cgroup from its first instruction, and in a network namespace.
func start(cmd *exec.Cmd, netns, cgroup string) (*Process, error) {
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, err
	}
	cg, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer cg.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cg.Fd())
	// A group of its own: an interrupt from the terminal is for the test, which then ends it in good order.
	cmd.SysProcAttr.Setpgid = true
	if err := inNetns(netns, cmd.Start); err != nil {
		return nil, err
	}
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// StartCmd begins a program on the node itself: in its network namespace, and in a cgroup of that name below
// CgroupRoot. It ends, at the latest, with the node; that it had to be ended so is a leak.
func (n *Node) StartCmd(cmd *exec.Cmd, cgroup string) (*Process, error) {
	proc, err := start(cmd, n.NetnsPath, filepath.Join(n.CgroupRoot, cgroup))
	if err != nil {
		return nil, fmt.Errorf("starting %s on the node: %w", filepath.Base(cmd.Path), err)
	}
	return proc, nil
}

// Start begins a program in the pod, governed as any of the pod's programs.
func (p *Pod) Start(ctx context.Context, name string, args ...string) (*Process, error) {
	return p.StartCmd(exec.CommandContext(ctx, name, args...))
}

// StartCmd is Start for a command that the caller made (standard streams, environment).
func (p *Pod) StartCmd(cmd *exec.Cmd) (*Process, error) {
	proc, err := start(cmd, p.NetnsPath, filepath.Join(p.CgroupPath, container))
	if err != nil {
		return nil, fmt.Errorf("starting %s in pod %s: %w", filepath.Base(cmd.Path), p.Name, err)
	}
	return proc, nil
}

// Exec runs a program in the pod and returns what it printed, standard error too.
func (p *Pod) Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	proc, err := p.StartCmd(cmd)
	if err != nil {
		return nil, err
	}
	if err := proc.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("%s in pod %s: %w", filepath.Base(name), p.Name, err)
	}
	return out.Bytes(), nil
}

// kill ends all processes of the pod.
func (p *Pod) kill() error {
	p.mu.Lock()
	a := p.agent
	p.agent = nil
	p.mu.Unlock()
	var err error
	if a != nil {
		err = a.stop()
	}
	return errors.Join(err, killCgroup(p.CgroupPath))
}
