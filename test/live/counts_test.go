// SPDX-License-Identifier: Apache-2.0

package live

import (
	"fmt"
	"sync"
)

// What the kernel counted is compared with what clients saw: forwarded requests exactly, by cluster, route and status;
// those that the program answered exactly by status, and by route as far as clients can tell the routes apart.

type forwardKey struct {
	cluster, route string
	status         uint16
}

// counts is what the clients of one world saw.
type counts struct {
	mu        sync.Mutex
	forwarded map[forwardKey]uint64
	local     map[uint16]uint64 // by status
	// By the name of a route that answered: how often it did for sure, and how often it may have.
	least, most map[string]uint64
	missed      bool // a request that may have been counted was not seen
}

func newCounts() *counts {
	return &counts{forwarded: map[forwardKey]uint64{}, local: map[uint16]uint64{}, least: map[string]uint64{}, most: map[string]uint64{}}
}

// add counts a request that was one of the outcomes allowed, and was answered with status.
func (n *counts) add(allowed []outcome, status int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o := allowed[0]; o.cluster != "" {
		n.forwarded[forwardKey{o.cluster, o.route, uint16(status)}]++
		return
	}
	n.local[uint16(status)]++
	routes := map[string]bool{}
	for _, o := range allowed {
		routes[o.route] = true
	}
	for route := range routes {
		n.most[route]++
		if len(routes) == 1 {
			n.least[route]++
		}
	}
}

// miss says that a request was sent of which nothing is known.
func (n *counts) miss() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.missed = true
}

// compareCounts holds the kernel's counters of some worlds against what was seen.
func (l *lab) compareCounts(batch []*world, seen []*counts) error {
	all, err := l.pub.HTTPCounters(l.ctx)
	if err != nil {
		return err
	}
	for i, w := range batch {
		want := seen[i]
		if want.missed {
			continue
		}
		forwarded, local, routes := map[forwardKey]uint64{}, map[uint16]uint64{}, map[string]uint64{}
		for _, r := range all.Requests {
			switch {
			case r.Service != w.service.Name:
			case r.Local:
				local[r.Status] += r.Count
				routes[r.Route] += r.Count
			default:
				forwarded[forwardKey{r.Cluster, r.Route, r.Status}] += r.Count
			}
		}
		if a, b := fmt.Sprint(forwarded), fmt.Sprint(want.forwarded); a != b {
			return fmt.Errorf("seed %d: forwarded requests:\n the kernel counted %s\n clients saw        %s", w.seed, a, b)
		}
		if a, b := fmt.Sprint(local), fmt.Sprint(want.local); a != b {
			return fmt.Errorf("seed %d: answered requests by status:\n the kernel counted %s\n clients saw        %s", w.seed, a, b)
		}
		for route, n := range routes {
			if n > want.most[route] {
				return fmt.Errorf("seed %d: the kernel counted %d answers of route %q, clients saw at most %d", w.seed, n, route, want.most[route])
			}
		}
		for route, n := range want.least {
			if routes[route] < n {
				return fmt.Errorf("seed %d: the kernel counted %d answers of route %q, clients saw at least %d", w.seed, routes[route], route, n)
			}
		}
	}
	return nil
}
