// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/helper/api"
	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/scopes"
)

// Xds implements api.Source.
func (c *Controller) Xds(_ context.Context, req *apiv1.XdsRequest) (*apiv1.XdsResponse, error) {
	out := &apiv1.XdsResponse{}
	generation, _ := c.pub.Live()
	st := c.scopes.Status()
	all := st.Scopes
	if st.Default != nil {
		all = append([]scopes.ScopeStatus{*st.Default}, all...)
	}
	for _, s := range all {
		if req.GetSource() == "" || req.GetSource() == s.Name {
			out.Sources = append(out.Sources, api.XdsSourceOf(api.XdsSource{
				Name: s.Name, Kind: c.kind(), Xds: s.Xds, Disk: s.Disk, Asked: c.scopes.Resources(s.Key), Used: s.Config.Resources, Generation: generation,
			}))
		}
	}
	if w := c.workloads; w != nil && (req.GetSource() == "" || req.GetSource() == api.WorkloadsName) {
		disk := w.disk.Status()
		out.Sources = append(out.Sources, api.XdsSourceOf(api.XdsSource{
			Name: api.WorkloadsName, Kind: "server", Xds: w.source.Status(), Disk: &disk, Asked: w.source.Resources(), Used: w.store.Resources(), Generation: generation,
		}))
	}
	if len(out.Sources) == 0 && req.GetSource() != "" {
		return nil, status.Error(codes.NotFound, "there is no source called "+strconv.Quote(req.GetSource())+": kmeshctl status lists the scopes")
	}
	return out, nil
}

// kind is the sources', in a word.
func (c *Controller) kind() string {
	if c.opts.XDSDir != "" {
		return "directory"
	}
	return "server"
}
