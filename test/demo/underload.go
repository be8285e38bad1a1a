// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// clients is how many connections a load has.
const clients = 8

func (s *story) newLoad(ctx context.Context) *load {
	return newLoad(ctx, s.client, shopVIP, request{host: shopHost, path: "/"}, clients)
}

// rollingRestart restarts every server of the shop, one after the other, under load.
func (s *story) rollingRestart(ctx context.Context) (err error) {
	s.title("A rolling restart of the four servers, under load: DRAINING in EDS, SIGTERM, a new process, HEALTHY")
	l := s.newLoad(ctx)
	defer l.end()
	restarts := make([]restart, len(s.servers))
	for i, e := range s.servers {
		if err := s.restart(ctx, l, e, &s.shop.Clusters[i/2].Endpoints[i%2], &restarts[i]); err != nil {
			return errors.Join(err, l.error())
		}
	}
	if err := pause(ctx, 100*time.Millisecond); err != nil {
		return err
	}
	l.end()
	rows := [][]string{{"SERVER", "DRAINING AFTER", "PROCESS", "HEALTHY AFTER", "REQUESTS, BEFORE", "WHILE DRAINING", "SINCE"}}
	stray := 0
	for i, r := range restarts {
		name := s.servers[i].pod.Name
		during := l.between(name, r.drained, r.back)
		stray += during
		rows = append(rows, []string{
			name, r.draining.Round(time.Millisecond).String(), fmt.Sprintf("%d, then %d", r.old, r.new), r.healthy.Round(time.Millisecond).String(),
			strconv.Itoa(l.between(name, -1, r.drained)), strconv.Itoa(during), strconv.Itoa(l.between(name, r.back, l.ended)),
		})
	}
	s.table(rows...)
	s.printf("  %s", l)
	s.claim(stray == 0, "no request went to a server that was draining, and each process ended by itself with status 0")
	s.claim(len(l.failed) == 0 && len(l.samples) > 0, "%d requests over %d kept-alive connections meanwhile, %d failed", len(l.samples), clients, len(l.failed))
	s.claim(l.closed == 0, "and none of the clients' connections was closed")
	return nil
}

// restart is how a restart went.
type restart struct {
	draining, healthy time.Duration // how long it took until that was in the kernel
	drained, back     time.Duration // when, since the load began: DRAINING was in the kernel, HEALTHY was asked for
	old, new          int           // processes
}

// restart restarts a server with care.
func (s *story) restart(ctx context.Context, l *load, e *server, at *endpoint, r *restart) (err error) {
	name := e.pod.Name
	mark := func(health string) (time.Duration, error) {
		at.Health = health
		s.shop.Endpoints++
		return s.publish(ctx, name+" to be "+health, s.shop.write)
	}
	// All connections are in use, and the server too.
	if err := errors.Join(l.settled(ctx), l.more(ctx, name)); err != nil {
		return err
	}
	if r.draining, err = mark(draining); err != nil {
		return err
	}
	r.drained = time.Since(l.begun)
	s.working("restarting %s", name)
	if err := l.settled(ctx); err != nil {
		return err
	}
	r.old = e.Process.Process.Pid
	if err := e.stop(ctx); err != nil {
		return err
	}
	if err := e.start(ctx); err != nil {
		return err
	}
	r.new = e.Process.Process.Pid
	r.back = time.Since(l.begun)
	if r.healthy, err = mark(healthy); err != nil {
		return err
	}
	return l.more(ctx, name)
}

// routeChanges moves the shop from v1 to v2 by three changes of its routes, under load.
func (s *story) routeChanges(ctx context.Context) error {
	s.title("Routes that change under load, and a kill -9 of the helper: v2 gets 10 %%, 50 %%, 90 %%, then all")
	l := s.newLoad(ctx)
	defer l.end()
	var last time.Duration // since the load began
	for i, w := range [][2]int{{50, 50}, {10, 90}, {0, 100}} {
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return err
		}
		if i == 1 {
			s.helper.Kill9()
			s.working("starting the helper")
			var err error
			if s.helper, err = s.n.StartHelper(ctx, "--xds-dir", s.xds); err != nil {
				return err
			}
		}
		s.shop.Weights = w
		s.shop.Routes++
		if _, err := s.publish(ctx, fmt.Sprintf("v1 %d %%, v2 %d %%", w[0], w[1]), s.shop.write); err != nil {
			return errors.Join(err, l.error())
		}
		last = time.Since(l.begun)
	}
	if err := pause(ctx, 300*time.Millisecond); err != nil {
		return err
	}
	l.end()

	shares, after, stray := l.shares("v2", 60, last)
	s.printf("  v2's share of the answers  %s  over %s", spark(shares), l.ended.Round(100*time.Millisecond))
	s.printf("  %s", l)
	s.claim(len(l.failed) == 0 && len(l.samples) > 0, "%d requests over %d kept-alive connections, 3 changes and a helper killed, %d failed", len(l.samples), clients, len(l.failed))
	s.claim(l.closed == 0, "and none of the clients' connections was closed")
	s.claim(after > 0 && stray == 0, "all %d requests that were made after the last change was in the kernel were answered by v2", after)
	return nil
}

// pause lets the load run.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
