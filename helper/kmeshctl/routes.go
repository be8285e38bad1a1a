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

// routesCommand asks for the routes of one HTTP service, or of all.
func routesCommand(opts *options, stdout io.Writer) *cobra.Command {
	var service string
	cmd := question(opts, stdout, "routes [SERVICE]", "Show the routes of HTTP services in their order, and the requests that each took",
		func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.RoutesResponse, error) {
			return c.Routes(ctx, &apiv1.RoutesRequest{Service: service}, grpc.MaxCallRecvMsgSize(maxAnswer))
		}, routesTable)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		service = args[0]
		return noArgs(cmd, args[1:])
	}
	return cmd
}

// routesTable has one row for each route, whole, so that grep finds what it needs.
func routesTable(w io.Writer, r *apiv1.RoutesResponse) error {
	if len(r.Routes) == 0 {
		_, err := fmt.Fprintln(w, "no routes: no such HTTP service is published (kmeshctl services lists those of plain TCP)")
		return err
	}
	t := newTable(w)
	t.row("SERVICE", "DOMAINS", "ROUTE", "MATCH", "ACTION", "REQUESTS")
	for _, route := range r.Routes {
		service := route.Service
		if route.Scope != "" {
			service = route.Scope + " " + service
		}
		// The name begins with the service's, which has a column of its own.
		name := strings.TrimPrefix(route.Name, route.Service+"|")
		t.row(service, strings.Join(route.Domains, " "), name, route.Match, route.Action, number(route.Requests))
	}
	return t.flush()
}
