// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/bpf"
	"kmesh/netns"
	"kmesh/test/node"
	"kmesh/test/node/wire"
)

// crowd makes many pods that opt in.
func (b *bed) crowd(n int) []*node.Pod {
	pods := make([]*node.Pod, n)
	b.t.each(n, 8, func(i int) {
		var err error
		pods[i], err = b.optedIn()
		b.t.must(err)
	})
	return pods
}

// traffic makes connections to the service until it is stopped, and counts those that were not answered as they should.
type traffic struct {
	done, failed int
	first        string // failure
}

func (b *bed) traffic(clients []*node.Pod) (stop func() traffic) {
	ctx, cancel := context.WithCancel(b.t.ctx)
	var mu sync.Mutex
	var wg sync.WaitGroup
	var sum traffic
	for _, p := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				const batch = 20
				// Hundreds of pods on one bridge lose a packet now and then, when all of them are told of an address at once.
				c, err := p.DialN(b.t.ctx, wire.DialN{N: batch, Dial: wire.Dial{Network: wire.TCP, Addr: vip, Timeout: 20 * time.Second}})
				mu.Lock()
				sum.done += c.Servers["server"]
				if bad := batch - c.Servers["server"]; bad > 0 || c.Peers[vip] != batch {
					sum.failed += max(bad, batch-c.Peers[vip])
					if sum.first == "" {
						sum.first = fmt.Sprintf("%+v, %v", c, err)
					}
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	var once sync.Once
	end := func() traffic {
		once.Do(func() { cancel(); wg.Wait() })
		return sum
	}
	b.t.cleanup(func() { end() })
	return end
}

// opened is how many connections to the service the programs have counted.
func (b *bed) opened() int {
	body, err := b.Get(b.t.ctx, "/metrics")
	b.t.must(err)
	sum := 0.0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "kmesh_tcp_connections_opened_total{") {
			var v float64
			_, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v)
			b.t.must(err)
			sum += v
		}
	}
	return int(sum)
}

// upgraded: programs are replaced in many pods at once, under traffic, by helpers and by the package that they use.
func upgraded(t *trial) {
	b, h := t.live(node.Options{})
	start := b.holdings()
	today, err := node.Programs(t.ctx, "kmesh-helper", "kmeshctl")
	t.must(err)
	other, err := node.Version(t.ctx, 0, 1, "kmesh-helper", "kmeshctl")
	t.must(err)
	pods := b.crowd(t.of(500, 16))
	clients := pods[:3]
	kept, err := clients[0].Dial(t.ctx, wire.Dial{Network: wire.TCP, Addr: vip, Keep: true})
	t.must(err)
	lost := t.backlog()
	stop := b.traffic(clients)
	for range t.of(3, 1) {
		for _, dir := range []string{other, today} {
			h.Kill9()
			b.UseHelper(dir)
			began := time.Now()
			h = b.start()
			if _, err := t.until(time.Minute, func() error { return b.runs(pods) }); err != nil {
				t.claim("every pod runs the new programs", false, "%v", err)
			}
			t.note("all pods run the programs of a new helper %s after its start", ms(time.Since(began)))
		}
	}
	for edition := range t.of(10, 2) {
		h.Kill9() // it would put its own programs back
		rt, err := bpf.Load(bpf.LoadOptions{BPFFS: b.BPFFS, Edition: uint32(100 + edition)})
		t.must(err)
		began := time.Now()
		err = b.netns.Upgrade(t.ctx, rt.Program)
		t.time(time.Since(began))
		t.must(errors.Join(err, rt.Close()))
		h = b.start()
	}
	sum := stop()
	res, err := clients[0].Exchange(t.ctx, wire.Exchange{Handle: kept.Handle})
	t.claim("0 connections refused, lost or ungoverned", sum.failed == 0 && sum.done > 0, "%d of %d %s", sum.failed, sum.done+sum.failed, sum.first)
	t.note("%d packets were dropped meanwhile by full queues of this machine's CPUs (softnet_stat)", t.backlog()-lost)
	t.claim("the connection of before works", err == nil && res.Server == "server", "it answers %q, %v", res.Server, err)
	t.must(clients[0].Hangup(t.ctx, kept.Handle))
	counted := b.opened()
	t.claim("counters are continuous", counted == sum.done+1, "%d connections counted, %d made", counted, sum.done+1)
	links := len(pods) * (len(bpf.CgroupHooks) + len(bpf.TCHooks))
	swap := t.res.percentile(100)
	t.limit("the swap takes < 50 ms", swap < 50*time.Millisecond, fmt.Sprintf("of %d links, each of which is replaced at once: no pod waits for another", links), "%s at most, %.2f ms for each pod", ms(swap), swap.Seconds()*1000/float64(len(pods)))
	for _, p := range pods {
		if err := b.governed(p); err != nil {
			t.claim("every pod is governed in the end", false, "%s: %v", p.Name, err)
		}
	}
	b.bystander()
	t.each(len(pods), 8, func(i int) { b.del(pods[i]) })
	b.settled(start)
}

