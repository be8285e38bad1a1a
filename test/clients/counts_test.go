// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"kmesh/bpf"
)

// counts are the kernel's counters: events by name, requests by service, cluster and status.
type counts struct {
	events   map[string]uint64
	requests map[request]uint64
}

type request struct {
	service, cluster string
	status           uint16
}

// clusters are the requests of a service that had a status, by cluster.
func (c counts) clusters(s service, status uint16) map[string]uint64 {
	out := map[string]uint64{}
	for k, n := range c.requests {
		if k.service == s.name && k.status == status {
			out[strings.TrimSuffix(k.cluster, "6")] += n
		}
	}
	return out
}

// switches are the requests that went on another leg than the one before.
func (c counts) switches() uint64 { return c.events["switch_new"] + c.events["switch_parked"] }

// pins are the connections that were not, or no longer, routed by request, by reason.
func (c counts) pins() map[string]uint64 {
	out := map[string]uint64{}
	for name, n := range c.events {
		if reason, ok := strings.CutPrefix(name, "pin_"); ok && n > 0 {
			out[reason] = n
		}
	}
	return out
}

func (c counts) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(c.events)) {
		words = append(words, fmt.Sprintf("%s %d", name, c.events[name]))
	}
	for k, n := range c.requests {
		words = append(words, fmt.Sprintf("%s to %s with %d: %d", k.service, k.cluster, k.status, n))
	}
	return strings.Join(words, ", ")
}

// failures are events that no client may cause that does nothing wrong, between pods that lose nothing.
var failures = []string{
	"pin_malformed", "pin_lost", "rejected", "no_route", "no_endpoint", "refused", "timeout", "hold_full", "flow_full", "quota", "lost", "leg_port",
}

// counting runs f and returns what the kernel counted meanwhile, which has no failure in it.
func (b *bed) counting(f func()) counts {
	b.Helper()
	before := b.counts()
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("the kernel counted %v", b.counts().minus(before))
		}
	})
	f()
	got := b.counts().minus(before)
	for _, name := range failures {
		if n := got.events[name]; n > 0 {
			b.Errorf("%d times %s", n, name)
		}
	}
	return got
}

func (c counts) minus(before counts) counts {
	out := counts{map[string]uint64{}, map[request]uint64{}}
	for k, n := range c.events {
		if n -= before.events[k]; n > 0 {
			out.events[k] = n
		}
	}
	for k, n := range c.requests {
		if n -= before.requests[k]; n > 0 {
			out.requests[k] = n
		}
	}
	return out
}

func (b *bed) counts() counts {
	b.Helper()
	c := counts{map[string]uint64{}, map[request]uint64{}}
	events, err := b.rt.EventCounts()
	if err != nil {
		b.Fatal(err)
	}
	for i, n := range events {
		c.events[bpf.Event(i).String()] = n
	}
	var key bpf.RequestKey
	var value bpf.RequestStats
	it := b.rt.Requests.Iterate()
	for it.Next(&key, &value) {
		c.requests[request{b.nameOf(key.Service), b.nameOf(key.Cluster), key.Status}] += value.Count
	}
	if err := it.Err(); err != nil {
		b.Fatal(err)
	}
	return c
}

// nameOf is what an id stands for.
func (b *bed) nameOf(id uint32) string {
	if id == 0 {
		return ""
	}
	var n bpf.Name
	if err := b.rt.Names.Lookup(id, &n); err != nil {
		b.Fatalf("the name of %d: %v", id, err)
	}
	return string(n.Name[:n.Len])
}

// wantIdle fails unless the kernel forgets all connections, now that every client has ended.
func (b *bed) wantIdle() {
	b.Helper()
	eventually(b, "flows that are open", func() []bpf.Flow { return b.rt.LiveFlows() }, func(f []bpf.Flow) bool { return len(f) == 0 })
}

// openLegs is the number of legs to a port that may take a request.
func (b *bed) openLegs(port uint16) (n int) {
	for _, f := range b.rt.LiveFlows() {
		for _, l := range f.Legs {
			const closing = 4 // KM_LEG_CLOSING
			if l.Port == port<<8|port>>8 && (l.State == bpf.LegOpen && l.Flags&closing == 0 || l.State == bpf.LegSyn) {
				n++
			}
		}
	}
	return n
}

func equal(t testing.TB, what string, got, want map[string]uint64) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
