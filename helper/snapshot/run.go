// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"kmesh/helper/mesh"
	"kmesh/helper/xds"
)

// Waits between attempts to publish a snapshot that could not be.
const (
	retryBase = 100 * time.Millisecond
	retryMax  = 5 * time.Second
)

// holdNames is the longest wait for names to be resolved where a problem of the
// resources would be waited for without end: a name may be nobody's to repair.
const holdNames = 30 * time.Second

// hold is the wait for the first snapshot.
type hold struct {
	since  time.Time     // when it could have been made, but for its problems
	limit  time.Duration // the longest that it takes, from then; 0: no limit
	reason string
}

// Run builds snapshots and publishes them, one at a time, until ctx ends. The
// first change is published at once; what follows is gathered. A snapshot that
// could not be published is tried again until it is, or a newer one replaces it.
func (s *Store) Run(ctx context.Context, publish func(context.Context, *mesh.Snapshot) error) error {
	var pending *mesh.Snapshot
	wait := retryBase
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-again.C:
		}
		snap, recheck := s.step()
		if snap != nil {
			pending, wait = snap, retryBase
		}
		again.Reset(recheck)
		if pending != nil {
			err := publish(ctx, pending)
			s.result(pending, err)
			if err == nil {
				pending = nil
			} else {
				if ctx.Err() != nil {
					return nil
				}
				s.log.Error("snapshot not published, trying again", "version", pending.Version, "err", err, "in", wait)
				again.Reset(wait)
				wait = min(2*wait, retryMax)
			}
		}
		select { // what follows now is gathered
		case <-ctx.Done():
			return nil
		case <-time.After(s.opts.Gather):
		}
	}
}

// Build builds until nothing changes any more, and returns the last snapshot; nil
// while there can be none (Status says why). It is for a store that Run does not
// run.
func (s *Store) Build() *mesh.Snapshot {
	for {
		if snap, _ := s.step(); snap == nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.build.last
}

// step builds once; it also says when to look again without being told.
func (s *Store) step() (*mesh.Snapshot, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.next()
	if s.build.last == nil && !s.hold.since.IsZero() && s.hold.limit > 0 {
		return snap, max(time.Until(s.hold.since.Add(s.hold.limit)), 0) + time.Millisecond
	}
	return snap, time.Hour
}

// result records what became of a snapshot.
func (s *Store) result(snap *mesh.Snapshot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publishError = ""
	if err != nil {
		s.publishError = err.Error()
		return
	}
	s.published = snap.Version
}

// holdReason says why there can be no first snapshot yet; "" if there can.
func (s *Store) holdReason() string {
	var names []string
	for _, t := range []string{xds.ListenerType, xds.ClusterType} {
		if !s.seen[t] {
			names = append(names, t[strings.LastIndexByte(t, '.')+1:])
		}
	}
	if len(names) > 0 {
		return "no word yet about resources of type " + strings.Join(names, " and ")
	}
	if n := len(s.build.warming); n > 0 {
		return fmt.Sprintf("%d listeners wait for endpoints, routes or names, %q among them", n, s.build.warming[0])
	}
	problems := s.resourceProblems()
	limit := max(s.opts.HoldFirst, 0)
	// A directory that is not mounted yet looks like a mesh of nothing.
	empty := len(s.listeners)+len(s.clusters) == 0
	if len(problems) == 0 && !empty {
		problems = s.nameProblems()
		if s.opts.HoldFirst < 0 {
			limit = holdNames
		}
	}
	if s.opts.HoldFirst == 0 || len(problems) == 0 && !empty {
		return ""
	}
	if s.hold.since.IsZero() {
		s.hold.since = time.Now()
	}
	s.hold.limit = limit
	if limit > 0 && time.Since(s.hold.since) >= limit {
		return ""
	}
	if empty {
		return "the source has neither listeners nor clusters, and the state of an earlier run is serving: give it some, or run 'kmesh-helper uninstall'"
	}
	return fmt.Sprintf("%d problems, and the state of an earlier run is serving: %v", len(problems), problems[0])
}
