// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/bpf"
	"kmesh/test/bench/load"
	"kmesh/test/node"
)

// Names of the variants.
const (
	direct  = "direct"  // to the endpoint's address, nothing attached on either side
	kmesh   = "kmesh"   // through the service's address, both pods enrolled, everything attached
	l7      = "l7"      // the same pods, through an address whose requests are routed one by one
	same    = "same"    // as l7, where all requests have the same endpoint
	beside  = "beside"  // as l7, to direct's server, so that only one pod's programs run
	passing = "passing" // enrolled too, but to an address that is no service's
	haproxy = "haproxy" // HAProxy in the client's pod and in the server's
)

// variant is a way from a client's pod to a server's. Each has its own two pods; the processes in them differ in
// nothing but what the variant is about.
type variant struct {
	client, server *node.Pod
	at             netip.Addr // where the client finds the server's ports
}

// bed is a node with all variants on it, ready.
type bed struct {
	n        *node.Node
	self     string // this program, for package load
	fortio   string
	pin      [2]string
	variants map[string]*variant
	cpu      *accountant
	scripts  string // the folder of wrk's
}

func newBed(ctx context.Context, n *node.Node, pin string) (*bed, error) {
	b := &bed{n: n, variants: map[string]*variant{}, scripts: n.Dir}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	dir, err := node.Programs(ctx, "fortio")
	if err != nil {
		return nil, err
	}
	b.fortio = filepath.Join(dir, "fortio")
	if b.pin, err = placement(pin); err != nil {
		return nil, err
	}
	if b.cpu, err = newAccountant(); err != nil {
		return nil, err
	}
	// wrk takes one script.
	for script, parts := range map[string][]string{scriptCount: {scriptCount}, scriptRotate: {scriptCount, scriptRotate}} {
		if err := b.place(filepath.Join(b.scripts, script), parts...); err != nil {
			return nil, err
		}
	}
	for _, build := range []func(context.Context) error{b.direct, b.kmesh, b.haproxy} {
		if err := build(ctx); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Ways to place the pods' processes on processors.
const (
	pinNone   = "none"   // as the scheduler likes
	pinHalves = "halves" // clients' pods on one half of the processors, servers' on the other, as two nodes have their own
	pinOne    = "one"    // all on one: what costs time is then what costs work, and nothing is hidden by waking a processor
)

// placement is the lists of processors for clients' pods and for servers', empty for all.
func placement(how string) (lists [2]string, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return lists, err
	}
	var cpus []string
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, strconv.Itoa(cpu))
		}
	}
	half := len(cpus) / 2
	switch {
	case how == pinNone:
	case how == pinOne || how == pinHalves && half == 0:
		// Not the first, which has the most interrupts to serve.
		last := cpus[len(cpus)-1]
		lists = [2]string{last, last}
	case how == pinHalves:
		lists = [2]string{strings.Join(cpus[:half], ","), strings.Join(cpus[half:], ",")}
	default:
		return lists, fmt.Errorf("pin %q: want %s, %s or %s", how, pinNone, pinHalves, pinOne)
	}
	return lists, nil
}

// place puts files of this program, one behind the other, at a path.
func (b *bed) place(to string, names ...string) error {
	var all []byte
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		all = append(all, text...)
	}
	return os.WriteFile(to, all, 0o600)
}

// command runs a program on a side's processors.
func (b *bed) command(ctx context.Context, side int, name string, args ...string) *exec.Cmd {
	if b.pin[side] == "" {
		return exec.CommandContext(ctx, name, args...)
	}
	return exec.CommandContext(ctx, "taskset", append([]string{"-c", b.pin[side], name}, args...)...)
}

// Sides of a variant.
const (
	clientSide = iota
	serverSide
)

// pods makes the two pods of a variant.
func (b *bed) pods(ctx context.Context, name string, annotations map[string]string) (*variant, error) {
	client, err := b.n.AddPod(ctx, node.PodSpec{Name: name + "-client", Annotations: annotations})
	if err != nil {
		return nil, err
	}
	server, err := b.n.AddPod(ctx, node.PodSpec{Name: name + "-server", Annotations: annotations})
	if err != nil {
		return nil, err
	}
	v := &variant{client: client, server: server, at: server.IP4}
	b.variants[name] = v
	return v, nil
}

// serve starts the servers, package load's and fortio's, which live as long as the pod.
func (b *bed) serve(ctx context.Context, p *node.Pod, at netip.Addr) error {
	cmd := b.command(context.WithoutCancel(ctx), serverSide, b.self, "load", "serve", "-at", at.String())
	if err := b.background(ctx, p, cmd, at, load.Ports(), ""); err != nil {
		return err
	}
	return b.serveFortio(ctx, p, at)
}

