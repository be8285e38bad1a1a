// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
)

// flowsCommand asks for the connections whose requests are routed.
func flowsCommand(opts *options, stdout io.Writer) *cobra.Command {
	var pod string
	cmd := question(opts, stdout, "flows", "Show the open connections whose requests are routed, and their endpoints",
		func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.FlowsResponse, error) {
			return c.Flows(ctx, &apiv1.FlowsRequest{Pod: pod}, grpc.MaxCallRecvMsgSize(maxAnswer))
		}, flowsTable)
	cmd.Flags().StringVar(&pod, "pod", "", "only of the pod `NAMESPACE/NAME`")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !cmd.Flags().Changed("pod") {
			return nil
		}
		_, _, err := parsePod(pod)
		return err
	}
	return cmd
}

// flowsTable has one row for each connection, and below it one for each endpoint that
// it has a leg to; requests go to the one with a star.
func flowsTable(w io.Writer, r *apiv1.FlowsResponse) error {
	if len(r.Flows) == 0 {
		_, err := fmt.Fprintln(w, "no connection to an HTTP service is open")
		return err
	}
	t := newTable(w)
	t.row("FLOW", "POD", "CLIENT / ENDPOINT", "VIP / LEG PORT", "STATE", "SERVICE", "CLUSTER", "ROUTE", "PIN", "REQUESTS", "REBINDS", "IDLE", "DC", "DS")
	for _, f := range r.Flows {
		pod := podName(f.Namespace, f.Name)
		if f.Name == "" {
			pod = "netns " + number(f.NetnsCookie)
		}
		service := f.Service
		if f.Scope != "" {
			service = f.Scope + " " + service
		}
		t.row(f.Id, pod, f.Client, f.Vip, f.State, orDash(service), orDash(f.Cluster), orDash(f.Route), orDash(f.Pin),
			number(f.Requests), number(f.Rebinds), (time.Duration(f.IdleMs) * time.Millisecond).String(), "", "")
		for _, l := range f.Legs {
			mark := "  "
			if l.Current {
				mark = "* "
			}
			t.row("", "", mark+l.Endpoint, number(l.Port), l.State, "", orDash(l.Cluster), "", "", number(l.Requests), "", "", number(l.Dc), number(l.Ds))
		}
	}
	return t.flush()
}
