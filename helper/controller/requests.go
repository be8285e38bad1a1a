// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"
)

// forget deletes what was counted of requests of pods that are gone.
func (c *Controller) forget(ctx context.Context) error {
	tick := time.NewTicker(recountEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, err := c.pub.ForgetRequests(ctx, func(ctx context.Context) (map[uint64]bool, error) {
			pods, err := c.Pods(ctx)
			alive := make(map[uint64]bool)
			for _, p := range pods.GetPods() {
				alive[p.NetnsCookie] = true
			}
			return alive, err
		})
		if err != nil && ctx.Err() == nil {
			c.opts.Log.Error("counters of requests of pods that are gone stay, trying again later", "err", err)
		}
	}
}
