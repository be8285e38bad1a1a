// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"kmesh/bpf"
	"kmesh/netns"
	"kmesh/test/meshfile"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// vip is the service that every bed's mesh has.
const vip = "10.96.0.10:80"

// bed is a node of a row's own.
type bed struct {
	*node.Node
	t      *trial
	xds    string
	netns  *netns.Node
	server *node.Pod
}

// bed makes a node, which is closed when the row is over; what Close finds left counts as leaked.
func (t *trial) bed(opts node.Options) *bed {
	n, err := node.New(t.ctx, opts)
	t.must(err)
	b := &bed{Node: n, t: t, netns: netns.New(netns.Options{BPFFS: n.BPFFS, RunDir: n.RunDir})}
	t.cleanup(func() {
		report, err := n.Close(context.WithoutCancel(t.ctx))
		t.left(report.Left)
		if err != nil && len(report.Left) == 0 {
			t.fault(err)
		}
	})
	b.xds, err = os.MkdirTemp("", "kmesh-fault-xds-")
	t.must(err)
	t.cleanup(func() { os.RemoveAll(b.xds) })
	return b
}

// live is a bed with a helper, a service and a server behind it, on which the first pod has been: it pays for
// switching the kernel's hooks on, and makes the folders that stay.
func (t *trial) live(opts node.Options) (*bed, *node.Helper) {
	b := t.bed(opts)
	b.serve()
	h := b.start()
	b.warm()
	return b, h
}

// serve makes the server, and a mesh whose service leads to it.
func (b *bed) serve() {
	var err error
	b.server, err = b.AddPod(b.t.ctx, node.PodSpec{Name: "server"})
	b.t.must(err)
	at, _, err := b.server.Listen(b.t.ctx, wire.Listen{Network: wire.TCP, Addr: ":8080", Name: "server"})
	b.t.must(err)
	b.t.must(meshfile.Write(b.xds, "mesh.yaml", meshfile.Listener("echo", netip.MustParseAddrPort(vip), meshfile.Share{Cluster: "echo", Weight: 1})+
		meshfile.Cluster("echo", netip.AddrPortFrom(b.server.IP4, at.Port()))))
}

// start starts the helper on the files. Rows that need it to sweep give it an interval.
func (b *bed) start(args ...string) *node.Helper {
	h, err := b.StartHelper(b.t.ctx, append([]string{"--xds-dir", b.xds}, args...)...)
	b.t.must(err)
	return h
}

func (b *bed) warm() {
	p, err := b.AddPod(b.t.ctx, node.PodSpec{Name: "first", Annotations: node.Enrolled()})
	b.t.must(err)
	b.t.must(b.DelPod(b.t.ctx, p))
}

// prepare makes a pod whose ADD is still to come, in the next version of the specification.
func (b *bed) prepare(optIn bool, change ...func(*node.PodSpec)) *node.Pod {
	b.t.mu.Lock()
	b.t.pods++
	turn := &b.t.outTurn
	if optIn {
		turn = &b.t.inTurn
	}
	spec := node.PodSpec{Name: fmt.Sprintf("pod%d", b.t.pods), CNIVersion: versions[*turn%len(versions)]}
	*turn++
	b.t.mu.Unlock()
	if optIn {
		spec.Annotations = node.Enrolled()
	}
	for _, c := range change {
		c(&spec)
	}
	p, err := b.PreparePod(spec)
	b.t.must(err)
	return p
}

// optedIn makes a pod that opts in, and is governed from then on: one that is not is counted.
func (b *bed) optedIn(change ...func(*node.PodSpec)) (*node.Pod, error) {
	p := b.prepare(true, change...)
	err := b.add(p)
	return p, err
}

// add does a prepared pod's ADD, timed where the row times nothing else, and counts a pod that starts ungoverned.
func (b *bed) add(p *node.Pod) error {
	b.t.count(1)
	ctx := b.t.ctx
	if b.t.res.row.timed == "" {
		ctx = b.timed("ADD")
	}
	if err := b.Add(ctx, p.Sandbox); err != nil {
		return err
	}
	if err := b.governed(p); err != nil {
		b.t.mu.Lock()
		b.t.res.unenrolled++
		b.t.mu.Unlock()
		b.t.note("ungoverned: %s (%s): %v", p.Name, p.CNIVersion, err)
	}
	return nil
}

// timed is a context under which the plugin's calls of a verb are timed.
func (b *bed) timed(verb string) context.Context {
	return node.WithHook(b.t.ctx, node.Hook{After: func(c *node.Call) {
		if c.Plugin == "kmesh-cni" && c.Verb == verb {
			b.t.time(c.Took)
		}
	}})
}

// governed asks the kernel: one program for each hook on the pod's cgroup, and its pins and markers whole.
func (b *bed) governed(p *node.Pod) error {
	on, err := node.Attached(p.CgroupPath)
	if err != nil {
		return err
	}
	for _, h := range bpf.CgroupHooks {
		if on[h.Attach] != 1 {
			return fmt.Errorf("%d programs on the cgroup at %s", on[h.Attach], h.Name)
		}
	}
	got, err := b.netns.Get(b.t.ctx, attachment(p.Sandbox))
	if err != nil {
		return err
	}
	if !got.Live() || !got.Owner || got.Cgroup != p.CgroupID {
		return fmt.Errorf("ready %v, owner %v, drift %q, cgroup %d instead of %d", got.Ready, got.Owner, got.Drift, got.Cgroup, p.CgroupID)
	}
	return nil
}

