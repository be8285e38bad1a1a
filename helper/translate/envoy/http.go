// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"kmesh/helper/mesh"
)

const typeHCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

// HTTPService is a service of a listener that has an HTTP connection manager. Its
// routes may be in another resource, so it becomes a mesh.Service by Join.
type HTTPService struct {
	service mesh.Service
	// RouteConfig is the name of the RouteConfiguration that it takes its routes
	// from, and Field the place that names it; both empty when the routes are in
	// the listener, or when this part of the listener is no HTTP.
	RouteConfig, Field string

	inline       *RouteConfig
	path         string // of inline
	fault        *faultFilter
	stripAnyPort bool
}

// Name is the service's name.
func (h *HTTPService) Name() string { return h.service.Name }

// faultFilter is the fault filter of a connection manager: what it does to routes
// that say nothing, under its name, by which routes speak about it.
type faultFilter struct {
	name  string
	abort *mesh.Abort
}

// Join makes the service from its part of the listener and its routes, which are
// nil unless RouteConfig names some.
func (h *HTTPService) Join(rc *RouteConfig) *mesh.Service {
	svc := h.service
	if h.RouteConfig == "" {
		rc = h.inline
	}
	if rc == nil {
		return &svc
	}
	svc.HTTP = rc.withFaults(h.fault)
	if h.stripAnyPort && !svc.HTTP.IgnorePort {
		http := *svc.HTTP
		http.IgnorePort = true
		svc.HTTP = &http
	}
	if len(svc.Clusters) == 0 {
		svc.Clusters = fallback(svc.HTTP)
	}
	return &svc
}

// fallback is where connections go that do not speak HTTP/1 when the listener has
// no filter chain for them: where the only, or the "*", virtual host sends every
// request that nothing else is said about. There may be no such place: then the
// answer is empty, rather than some other service's cluster.
func fallback(h *mesh.HTTP) []mesh.WeightedCluster {
	var vh *mesh.VirtualHost
	for _, v := range h.VirtualHosts {
		for _, d := range v.Domains {
			if d == "*" {
				vh = v
			}
		}
	}
	if vh == nil {
		if len(h.VirtualHosts) != 1 {
			return nil
		}
		vh = h.VirtualHosts[0]
	}
	for _, r := range vh.Routes {
		m := r.Match
		if m.Path.Kind == mesh.PathPrefix && (m.Path.Value == "" || m.Path.Value == "/") &&
			len(m.Headers) == 0 && len(m.Query) == 0 && m.Fraction == nil {
			return r.Clusters
		}
	}
	return nil
}

// manager reads a connection manager. The walk has given the verdicts of its
// fields; conditions among them keep the chain from being served.
func (r *report) manager(c *chain, cfg *hcmv3.HttpConnectionManager, path string) {
	h := &HTTPService{stripAnyPort: cfg.GetStripAnyHostPort()}
	c.http = h
	for i, f := range cfg.GetHttpFilters() {
		r.httpFilter(h, f, join(path, "http_filters["+strconv.Itoa(i)+"]"))
	}
	switch rs := cfg.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		h.RouteConfig = rs.Rds.GetRouteConfigName()
		h.Field = join(path, "rds.route_config_name")
		if h.RouteConfig == "" {
			r.invalid(h.Field, "is empty: a RouteConfiguration is known by its name")
		}
	case *hcmv3.HttpConnectionManager_RouteConfig:
		h.path = join(path, "route_config")
		h.inline = r.routes(rs.RouteConfig, h.path)
		for _, ref := range h.inline.References {
			c.refs = append(c.refs, Reference{Cluster: ref.Cluster, Field: ref.Field})
		}
	case nil:
		r.invalid(join(path, "rds"), "is missing: give rds or route_config")
	}
}

// httpFilter takes the first fault filter; the others have their verdicts.
func (r *report) httpFilter(h *HTTPService, f *hcmv3.HttpFilter, path string) {
	cfg, ok := r.asFault(f.GetTypedConfig(), join(path, "typed_config"))
	if !ok {
		return
	}
	if h.fault != nil {
		r.add(path, mesh.UnsupportedAction, "only the first fault filter is enforced")
		return
	}
	h.fault = &faultFilter{name: f.GetName()}
	if !f.GetDisabled() {
		h.fault.abort = r.abort(cfg, join(path, "typed_config"))
	}
}

// RouteConfigNames returns the RouteConfigurations that a listener names anywhere,
// valid and served or not: servers answer a subscription only as a whole.
func RouteConfigNames(l *listenerv3.Listener) []string {
	var names []string
	for _, fc := range append(slices.Clone(l.GetFilterChains()), l.GetDefaultFilterChain()) {
		for _, f := range fc.GetFilters() {
			cfg := &hcmv3.HttpConnectionManager{}
			if !f.GetTypedConfig().MessageIs(cfg) || f.GetTypedConfig().UnmarshalTo(cfg) != nil {
				continue
			}
			if name := cfg.GetRds().GetRouteConfigName(); name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
