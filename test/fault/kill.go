// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/netns"
	"kmesh/netns/failpoint"
	"kmesh/test/node"
)

// failing has the plugin fail as plan says (package failpoint), at one verb.
func failing(ctx context.Context, verb, plan string) context.Context {
	return node.WithHook(ctx, node.Hook{Before: func(c *node.Call) {
		if c.Plugin == "kmesh-cni" && c.Verb == verb {
			c.Cmd.Env = append(c.Cmd.Env, failpoint.Variable+"="+plan)
		}
	}})
}

// pluginKilled: the plugin dies, or one of its system calls fails, at each step that it makes.
func pluginKilled(t *trial) {
	b, _ := t.live(node.Options{})
	p := b.prepare(true)
	err := b.Add(failing(t.ctx, "ADD", "kill@1,kill@begin,kill@pin"), p.Sandbox)
	t.claim("the plugin as it is shipped has no fail-point", err == nil, "an ADD that is to be killed ends with: %v", err)
	b.del(p)
	dir, err := node.Tagged(t.ctx, "failpoint", "kmesh-cni")
	t.must(err)
	b.UsePlugin(dir)
	adds, dels := b.points()
	t.note("%d points of ADD: %s", len(adds), strings.Join(adds, ", "))
	t.note("%d points of DEL: %s", len(dels), strings.Join(dels, ", "))
	before := b.holdings()
	type job struct {
		at    int
		point string
		do    func(*bed, int, string)
	}
	var jobs []job
	step := t.of(1, 9)
	for i := 0; i < len(adds); i += step {
		for _, do := range []func(*bed, int, string){addKilledThenDel, addKilledThenLost, addKilledThenAdd, addFailed} {
			jobs = append(jobs, job{i + 1, adds[i], do})
		}
	}
	for i := 0; i < len(dels); i += step {
		for _, do := range []func(*bed, int, string){delKilledThenDel, delKilledThenLost, delFailed} {
			jobs = append(jobs, job{i + 1, dels[i], do})
		}
	}
	var done atomic.Int64
	t.each(len(jobs), 3, func(i int) {
		jobs[i].do(b, jobs[i].at, jobs[i].point)
		if done.Add(1)%10 == 0 {
			b.bystander()
		}
	})
	// Those that had no DEL are the sweep's; a record that was being written goes when it is old enough.
	took, err := t.until(settleLimit, func() error {
		if _, err := b.netns.Sweep(t.ctx); err != nil {
			return err
		}
		if held, err := b.held(); err != nil || held.Beyond(before) != (node.Holdings{}) {
			return errors.Join(err, fmt.Errorf("%+v", held.Beyond(before)))
		}
		return nil
	})
	t.claim("nothing is left after the sweep", err == nil, "%v, after %s", err, ms(took))
	b.settled(before)
	t.claim("each point was met", t.res.n >= len(jobs), "%d faults at %d points", t.res.n, len(adds)+len(dels))
}