func attachment(s *node.Sandbox) netns.Attachment {
	return netns.Attachment{ContainerID: s.ContainerID, Network: node.Network, IfName: node.IfName}
}

// slow is when a pod that did not opt in has been delayed: the plugin only passes bytes on.
const slow = 2 * time.Second

// bystander makes a pod that did not opt in, looks at it, and ends it. What is not as it would be without us counts.
func (b *bed) bystander(change ...func(*node.PodSpec)) {
	p := b.prepare(false, change...)
	b.t.broke(p, b.leftAlone(p))
	b.t.broke(p, b.DelPod(b.t.ctx, p))
}

func (t *trial) broke(p *node.Pod, err error) {
	if err == nil || t.ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	t.res.broken++
	t.mu.Unlock()
	t.note("broken: %s (%s), which did not opt in: %v", p.Name, p.CNIVersion, err)
}

// leftAlone does the ADD of a pod that did not opt in.
func (b *bed) leftAlone(p *node.Pod) error { return b.leftAloneUnder(b.t.ctx, p) }

func (b *bed) leftAloneUnder(ctx context.Context, p *node.Pod) error {
	var errs []error
	ctx = node.WithHook(ctx, node.Hook{After: func(c *node.Call) {
		if c.Plugin != "kmesh-cni" || c.Verb != "ADD" {
			return
		}
		b.t.beside(c.Took)
		var conf struct{ PrevResult json.RawMessage }
		if err := json.Unmarshal(c.Stdin, &conf); err != nil {
			errs = append(errs, err)
		}
		if !bytes.Equal(c.Stdout, conf.PrevResult) {
			errs = append(errs, fmt.Errorf("the result is %q, its primary's was %q", c.Stdout, conf.PrevResult))
		}
		if c.Took > slow {
			errs = append(errs, fmt.Errorf("the plugin took %v", c.Took))
		}
	}})
	errs = append(errs, b.Add(ctx, p.Sandbox), b.untouched(p))
	return errors.Join(errs...)
}

// untouched asks the kernel: no program on the cgroup, none on the interface.
func (b *bed) untouched(p *node.Pod) error {
	on, err := node.Attached(p.CgroupPath)
	if err != nil || len(on) > 0 {
		return errors.Join(err, fmt.Errorf("programs on its cgroup: %v", on))
	}
	return p.Do(func() error {
		i, err := net.InterfaceByName(node.IfName)
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			res, err := link.QueryPrograms(link.QueryOptions{Target: i.Index, Attach: at})
			if err == nil && len(res.Programs) > 0 {
				return fmt.Errorf("%d programs on its interface at %s", len(res.Programs), at)
			}
		}
		return nil
	})
}

// del ends a pod in good order, or the row.
func (b *bed) del(p *node.Pod) { b.t.must(b.DelPod(b.t.ctx, p)) }

// holdings is what the node holds before a fault.
func (b *bed) holdings() node.Holdings {
	h, err := b.held()
	b.t.must(err)
	return h
}

// held counts the entries of the table of pods among the files: each is a pod's.
func (b *bed) held() (node.Holdings, error) {
	h, err := b.Holdings()
	if err != nil {
		return h, err
	}
	pods, err := bpf.OpenPods(b.BPFFS)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return h, err
	}
	defer pods.Close()
	all, err := pods.List()
	h.Files += len(all)
	return h, err
}

// settleLimit is how long the kernel may take to free what nobody holds any more.
const settleLimit = 10 * time.Second

// settled waits until the node holds no more than before; what it still does is leaked.
func (b *bed) settled(before node.Holdings) {
	var more node.Holdings
	_, _ = b.t.until(settleLimit, func() error {
		now, err := b.held()
		if err != nil {
			return err
		}
		if more = now.Beyond(before); more != (node.Holdings{}) {
			return errors.New("not yet")
		}
		return nil
	})
	b.t.leak(more)
}

func (t *trial) leak(h node.Holdings) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &t.res.leaked
	l.FDs, l.Links, l.Programs, l.Maps = l.FDs+h.FDs, l.Links+h.Links, l.Programs+h.Programs, l.Maps+h.Maps
	l.Pins, l.Netns, l.Files = l.Pins+h.Pins, l.Netns+h.Netns, l.Files+h.Files
}

// left counts what the node's end has found.
func (t *trial) left(found []string) {
	var h node.Holdings
	for _, what := range found {
		t.note("left behind: %s", what)
		switch {
		case strings.HasPrefix(what, "link "), strings.HasPrefix(what, "programs on "):
			h.Links++
		case strings.HasPrefix(what, "program "):
			h.Programs++
		case strings.HasPrefix(what, "map "):
			h.Maps++
		case strings.HasPrefix(what, "descriptor "):
			h.FDs++
		case strings.HasPrefix(what, "pin "):
			h.Pins++
		case strings.HasPrefix(what, "network namespace "):
			h.Netns++
		default:
			h.Files++
		}
	}
	t.leak(h)
}

// records is the folder of the plugin's records.
func (b *bed) records() string { return filepath.Join(b.RunDir, "pods") }
