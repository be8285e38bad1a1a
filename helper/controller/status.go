// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/helper/api"
	apiv1 "kmesh/helper/api/v1"
)

// Status implements api.Source and probe.Status.
func (c *Controller) Status(ctx context.Context) (*apiv1.StatusResponse, error) {
	state, err := c.rt.State()
	if err != nil {
		return nil, err
	}
	fills, err := c.pub.Fills(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	var workloads *api.Workloads
	if c.workloads != nil {
		enrolled := make(map[string]bool)
		for _, p := range pods.GetPods() {
			enrolled[p.GetNamespace()+"/"+p.GetName()] = true
		}
		workloads = c.workloads.status(enrolled)
	}
	return api.StatusOf(api.Node{
		Version: c.opts.Version,
		Started: c.started,
		NodeID:  c.opts.NodeID,
		BPFFS:   c.opts.BPFFS,
		State:   state,
		XdsKind: c.kind(),
		Scopes:  c.scopes.Status(),
		Fills:   fills,
		Pods:    pods,

		Kubernetes: c.kubernetes(),
		Workloads:  workloads,

		RefusesEnrolment: c.opts.Unenforced == RefuseEnrolment,
	}), nil
}

// kubernetes tells of the API server, if one is followed, and what will become of pods.
func (c *Controller) kubernetes() *apiv1.Kubernetes {
	if c.cluster == nil {
		return nil
	}
	st := c.cluster.Status()
	out := &apiv1.Kubernetes{Server: st.Server, Synced: st.Synced, Problem: st.Problem, SinceUnixSeconds: st.Since.Unix()}
	for _, p := range c.keeper.Plans() {
		out.Plans = append(out.Plans, &apiv1.PodPlan{Namespace: p.Namespace, Name: p.Name, What: p.What, Policies: p.Policies})
	}
	return out
}

// Pods implements api.Source.
func (c *Controller) Pods(ctx context.Context) (*apiv1.PodsResponse, error) {
	pods, err := c.node.List(ctx)
	if err != nil {
		return nil, err
	}
	records, err := c.node.Records(ctx)
	if err != nil {
		return nil, err
	}
	return api.PodsOf(pods, records, c.pub.ScopeIDs()), nil
}

// Services implements api.Source.
func (c *Controller) Services(ctx context.Context) (*apiv1.ServicesResponse, error) {
	snap := c.last.Load()
	if _, live := c.pub.Live(); snap == nil && live {
		return nil, status.Error(codes.Unavailable, "the configuration is held back (kmeshctl status says why); what an earlier helper published serves on, and is not listed")
	}
	counters, err := c.pub.Counters(ctx)
	if err != nil {
		return nil, err
	}
	return api.ServicesOf(snap, counters), nil
}
