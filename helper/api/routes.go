// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"strings"

	apiv1 "kmesh/helper/api/v1"
	"kmesh/helper/mesh"
	"kmesh/helper/publish"
)

// RoutesOf shows published routes, in their order; service is a name, or empty for
// all.
func RoutesOf(uses []publish.RouteUse, service string) *apiv1.RoutesResponse {
	out := &apiv1.RoutesResponse{}
	for i := range uses {
		u := &uses[i]
		if service != "" && u.Service != service {
			continue
		}
		out.Routes = append(out.Routes, &apiv1.Route{
			Scope: u.Scope, Service: u.Service, VirtualHost: u.VirtualHost.Name, Domains: u.VirtualHost.Domains,
			Name: u.Name, Match: matchText(u.Route().Match), Action: actionText(u.Route()), Requests: u.Requests,
		})
	}
	return out
}

var pathWords = map[mesh.PathKind]string{
	mesh.PathPrefix: "prefix", mesh.PathExact: "exact", mesh.PathSegmentPrefix: "segments", mesh.PathRegex: "regex",
}

// matchText names what is tested; kmeshctl explain says how a request fares.
func matchText(m mesh.RouteMatch) string {
	parts := []string{pathWords[m.Path.Kind] + " " + m.Path.Value}
	if m.Path.Kind == mesh.PathPrefix && (m.Path.Value == "" || m.Path.Value == "/") {
		parts = []string{"every path"}
	}
	for _, h := range m.Headers {
		parts = append(parts, "header "+h.Name)
	}
	for _, q := range m.Query {
		parts = append(parts, "parameter "+q.Name)
	}
	if m.Fraction != nil {
		parts = append(parts, fractionText(*m.Fraction))
	}
	return strings.Join(parts, ", ")
}

func actionText(r *mesh.Route) string {
	var parts []string
	if r.Abort != nil {
		parts = append(parts, fmt.Sprintf("abort %d for %s", r.Abort.Status, fractionText(r.Abort.Fraction)))
	}
	switch {
	case r.Redirect != nil:
		parts = append(parts, fmt.Sprintf("redirect %d", r.Redirect.Status))
	case r.Direct != nil:
		parts = append(parts, fmt.Sprintf("answer %d", r.Direct.Status))
	case r.Unsupported:
		parts = append(parts, "answer 503: not supported")
	case len(r.Clusters) == 1:
		parts = append(parts, r.Clusters[0].Cluster)
	default:
		for _, c := range r.Clusters {
			parts = append(parts, fmt.Sprintf("%s (%d)", c.Cluster, c.Weight))
		}
	}
	return strings.Join(parts, ", ")
}

func fractionText(f mesh.Fraction) string {
	return fmt.Sprintf("%g%%", 100*float64(f.Numerator)/float64(f.Denominator))
}
