// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"

	apiv1 "kmesh/helper/api/v1"
)

// parsePod reads NAMESPACE/NAME.
func parsePod(s string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", usageError{fmt.Errorf("%q is no pod: give NAMESPACE/NAME", s)}
	}
	return namespace, name, nil
}

// shares names the clusters of a draw by weight.
func shares(list []*apiv1.ClusterShare) string {
	var out []string
	for _, c := range list {
		text := c.Name + " " + trimmed(100*c.Share) + "%"
		switch c.Kind {
		case "endpoints":
		case "":
			text += " (gone)"
		default:
			text += " (" + c.Kind + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// explainInstalled asks the helper what the kernel's tables do with a request.
func explainInstalled(ctx context.Context, opts *options, stdout io.Writer, pod string, req *request) error {
	in := &apiv1.ExplainRequest{Port: uint32(req.port), Head: []byte(req.head)}
	var err error
	if in.Namespace, in.Name, err = parsePod(pod); err != nil {
		return err
	}
	if req.addr.IsValid() {
		in.Address = req.addr.String()
	}
	return askHelper(ctx, opts, stdout, func(ctx context.Context, c apiv1.KmeshClient) (*apiv1.ExplainResponse, error) {
		return c.Explain(ctx, in, grpc.MaxCallRecvMsgSize(maxAnswer))
	}, explainTable)
}

// maxShadowed is how many of the routes that come too late are named.
const maxShadowed = 5

func explainTable(w io.Writer, r *apiv1.ExplainResponse) error {
	t := newTable(w)
	t.row("request", r.Request)
	if r.Scope != "" {
		t.row("scope", r.Scope)
	}
	if r.Service != "" {
		t.row("service", r.Service, r.Frontend)
	}
	if r.Http {
		switch guess := shares(r.Guess); {
		case r.Local:
			t.row("connection", "the program answers the SYN, and connects when the request is known")
		case guess != "":
			t.row("connection", "opened at once to "+guess)
		}
	}
	if r.Domain != "" {
		t.row("virtual host", fmt.Sprintf("%d, %d routes", r.VirtualHost, r.NRoutes), "domain "+r.Domain)
	}
	for _, one := range r.Outcomes {
		if len(r.Outcomes) > 1 {
			t.blank()
			t.row("share", trimmed(100*one.Share)+" % of such requests")
		}
		if one.Index >= 0 {
			t.row("route", routeName(int(one.Index), one.Route))
		}
		t.row("action", one.Action)
		for _, c := range one.Clusters {
			kind := strings.TrimSpace(c.Kind + " " + c.Policy)
			t.row("cluster", c.Name, trimmed(100*c.Share)+" %", orDash(kind))
			for _, e := range c.Endpoints {
				t.row("endpoint", e)
			}
			if c.Kind == "endpoints" && len(c.Endpoints) == 0 {
				t.row("endpoint", "none may be chosen: answered 503")
			}
		}
	}
	if n := len(r.Shadowed); n > 0 {
		text := strings.Join(r.Shadowed[:min(n, maxShadowed)], ", ")
		if n > maxShadowed {
			text += fmt.Sprintf(" and %d others", n-maxShadowed)
		}
		t.row("match too, later", text)
	}
	return t.flush()
}
