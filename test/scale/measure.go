// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"kmesh/test/node"
)

// nodeID is what the helper calls itself.
const nodeID = "node-1"

// the one view of a run with one scope.
const oneView = "all"

// measure makes a bed and measures everything on it.
func measure(ctx context.Context, o options) *result {
	r := &result{opts: o, began: time.Now()}
	r.err = r.measure(ctx)
	r.elapsed = time.Since(r.began)
	return r
}

func (r *result) measure(ctx context.Context) (err error) {
	b, err := build(ctx, r.opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, step := range []func(context.Context, *bed) error{r.cold, r.endpointChanges, r.routeChanges, r.stream, r.cut, r.restart} {
		if err := step(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// cold starts the helper on a node that has nothing.
func (r *result) cold(ctx context.Context, b *bed) error {
	listener, err := b.world.listener()
	if err != nil {
		return err
	}
	b.server = newServer(func(*discoveryv3.DeltaDiscoveryRequest) string { return oneView }, []string{oneView})
	b.server.load(oneView, b.world.clusters(), b.world.assignments(), listener, b.world.routes(http.StatusTeapot))
	if err := b.server.start(b.node.Do); err != nil {
		return err
	}
	b.args = []string{"--xds-server", adsAddr, "--node-id", nodeID}
	began, err := b.launch(ctx)
	if err != nil {
		return err
	}
	at, err := b.live(ctx)
	if err != nil {
		return err
	}
	r.add("start of the helper to a configuration in the maps", at.Sub(began), 0)
	r.add("of it: after the server has handed over its last response (translate, compile, cold publish)", at.Sub(b.server.lastSent()), 2*time.Second)
	if err := b.ready(ctx); err != nil {
		return err
	}
	r.add("start of the helper to /readyz", time.Since(began), 0)
	if err := r.cpu(b, usage{}, 1); err != nil {
		return err
	}
	r.addBytes("sent to it", b.server.sent.Load(), 0)
	if b.client, err = b.node.AddPod(ctx, node.PodSpec{Name: "client", Annotations: node.Enrolled()}); err != nil {
		return err
	}
	for path, want := range map[string]int{"/": http.StatusOK, statusPath: http.StatusTeapot} {
		if status, _, err := b.ask(ctx, b.client, steady, path); err != nil || status != want {
			return fmt.Errorf("a first request, for %s: status %d, want %d: %w", path, status, want, err)
		}
	}
	held, err := b.watch.held()
	if err != nil {
		return err
	}
	if want := (b.opts.services - 1) * perService; len(held) != want {
		return fmt.Errorf("%d endpoints are in the maps: want %d", len(held), want)
	}
	return r.memory(b)
}

// memory of the helper, when it has settled, and of the maps.
func (r *result) memory(b *bed) error {
	u, err := b.usage()
	if err != nil {
		return err
	}
	r.addBytes("helper's resident memory (VmRSS)", u.rss, 150<<20)
	r.addBytes("of it the helper's own: without what it has mapped of the maps and of its program (RssAnon)", u.own, 0)
	r.addBytes("the most that it was (VmHWM)", u.peak, 0)
	total, each, err := mapBytes(b.node.BPFFS)
	if err != nil {
		return err
	}
	r.addBytes("kernel memory of all maps", total, 0)
	r.note("largest maps: %s", largest(each))
	return nil
}

// change is one change and how long it took to be in the maps: from the moment at which the server was told, and from
// the one at which the server handed the response over to be sent.
type change struct{ told, sent time.Duration }

// alone lets the time pass in which changes are gathered with the last one: it is about the first of several.
func alone(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(150 * time.Millisecond):
		return nil
	}
}

// endpointChanges moves a service's only endpoint from one server to the next.
func (r *result) endpointChanges(ctx context.Context, b *bed) error {
	look, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- b.watch.run(look) }()
	before, err := b.usage()
	if err != nil {
		return err
	}
	var changes []change
	for n := range r.opts.singles {
		if err := alone(ctx); err != nil {
			return err
		}
		to := netip.AddrPortFrom(b.world.server, uint16(basePort+(n+1)%perService))
		b.watch.forget(to)
		began := time.Now()
		if err := b.update(resourcev3.EndpointType, clusterOf(moving), assignment(moving, []netip.AddrPort{to})); err != nil {
			return err
		}
		var at time.Time
		if err := until(ctx, "an endpoint that changed", time.Millisecond, func() error {
			var ok bool
			if at, ok = b.watch.came(to, 1); !ok {
				return errors.New("it is not in the maps")
			}
			return nil
		}); err != nil {
			return err
		}
		changes = append(changes, change{at.Sub(began), at.Sub(b.server.lastSent())})
		if status, body, err := b.ask(ctx, b.client, moving, "/"); err != nil || status != http.StatusOK || body != strconv.Itoa(int(to.Port())) {
			return fmt.Errorf("a request after endpoint change %d: status %d from %q, want it from %s: %w", n, status, body, to, err)
		}
	}
	stop()
	r.addChanges("one endpoint change", changes, 10*time.Millisecond)
	return errors.Join(<-watched, r.cpu(b, before, len(changes)))
}

// routeChanges has one virtual host answer a path with another status.
func (r *result) routeChanges(ctx context.Context, b *bed) error {
	rc := b.world.routes(http.StatusTeapot)
	since, err := b.usage()
	if err != nil {
		return err
	}
	var changes []change
	for n := range r.opts.singles {
		if err := alone(ctx); err != nil {
			return err
		}
		status := 400 + n%100
		before, err := b.watch.word()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := b.update(resourcev3.RouteType, routesName, withStatus(rc, status)); err != nil {
			return err
		}
		var at time.Time
		if err := until(ctx, "a route that changed", look, func() error {
			now, err := b.watch.word()
			if err == nil && now.generation == before.generation {
				err = errors.New("no generation with it has been published")
			}
			at = time.Now()
			return err
		}); err != nil {
			return err
		}
		changes = append(changes, change{at.Sub(began), at.Sub(b.server.lastSent())})
		got, _, err := b.ask(ctx, b.client, steady, statusPath)
		if err != nil || got != status {
			return fmt.Errorf("a request after route change %d: status %d, want %d: %w", n, got, status, err)
		}
	}
	r.addChanges("one route change", changes, 100*time.Millisecond)
	return r.cpu(b, since, len(changes))
}

// cpu enters what the helper used for each of n things, and how long its threads waited for a CPU.
func (r *result) cpu(b *bed, since usage, n int) error {
	now, err := b.usage()
	if err != nil {
		return err
	}
	r.note("helper's CPU time for each, and how long its threads waited for a CPU: %s, %s",
		ms((now.cpu-since.cpu)/time.Duration(n)), ms((now.waited-since.waited)/time.Duration(n)))
	return nil
}

// update gives every view another version of a resource.
func (b *bed) update(typeURL, name string, to resource) error {
	for _, v := range b.server.views {
		if err := b.server.cache(v, typeURL).UpdateResource(name, to); err != nil {
			return err
		}
	}
	return nil
}

// stream makes changes at a rate, each of another service, and looks for every one of them.
func (r *result) stream(ctx context.Context, b *bed) error {
	traffic := b.traffic(ctx)
	defer traffic.stop()
	look, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- b.watch.run(look) }()
	before, err := b.usage()
	if err != nil {
		return err
	}
	began := time.Now()
	total := r.opts.changes()
	told := make([]time.Time, total)
	for n := range total {
		if wait := time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(r.opts.rate))); wait > 0 {
			select { // this is the rate
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
		i := firstFar + n
		at := b.world.endpoints(i)
		at[0] = changedAddr(n)
		told[n] = time.Now()
		if err := b.update(resourcev3.EndpointType, clusterOf(i), assignment(i, at)); err != nil {
			return err
		}
	}
	making := time.Since(began)
	var changes []change
	for n := range total {
		var at time.Time
		if err := until(ctx, fmt.Sprintf("change %d of %d", n, total), time.Millisecond, func() error {
			var ok bool
			if at, ok = b.watch.came(changedAddr(n), 1); !ok {
				return errors.New("it is not in the maps")
			}
			return nil
		}); err != nil {
			return err
		}
		changes = append(changes, change{told: at.Sub(told[n])})
	}
	after, err := b.usage()
	if err != nil {
		return err
	}
	stop()
	if err := <-watched; err != nil {
		return err
	}
	sent, errs := traffic.end()
	r.add(fmt.Sprintf("%d changes at %d a second: made within", total, r.opts.rate), making, 0)
	last := changes[total-1].told
	r.addChanges("each of them", changes, 0)
	r.add("the last of them", last, 0)
	r.note("helper's CPU meanwhile: %.0f %% of one", 100*(after.cpu-before.cpu).Seconds()/making.Seconds())
	if err := r.cpu(b, before, total); err != nil {
		return err
	}
	r.addBytes("helper's resident memory after them", after.rss, 150<<20)
	r.addBytes("of it its own", after.own, 0)
	r.note("requests meanwhile: %d, failed: %d", sent, len(errs))
	if len(errs) > 0 {
		return fmt.Errorf("requests failed during changes: %w", errors.Join(errs...))
	}
	return r.lost(b)
}

// lost looks whether the maps hold what the changes left, and nothing else.
func (r *result) lost(b *bed) error {
	held, err := b.watch.held()
	if err != nil {
		return err
	}
	total := r.opts.changes()
	for n := range total {
		if held[changedAddr(n)] == 0 {
			return fmt.Errorf("change %d is lost: %s is not in the maps", n, changedAddr(n))
		}
		if old := farOf(firstFar+n, 0); held[old] != 0 {
			return fmt.Errorf("change %d: %s, which it replaced, is in the maps still", n, old)
		}
	}
	if want := (b.opts.services - 1) * perService; len(held) != want {
		return fmt.Errorf("%d endpoints are in the maps after all changes: want %d", len(held), want)
	}
	r.note("changes lost: 0 of %d", total)
	return nil
}

// follows makes a change and waits until it is in the maps.
func (b *bed) follows(ctx context.Context) error {
	look, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() { watched <- b.watch.run(look) }()
	b.moved++
	to := netip.AddrPortFrom(b.world.server.Prev(), uint16(basePort+b.moved))
	if err := b.update(resourcev3.EndpointType, clusterOf(moving), assignment(moving, []netip.AddrPort{to})); err != nil {
		return err
	}
	err := until(ctx, "a change after a reconnect", time.Millisecond, func() error {
		if _, ok := b.watch.came(to, 1); !ok {
			return errors.New("it is not in the maps")
		}
		return nil
	})
	stop()
	return errors.Join(err, <-watched)
}

// cut has the server close its connections.
func (r *result) cut(ctx context.Context, b *bed) error {
	traffic := b.traffic(ctx)
	defer traffic.stop()
	sent, began := b.server.sent.Load(), time.Now()
	b.server.cut()
	if err := b.follows(ctx); err != nil {
		return err
	}
	r.add("connection lost to a change that is followed", time.Since(began), 0)
	r.addBytes("sent to the helper for it", b.server.sent.Load()-sent, 0)
	return r.undisturbed(traffic)
}

// restart kills the helper and starts another.
func (r *result) restart(ctx context.Context, b *bed) error {
	traffic := b.traffic(ctx)
	defer traffic.stop()
	sent := b.server.sent.Load()
	b.helper.Kill9()
	began, err := b.launch(ctx)
	if err != nil {
		return err
	}
	if err := b.follows(ctx); err != nil {
		return err
	}
	r.add("helper killed and started to a change that is followed", time.Since(began), 0)
	r.addBytes("sent to the helper for it", b.server.sent.Load()-sent, 0)
	if err := b.ready(ctx); err != nil {
		return err
	}
	if err := r.cpu(b, usage{}, 1); err != nil {
		return err
	}
	u, err := b.usage()
	if err != nil {
		return err
	}
	r.addBytes("resident memory of the restarted helper", u.rss, 150<<20)
	r.addBytes("of it its own", u.own, 0)
	r.addBytes("the most that it was", u.peak, 0)
	if err := r.undisturbed(traffic); err != nil {
		return err
	}
	return b.helper.Stop(ctx)
}

func (r *result) undisturbed(t *traffic) error {
	sent, errs := t.end()
	r.note("requests meanwhile: %d, failed: %d", sent, len(errs))
	return errors.Join(errs...)
}
