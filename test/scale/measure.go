// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"kmesh/test/node"
)

// nodeID is what the helper calls itself.
const nodeID = "node-1"

// viewOf names the view of a pod, and of who asks for it: with one scope it is everybody's.
func viewOf(n int) string { return fmt.Sprint("view-", n) }

func (o options) viewOf(r *discoveryv3.DeltaDiscoveryRequest) string {
	if o.scopes == 1 {
		return viewOf(0)
	}
	return r.GetNode().GetMetadata().GetFields()["LABELS"].GetStructValue().GetFields()[tier].GetStringValue()
}

// statusOf is what a view's steady service answers at statusPath after n changes: views are the same but for it.
func statusOf(view, n int) int { return 400 + (view+n)%100 }

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
	var views []string
	for v := range b.opts.scopes {
		views = append(views, viewOf(v))
	}
	b.server = newServer(b.opts.viewOf, views)
	clusters, assignments, routes := b.world.clusters(), b.world.assignments(), b.world.routes(statusOf(0, 0))
	for v, name := range views {
		b.server.load(name, clusters, assignments, listener, withStatus(routes, statusOf(v, 0)))
	}
	if err := b.server.start(b.node.Do); err != nil {
		return err
	}
	b.args = []string{"--xds-server", adsAddr, "--node-id", nodeID}
	if b.opts.scopes > 1 {
		if b.api, err = serveAPI(b.node.Do); err != nil {
			return err
		}
		config := filepath.Join(b.node.Dir, "kubeconfig")
		if err := b.api.kubeconfig(config); err != nil {
			return err
		}
		b.args = append(b.args, "--xds-scopes", "pods", "--kubeconfig", config, "--node-name", nodeID)
	}
	began, err := b.launch(ctx)
	if err != nil {
		return err
	}
	at, err := b.live(ctx)
	if err != nil {
		return err
	}
	if b.opts.scopes == 1 {
		r.add("start of the helper to a configuration in the maps", at.Sub(began), 0)
		r.add("of it: after the server has handed over its last response (translate, compile, cold publish)", at.Sub(b.server.lastSent()), 2*time.Second)
	}
	if err := b.ready(ctx); err != nil {
		return err
	}
	r.add("start of the helper to /readyz", time.Since(began), 0)
	if err := r.enrol(ctx, b); err != nil {
		return fmt.Errorf("%w; the helper: %s", err, b.complaints())
	}
	if err := r.cpu(b, usage{}, 1); err != nil {
		return err
	}
	r.addBytes("sent to it", b.server.sent.Load(), 0)
	held, err := b.watch.held()
	if err != nil {
		return err
	}
	if want := (b.opts.services - 1) * perService; len(held) != want {
		return fmt.Errorf("%d endpoints are in the maps: want %d", len(held), want)
	}
	return r.memory(b)
}

// enrol makes a client for each view, and waits until each is led by its own.
func (r *result) enrol(ctx context.Context, b *bed) error {
	for v := range b.opts.scopes {
		p, err := b.node.AddPod(ctx, node.PodSpec{Name: fmt.Sprint("client-", v), Annotations: node.Enrolled()})
		if err != nil {
			return err
		}
		b.pods = append(b.pods, p)
	}
	b.client = b.pods[0]
	began := time.Now()
	if b.api != nil {
		for v, p := range b.pods {
			b.api.add(p, viewOf(v))
		}
	}
	if err := b.led(ctx, 0); err != nil {
		return errors.Join(err, r.memory(b))
	}
	if b.api != nil {
		at := time.Now()
		r.add("pods known at the API server to all of them led by their own view", at.Sub(began), 0)
		r.add("of it: after the server has handed over its last response", at.Sub(b.server.lastSent()), 2*time.Second)
	}
	return nil
}

// led waits until every pod is led by its view, after n changes of its route.
func (b *bed) led(ctx context.Context, n int) error {
	for v, p := range b.pods {
		if err := until(ctx, fmt.Sprintf("pod %s led by its view", p.Name), 5*time.Millisecond, func() error {
			want := statusOf(v, n)
			got, _, err := b.ask(ctx, p, steady, statusPath)
			if err == nil && got != want {
				err = fmt.Errorf("status %d, want %d", got, want)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
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
			if at, ok = b.watch.came(to, b.copies()); !ok {
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

// routeChanges has one virtual host of each view answer a path with another status.
func (r *result) routeChanges(ctx context.Context, b *bed) error {
	rc := b.world.routes(0)
	since, err := b.usage()
	if err != nil {
		return err
	}
	var changes []change
	for n := 1; n <= r.opts.singles; n++ {
		if err := alone(ctx); err != nil {
			return err
		}
		before, err := b.watch.word()
		if err != nil {
			return err
		}
		next := make([]resource, len(b.pods))
		for v := range next {
			next[v] = withStatus(rc, statusOf(v, n))
		}
		began := time.Now()
		for v, to := range next {
			if err := b.server.cache(viewOf(v), resourcev3.RouteType).UpdateResource(routesName, to); err != nil {
				return err
			}
		}
		at, err := b.published(ctx, before)
		if err == nil {
			err = b.led(ctx, n)
		}
		if err != nil {
			return fmt.Errorf("route change %d: %w", n, err)
		}
		if len(b.pods) > 1 { // there may have been several publications: the last request tells
			at = time.Now()
		}
		changes = append(changes, change{at.Sub(began), at.Sub(b.server.lastSent())})
	}
	r.addChanges("one route change", changes, 100*time.Millisecond)
	return r.cpu(b, since, len(changes))
}

// published waits for a generation after before, and returns when it was there.
func (b *bed) published(ctx context.Context, before stateWord) (at time.Time, err error) {
	err = until(ctx, "a publication", look, func() error {
		now, err := b.watch.word()
		if err == nil && now.generation == before.generation {
			err = errors.New("the generation is the same")
		}
		at = time.Now()
		return err
	})
	return at, err
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

// copies is how often an endpoint is in the maps: once for each view that has it.
func (b *bed) copies() int { return len(b.pods) }

// update gives every view another version of a resource.
func (b *bed) update(typeURL, name string, to resource) error {
	for _, v := range b.server.views {
		if err := b.server.cache(v, typeURL).UpdateResource(name, to); err != nil {
			return err
		}
	}
	return nil
}
