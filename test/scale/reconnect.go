// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

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
		if _, ok := b.watch.came(to, b.copies()); !ok {
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
