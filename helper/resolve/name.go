// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"kmesh/helper/mesh"
)

// believed is how many denials in a row take known addresses away.
const believed = 2

// reply is what came of asking for one family of addresses.
type reply struct {
	asked bool
	addrs []netip.Addr
	ttl   time.Duration
	// denied: the name has no such address, and why says who says so and how.
	// Otherwise why says why nothing is known; empty if something is.
	denied bool
	why    string
}

// found is what came of asking for a name.
type found struct {
	v4, v6 reply
}

// some tells whether there is any address.
func (f found) some() bool { return len(f.v4.addrs)+len(f.v6.addrs) > 0 }

// failed is why nothing is known about one of the families that were asked for; empty
// if both were answered.
func (f found) failed() string {
	for _, one := range []reply{f.v4, f.v6} {
		if one.asked && !one.denied && one.why != "" {
			return one.why
		}
	}
	return ""
}

// name is a name that is watched.
type name struct {
	lookup mesh.Lookup
	due    time.Time
	place  int // in the queue; -1: it is being asked for

	// v4 and v6 are the last known addresses.
	v4, v6 []netip.Addr
	// failures and denials in a row.
	failures, denials int
	answered          bool
	answer            mesh.Answer
}

// take takes in what was found: how long to wait before asking again, and whether the
// answer differs from the last one.
func (n *name) take(f found, o *Options) (wait time.Duration, changed bool) {
	problem := ""
	failure := f.failed()
	known := len(n.v4)+len(n.v6) > 0
	switch {
	case f.some():
		n.failures, n.denials = 0, 0
		wait = n.refresh(f, o)
		// A family that failed keeps its addresses; that is worth a word if it has any.
		kept4, kept6 := n.keep(&n.v4, f.v4), n.keep(&n.v6, f.v6)
		if kept4 || kept6 {
			problem = failure + ": the last known addresses of that family stay"
		}
	case failure != "":
		n.denials = 0
		problem = failure
		if known {
			problem += ": the last known addresses stay"
		}
		wait = n.backoff(o)
	default:
		n.denials++
		problem = f.v4.why
		if problem == "" {
			problem = f.v6.why
		}
		if known && n.denials < believed {
			problem += ": the last known addresses stay until it is said once more"
		} else {
			n.v4, n.v6 = nil, nil
		}
		wait = n.backoff(o)
	}
	answer := mesh.Answer{Addrs: n.choose(), Problem: problem}
	changed = !n.answered || answer.Problem != n.answer.Problem || !slices.Equal(answer.Addrs, n.answer.Addrs)
	n.answered, n.answer = true, answer
	return wait, changed
}

// keep takes in the addresses of one family; it tells whether older ones are kept
// because there was no answer.
func (n *name) keep(addrs *[]netip.Addr, r reply) bool {
	if r.asked && (r.denied || r.why == "") {
		*addrs = r.addrs
		return false
	}
	return len(*addrs) > 0
}

// choose returns the addresses of the families that are asked for.
func (n *name) choose() []netip.Addr {
	first, second := n.v6, n.v4
	switch n.lookup.Family {
	case mesh.FamilyAll:
		return slices.Concat(n.v4, n.v6)
	case mesh.FamilyV4, mesh.FamilyV4Preferred:
		first, second = n.v4, n.v6
	}
	if len(first) == 0 {
		return second
	}
	return first
}

// refresh is how long an answer is good for.
func (n *name) refresh(f found, o *Options) time.Duration {
	wait := n.lookup.Refresh
	if n.lookup.RespectTTL {
		var ttl time.Duration
		for _, one := range []reply{f.v4, f.v6} {
			if len(one.addrs) > 0 && (ttl == 0 || one.ttl < ttl) {
				ttl = one.ttl
			}
		}
		if ttl > 0 {
			wait = max(ttl, n.lookup.MinTTL)
		}
	}
	wait = min(max(wait, o.MinTTL), o.MaxTTL)
	// Up to a tenth later, so that names that were learned together are not asked for
	// together for ever.
	return wait + o.Random(wait/10) + o.Random(n.lookup.Jitter)
}

// backoff is how long to wait after a failure: between half of a time that doubles and
// all of it.
func (n *name) backoff(o *Options) time.Duration {
	wait := n.lookup.FailureBase
	for i := 0; i < n.failures && wait < n.lookup.FailureMax; i++ {
		wait *= 2
	}
	n.failures++
	wait = min(max(min(wait, n.lookup.FailureMax), o.MinTTL), o.MaxTTL)
	return wait - o.Random(wait/2)
}

// from says who said what.
func from(server, what string) string { return fmt.Sprintf("%s from %s", what, server) }