// backlog is how many packets the machine has dropped because a CPU's queue was full.
func (t *trial) backlog() (dropped uint64) {
	data, err := os.ReadFile("/proc/net/softnet_stat")
	t.must(err)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 {
			n, err := strconv.ParseUint(f[1], 16, 64)
			t.must(err)
			dropped += n
		}
	}
	return dropped
}

// runs says whether all pods run the programs that are pinned now.
func (b *bed) runs(pods []*node.Pod) error {
	all, err := b.netns.List(b.t.ctx)
	if err != nil {
		return err
	}
	ids := map[string]map[uint32]bool{}
	for _, p := range all {
		for _, l := range p.Links {
			if ids[l.Hook] == nil {
				ids[l.Hook] = map[uint32]bool{}
			}
			ids[l.Hook][l.ProgramID] = true
		}
	}
	if len(all) != len(pods) {
		return fmt.Errorf("%d pods are enrolled, want %d", len(all), len(pods))
	}
	for hook, of := range ids {
		if len(of) != 1 {
			return fmt.Errorf("%d programs at %s", len(of), hook)
		}
	}
	return nil
}

// skewed: plugin and helper of different layouts of the maps.
func skewed(t *trial) {
	today, err := node.Programs(t.ctx, "kmesh-cni", "kmesh-helper", "kmeshctl")
	t.must(err)
	for _, by := range []int{-1, 1} {
		other, err := node.Version(t.ctx, int(bpf.ABI)+by, 2, "kmesh-cni", "kmesh-helper", "kmeshctl")
		t.must(err)
		b := t.bed(node.Options{})
		b.serve()
		b.UseHelper(other)
		h := b.start()
		refused := func(what string) {
			for _, v := range versions {
				p := b.prepare(true, func(s *node.PodSpec) { s.CNIVersion = v })
				err := b.add(p)
				var own *types.Error
				if !errors.As(err, &own) || own.Code != uint(netns.CodeNotReady) || !strings.Contains(own.Msg, "same version of both") {
					t.claim("code 110, or it works", false, "%s %+d, %s: %v", what, by, v, err)
				}
				b.gone(p, what)
				b.del(p)
				b.bystander(func(s *node.PodSpec) { s.CNIVersion = v })
			}
		}
		works := func(what string) (pods []*node.Pod) {
			for range versions {
				p, err := b.optedIn()
				if err != nil {
					t.claim("code 110, or it works", false, "%s %+d: %v", what, by, err)
				}
				pods = append(pods, p)
				b.bystander()
			}
			return pods
		}
		b.UsePlugin(today)
		refused("the helper is")
		b.UsePlugin(other)
		old := works("both are")
		b.UsePlugin(today)
		refused("the helper is, beside pods")
		h.Kill9()
		b.UseHelper(today)
		b.start("--sweep-every", "200ms")
		young := works("neither is, beside pods that are")
		b.UsePlugin(other)
		refused("the plugin is")
		b.UsePlugin(today)
		for _, p := range append(old, young...) {
			if err := b.governed(p); err != nil {
				t.claim("never half", false, "%s: %v", p.Name, err)
			}
			t.must(b.Del(t.ctx, p.Sandbox, nil)) // today's plugin ends what the other's began
			b.gone(p, "DEL by today's plugin")
			b.del(p)
		}
	}
	t.claim("code 110 with the remedy, or it works; never half", true, "%d ADDs", t.res.n)
}