// points are those that an ADD and a DEL pass.
func (b *bed) points() (adds, dels []string) {
	dir, err := os.MkdirTemp("", "kmesh-fault-trace-")
	b.t.must(err)
	defer os.RemoveAll(dir)
	p := b.prepare(true)
	read := func(verb string, do func(context.Context) error) []string {
		file := filepath.Join(dir, verb)
		b.t.must(do(failing(b.t.ctx, verb, "trace="+file)))
		data, err := os.ReadFile(file)
		b.t.must(err)
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
	adds = read("ADD", func(ctx context.Context) error { return b.Add(ctx, p.Sandbox) })
	dels = read("DEL", func(ctx context.Context) error { return b.Del(ctx, p.Sandbox, nil) })
	b.del(p)
	return adds, dels
}

// addKilled makes a pod whose ADD is killed.
func (b *bed) addKilled(at int, point string) *node.Pod {
	p := b.prepare(true)
	b.t.count(1)
	var own *types.Error
	if err := b.Add(failing(b.t.ctx, "ADD", fmt.Sprint("kill@", at)), p.Sandbox); err == nil || errors.As(err, &own) {
		b.t.claim("the plugin is killed", false, "ADD, %d: %s: %v", at, point, err)
	}
	return p
}

func addKilledThenDel(b *bed, at int, point string) {
	p := b.addKilled(at, point)
	b.t.must(b.Del(b.t.ctx, p.Sandbox, nil))
	b.gone(p, fmt.Sprintf("ADD killed at %d: %s, then DEL", at, point))
	b.del(p)
}

func addKilledThenLost(b *bed, at int, point string) { b.t.must(b.LosePod(b.addKilled(at, point))) }

// addKilledThenAdd: the kubelet makes another sandbox for the pod, before the DEL of the first.
func addKilledThenAdd(b *bed, at int, point string) {
	p := b.addKilled(at, point)
	if _, err := b.Recreate(b.t.ctx, p); err != nil {
		b.t.claim("the next ADD succeeds", false, "ADD killed at %d: %s: %v", at, point, err)
	} else if err := b.governed(p); err != nil {
		b.t.claim("the next ADD governs", false, "ADD killed at %d: %s: %v", at, point, err)
	}
	b.del(p)
}

// addFailed: one system call fails. ADD says so in CNI's words and has taken all back, or it did not matter.
func addFailed(b *bed, at int, point string) {
	p := b.prepare(true)
	b.t.count(1)
	err := b.Add(failing(b.t.ctx, "ADD", fmt.Sprint("EIO@", at)), p.Sandbox)
	var own *types.Error
	switch {
	case err == nil:
		if err := b.governed(p); err != nil {
			b.t.claim("an ADD that succeeds governs", false, "EIO at %d: %s: %v", at, point, err)
		}
	case !errors.As(err, &own):
		b.t.claim("an error has a code", false, "EIO at %d: %s: %v", at, point, err)
	case point == "end":
		// All is done, and then it fails: the runtime's DEL takes it back.
	default:
		b.gone(p, fmt.Sprintf("ADD with EIO at %d: %s", at, point))
	}
	b.del(p)
}

func delKilledThenDel(b *bed, at int, point string) {
	p := b.delHit("kill", at, point)
	b.t.must(b.Del(b.t.ctx, p.Sandbox, nil))
	b.gone(p, fmt.Sprintf("DEL killed at %d: %s, then DEL", at, point))
	b.del(p)
}

func delKilledThenLost(b *bed, at int, point string) {
	b.t.must(b.LosePod(b.delHit("kill", at, point)))
}

func delFailed(b *bed, at int, point string) {
	p := b.delHit("EIO", at, point)
	b.t.must(b.Del(b.t.ctx, p.Sandbox, nil))
	b.gone(p, fmt.Sprintf("DEL with EIO at %d: %s, then DEL", at, point))
	b.del(p)
}

// delHit makes a pod whose DEL is killed, or fails.
func (b *bed) delHit(action string, at int, point string) *node.Pod {
	p, err := b.optedIn()
	b.t.must(err)
	var own *types.Error
	err = b.Del(failing(b.t.ctx, "DEL", fmt.Sprintf("%s@%d", action, at)), p.Sandbox, nil)
	if action == "kill" && (err == nil || errors.As(err, &own)) {
		b.t.claim("the plugin is killed", false, "DEL, %d: %s: %v", at, point, err)
	}
	return p
}

// gone looks for what a pod should have left nothing of.
func (b *bed) gone(p *node.Pod, after string) {
	on, err := node.Attached(p.CgroupPath)
	if err != nil || len(on) > 0 {
		b.t.claim("nothing is left", false, "%s: programs on the cgroup: %v, %v", after, on, err)
	}
	if got, err := b.netns.Get(b.t.ctx, attachment(p.Sandbox)); !errors.Is(err, netns.ErrNotEnrolled) {
		b.t.claim("nothing is left", false, "%s: %+v, %v", after, got, err)
	}
	if _, err := os.Stat(filepath.Join(b.BPFFS, "cgroups", fmt.Sprint(p.CgroupID))); err == nil {
		b.t.claim("nothing is left", false, "%s: pins of cgroup %d", after, p.CgroupID)
	}
}

// delNeverSent: pods vanish while no helper is there; the next one finds what they left.
func delNeverSent(t *trial) {
	b, h := t.live(node.Options{})
	before := b.holdings()
	for range t.of(5, 1) {
		pods := make([]*node.Pod, t.of(40, 4))
		t.each(len(pods), 4, func(i int) {
			var err error
			pods[i], err = b.optedIn()
			t.must(err)
		})
		b.bystander()
		h.Kill9()
		t.each(len(pods), 4, func(i int) { t.must(b.LosePod(pods[i])) })
		began := time.Now()
		started := make(chan *node.Helper)
		go func() {
			defer close(started)
			h, err := b.StartHelper(t.ctx, "--xds-dir", b.xds)
			if err != nil {
				t.fault(err)
				return
			}
			started <- h
		}()
		_, err := t.until(settleLimit, func() error {
			for _, dir := range []string{"pods", "cgroups"} {
				left, err := filepath.Glob(filepath.Join(b.BPFFS, dir, "*"))
				if err != nil || len(left) > 0 {
					return fmt.Errorf("%d left in %s", len(left), dir)
				}
			}
			return nil
		})
		took := time.Since(began)
		t.must(err)
		h = <-started
		t.must(t.res.err)
		t.res.took = append(t.res.took, took)
	}
	b.settled(before)
	t.limit("0 orphans within 1 s of the helper's start", t.res.percentile(100) <= time.Second, verifying, "%s at most", ms(t.res.percentile(100)))
	t.claim("0 orphans after one sweep", true, "%d pods", t.res.n)
}