// background starts a program that serves ports in a pod, and waits until it does.
func (b *bed) background(ctx context.Context, p *node.Pod, cmd *exec.Cmd, at netip.Addr, ports []uint16, dir string) error {
	var said bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &said
	proc, err := p.StartCmd(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, port := range ports {
		for {
			err := p.Do(func() error {
				c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(at, port).String(), time.Second)
				if err == nil {
					c.Close()
				}
				return err
			})
			if err == nil {
				break
			}
			select {
			case <-proc.Done():
				return fmt.Errorf("%s in pod %s ended (%w): %s", cmd.Args, p.Name, errors.Join(proc.Wait(), err), said.Bytes())
			case <-ctx.Done():
				return fmt.Errorf("waiting for %s in pod %s: %w", cmd.Args, p.Name, errors.Join(context.Cause(ctx), err))
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// direct: and it is made sure that nothing is attached.
func (b *bed) direct(ctx context.Context) error {
	v, err := b.pods(ctx, direct, nil)
	if err != nil {
		return err
	}
	for _, p := range []*node.Pod{v.client, v.server} {
		got, err := node.Attached(p.CgroupPath)
		if err == nil && len(got) > 0 {
			err = fmt.Errorf("%v are there", got)
		}
		if err != nil {
			return fmt.Errorf("pod %s should have no programs: %w", p.Name, err)
		}
	}
	return b.serve(ctx, v.server, v.at)
}

// kmesh: and it is made sure that everything is attached.
func (b *bed) kmesh(ctx context.Context) error {
	dir := filepath.Join(b.n.Dir, "xds")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// Pods are enrolled once there is a mesh: a first one, without them.
	other := b.variants[direct]
	if err := meshOf(1, other.server.IP4, other.server.IP4, other.client.IP4).write(dir); err != nil {
		return err
	}
	if _, err := b.n.StartHelper(ctx, "--xds-dir", dir); err != nil {
		return err
	}
	v, err := b.pods(ctx, kmesh, node.Enrolled())
	if err != nil {
		return err
	}
	for _, p := range []*node.Pod{v.client, v.server} {
		got, err := node.Attached(p.CgroupPath)
		for _, h := range bpf.CgroupHooks {
			if err == nil && got[h.Attach] != 1 {
				err = fmt.Errorf("%d programs at %s", got[h.Attach], h.Name)
			}
		}
		if err = errors.Join(err, b.n.Check(ctx, p.Sandbox)); err != nil {
			return fmt.Errorf("pod %s should have everything attached: %w", p.Name, err)
		}
	}
	if err := b.serve(ctx, v.server, v.at); err != nil {
		return err
	}
	before, err := bpf.ReadState(b.n.BPFFS)
	if err != nil {
		return err
	}
	if err := meshOf(2, v.server.IP4, other.server.IP4, v.client.IP4).write(dir); err != nil {
		return err
	}
	if err := b.published(ctx, before.Generation); err != nil {
		return err
	}
	b.variants[passing] = &variant{client: v.client, server: v.client, at: v.client.IP4}
	b.variants[l7] = &variant{client: v.client, server: v.server, at: vipL7}
	b.variants[same] = &variant{client: v.client, server: v.server, at: vipSame}
	b.variants[beside] = &variant{client: v.client, server: other.server, at: vipBeside}
	v.at = vip
	return nil
}

func (b *bed) published(ctx context.Context, after uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		st, err := bpf.ReadState(b.n.BPFFS)
		if err != nil || st.Generation > after {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the mesh's second version: %w", context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// haproxy: the server listens on its pod's loopback, the sidecars carry. No address is translated on the way, as
// sidecars need it: the client is told where its sidecar is.
func (b *bed) haproxy(ctx context.Context) error {
	v, err := b.pods(ctx, haproxy, nil)
	if err != nil {
		return err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	if err := b.serve(ctx, v.server, loopback); err != nil {
		return err
	}
	both := []uint16{load.HTTPPort, load.EchoPort, load.SinkPort, load.PagePort, fortioPort}
	for side, s := range []struct {
		pod   *node.Pod
		name  string
		at    netip.Addr
		ports []uint16
	}{
		clientSide: {v.client, "client", loopback, append(both, load.SwitchPort)},
		serverSide: {v.server, "server", v.at, append(both, load.SwitchPorts[:]...)},
	} {
		dir := filepath.Join(b.n.Dir, "haproxy-"+s.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := b.place(filepath.Join(dir, "haproxy.cfg"), "haproxy/"+s.name+".cfg"); err != nil {
			return err
		}
		cmd := b.command(context.WithoutCancel(ctx), side, "haproxy", "-db", "-q", "-f", "haproxy.cfg")
		cmd.Env = append(os.Environ(), "POD="+v.server.IP4.String(), "SERVER="+v.server.IP4.String())
		if err := b.background(ctx, s.pod, cmd, s.at, s.ports, dir); err != nil {
			return err
		}
	}
	v.at = loopback
	return nil
}
