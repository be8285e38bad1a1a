// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"kmesh/bpf"
	"kmesh/netns"
)

// spell is how long a test of updates makes traffic.
func spell(short time.Duration) time.Duration {
	if full {
		return time.Minute
	}
	return short
}

// threeLoads are what connections are like in life: kept alive, one for each request, and
// such as wait for an answer most of the time.
func threeLoads(e []*server) []load {
	next := mixed(e, 20_000)
	return []load{
		{conns: 4, perConn: 200, next: next},
		{conns: 2, perConn: 1, next: next},
		{conns: 8, perConn: 10, next: func(r *rand.Rand) (request, []*server) {
			q, want := next(r)
			q.do.Delay = time.Duration(r.IntN(1500)) * time.Millisecond
			return q, want
		}},
	}
}

// duringAll makes several loads while f runs, and fails for the errors of each.
func (s *scene) duringAll(svc *service, loads []load, f func()) []*tally {
	s.Helper()
	stop := make(chan struct{})
	tallies := make([]*tally, len(loads))
	var wg sync.WaitGroup
	for i, l := range loads {
		l.stop = stop
		wg.Go(func() { tallies[i] = s.run(svc, l) })
	}
	f()
	close(stop)
	wg.Wait()
	for _, t := range tallies {
		s.fail(t)
	}
	return tallies
}

// TestProgramsReplaced: other programs of the same layout take the place of those that
// are pinned and attached, again and again, and no request notices.
func TestProgramsReplaced(t *testing.T) {
	modes := []mode{tcx}
	if full {
		modes = append(modes, clsact)
	}
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			b := newBed(t, m)
			s := newScene(t, b, m == clsact, false)
			svc, e := s.numbered(3)
			nn := netns.New(netns.Options{BPFFS: b.node.BPFFS, RunDir: b.node.RunDir})
			hooks := len(bpf.CgroupHooks) + len(bpf.TCHooks)
			updates := 0
			s.duringAll(svc, threeLoads(e), func() {
				for end := time.Now().Add(spell(3 * time.Second)); time.Now().Before(end); {
					was := b.programs(nn)
					b.publishing.Lock()
					if err := b.rt.Close(); err != nil {
						t.Error(err)
					}
					b.edition++
					b.load()
					err := nn.Upgrade(b.ctx, b.rt.Program)
					b.publishing.Unlock()
					if err != nil {
						t.Fatal(err)
					}
					if len(b.rt.Replaced) != hooks {
						t.Errorf("replaced are %v, want all of %d", b.rt.Replaced, hooks)
					}
					for at, id := range b.programs(nn) {
						if was[at] == id {
							t.Errorf("%s runs program %d still", at, id)
						}
					}
					updates++
				}
			})
			t.Logf("%d updates of %d programs in %d pods", updates, hooks, len(b.clients))
			b.wantIdle(t)
		})
	}
}

// programs are the ids of the programs that the kernel runs, by pod and hook.
func (b *bed) programs(nn *netns.Node) map[string]uint32 {
	b.t.Helper()
	pods, err := nn.List(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	ids := make(map[string]uint32)
	for _, p := range pods {
		if !p.Live() {
			b.t.Errorf("pod %s has drifted: %v", p.Name, p.Drift)
		}
		for _, l := range p.Links {
			ids[p.Name+"/"+l.Hook] = l.ProgramID
		}
	}
	return ids
}
