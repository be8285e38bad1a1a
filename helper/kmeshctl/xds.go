// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
)

func xdsCommand(opts *options, stdout io.Writer) *cobra.Command {
	var source, typ string
	var unsettled bool
	cmd := &cobra.Command{
		Use: "xds", Short: "Show every resource of the sources: as the server has answered for it, and as it is used", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askHelper(cmd.Context(), opts, stdout, func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.XdsResponse, error) {
				answer, err := c.Xds(ctx, &apiv1.XdsRequest{Source: source}, grpc.MaxCallRecvMsgSize(maxAnswer))
				if err != nil {
					return nil, err
				}
				for _, s := range answer.GetSources() {
					s.Resources = selected(s.GetResources(), typ, unsettled)
				}
				return answer, nil
			}, xdsTable)
		},
	}
	cmd.Flags().StringVar(&source, "source", "", `one source: a scope's name, as status has it, or "workloads"`)
	cmd.Flags().StringVar(&typ, "type", "", `one type: "Listener", "Cluster", "ClusterLoadAssignment", "RouteConfiguration", "Address", "Authorization"`)
	cmd.Flags().BoolVar(&unsettled, "unsettled", false, "only what is not accepted, or not in the kernel's tables")
	return cmd
}

// selected are the resources that were asked for.
func selected(all []*apiv1.XdsResource, typ string, unsettled bool) []*apiv1.XdsResource {
	var out []*apiv1.XdsResource
	for _, r := range all {
		if typ != "" && !strings.EqualFold(r.GetType(), typ) {
			continue
		}
		settled := (r.GetState() == "" || r.GetState() == "ACKED") && (r.GetUse() == "live" || r.GetUse() == "unused")
		if !unsettled || !settled {
			out = append(out, r)
		}
	}
	return out
}

func xdsTable(w io.Writer, x *apiv1.XdsResponse) error {
	for i, s := range x.GetSources() {
		t := newTable(w)
		if i > 0 {
			t.blank()
		}
		name := s.GetName()
		if name == "" {
			name = "(default)"
		}
		t.row("SOURCE", name)
		t.row("XDS", xdsLine(s.GetXds()))
		t.row("GENERATION", number(s.GetGeneration()))
		if err := t.flush(); err != nil {
			return err
		}
		if len(s.GetResources()) == 0 {
			continue
		}
		t = newTable(w)
		t.row("TYPE", "NAME", "STATE", "VERSION", "USE", "SINCE", "WHY")
		for _, r := range s.GetResources() {
			version, since, why := r.GetVersion(), "", r.GetLastError()
			if r.GetRejectedVersion() != "" {
				version += fmt.Sprintf(" (rejected: %s)", r.GetRejectedVersion())
			}
			if at := r.GetSinceUnixSeconds(); at != 0 {
				since = unix(at)
			}
			t.row(r.GetType(), r.GetName(), orDash(r.GetState()), orDash(version), orDash(r.GetUse()), orDash(since), orDash(why))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}
