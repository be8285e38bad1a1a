// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
	"kmesh/helper/api"
	apiv1 "kmesh/helper/api/v1"
)

// Flows implements api.Source.
func (c *Controller) Flows(ctx context.Context, req *apiv1.FlowsRequest) (*apiv1.FlowsResponse, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	now, err := bpf.FlowClock()
	if err != nil {
		return nil, err
	}
	return api.FlowsOf(c.pub.Flows(), pods, req.GetPod(), now), nil
}

// Routes implements api.Source.
func (c *Controller) Routes(ctx context.Context, req *apiv1.RoutesRequest) (*apiv1.RoutesResponse, error) {
	if _, live := c.pub.Live(); c.last.Load() == nil && live {
		return nil, status.Error(codes.Unavailable, "the configuration is held back (kmeshctl status says why); what an earlier helper published serves on, and is not listed")
	}
	uses, err := c.pub.RouteUses(ctx)
	if err != nil {
		return nil, err
	}
	return api.RoutesOf(uses, req.GetService()), nil
}
