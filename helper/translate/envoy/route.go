// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"kmesh/helper/mesh"
)

// defaultMaxBody is Envoy's own bound of a direct response's body.
const defaultMaxBody = 4096

// RouteConfig is what became of a RouteConfiguration.
type RouteConfig struct {
	Name     string
	Verdicts []mesh.Verdict
	// HTTP is nil when the resource is invalid.
	HTTP *mesh.HTTP
	// References to clusters, in the order of their fields, but for those of hosts:
	// EachReference has all.
	References []RouteReference
	// hosts are the virtual hosts, if they were translated one by one.
	hosts []*Host

	// faults are what routes say about fault filters, by the filters' names. The
	// aborts are already in the routes, as if the filter were there.
	faults map[*mesh.Route]map[string]fault
	// refused are the virtual hosts that Without has changed: no version of theirs
	// was good.
	refused map[string]bool
}

// RouteReference is one place in a RouteConfiguration that names a cluster.
type RouteReference struct {
	Cluster string
	Field   string
	// VirtualHost and Route name the place for people; a route may have no name.
	VirtualHost, Route string
}

// TranslateRoutes translates one RouteConfiguration.
func TranslateRoutes(rc *routev3.RouteConfiguration, source string) *RouteConfig {
	r := newReport(source, TypeRoute, rc.GetName())
	if rc.GetName() == "" {
		r.invalid("name", "is empty: a RouteConfiguration is known by its name")
	}
	out := r.routes(rc, "")
	out.Verdicts = r.done()
	if r.bad {
		return &RouteConfig{Name: out.Name, Verdicts: out.Verdicts}
	}
	return out
}

// router is the work on one RouteConfiguration.
type router struct {
	*report
	out     *RouteConfig
	maxBody uint32
	domains map[string]string // the place of each domain
	faults  map[string]fault  // of the whole configuration
}

// router begins the work.
func (r *report) router(rc *routev3.RouteConfiguration) *router {
	w := &router{
		report:  r,
		out:     &RouteConfig{Name: rc.GetName(), HTTP: &mesh.HTTP{IgnorePort: rc.GetIgnorePortInHostMatching()}, faults: map[*mesh.Route]map[string]fault{}},
		maxBody: defaultMaxBody,
		domains: map[string]string{},
	}
	if m := rc.GetMaxDirectResponseBodySizeBytes(); m != nil {
		w.maxBody = m.GetValue()
	}
	return w
}

// routes translates a RouteConfiguration at a place.
func (r *report) routes(rc *routev3.RouteConfiguration, path string) *RouteConfig {
	r.collapse = true
	defer func() { r.collapse = false }()
	refused := r.walk(rc, path)
	w := r.router(rc)
	w.faults = r.perFilter(rc.GetTypedPerFilterConfig(), join(path, "typed_per_filter_config"))
	for i, vh := range rc.GetVirtualHosts() {
		w.virtualHost(vh, join(path, "virtual_hosts["+strconv.Itoa(i)+"]"))
	}
	if refused {
		w.out.HTTP.VirtualHosts = []*mesh.VirtualHost{{Name: rc.GetName(), Domains: []string{"*"}, Routes: refuseAll()}}
		w.out.References, w.out.faults = nil, nil
	}
	return w.out
}

// MaxDomain bounds a domain: a longer one is no host (RFC 1035, section 2.3.4).
const MaxDomain = 255

// refuseAll are the routes of what cannot be told apart: 503, whatever it is.
func refuseAll() []*mesh.Route { return []*mesh.Route{{Unsupported: true}} }

// virtualHost translates one virtual host.
func (w *router) virtualHost(vh *routev3.VirtualHost, path string) {
	refused := w.walk(vh, path)
	out := &mesh.VirtualHost{Name: vh.GetName()}
	if vh.GetName() == "" {
		w.invalid(join(path, "name"), "is empty")
	}
	if len(vh.GetDomains()) == 0 {
		w.invalid(join(path, "domains"), "is empty: give a host, or *")
	}
	for i, d := range vh.GetDomains() {
		at := join(path, "domains["+strconv.Itoa(i)+"]")
		d = strings.ToLower(d)
		switch first, dup := w.domains[d]; {
		case d == "":
			w.invalid(at, "is empty: give a host, or *")
		case len(d) > MaxDomain:
			w.invalid(at, "%q has more than %d bytes", d, MaxDomain)
		case dup:
			w.invalid(at, "%q is given twice: it is %s too", d, first)
		default:
			w.domains[d] = at
			out.Domains = append(out.Domains, d)
		}
	}
	faults := maps.Clone(w.faults)
	for name, f := range w.perFilter(vh.GetTypedPerFilterConfig(), join(path, "typed_per_filter_config")) {
		if faults == nil {
			faults = map[string]fault{}
		}
		faults[name] = f
	}
	refs := len(w.out.References)
	for i, rt := range vh.GetRoutes() {
		out.Routes = append(out.Routes, w.route(vh.GetName(), rt, join(path, "routes["+strconv.Itoa(i)+"]"), faults))
	}
	if refused {
		out.Routes = refuseAll()
		w.out.References = w.out.References[:refs]
	}
	w.out.HTTP.VirtualHosts = append(w.out.HTTP.VirtualHosts, out)
}

// route translates one route. One with a condition that cannot be tested answers
// 503 where the rest of its conditions hold.
func (w *router) route(vh string, rt *routev3.Route, path string, inherited map[string]fault) *mesh.Route {
	refused := w.walk(rt, path)
	out := &mesh.Route{Name: rt.GetName()}
	if rt.GetMatch() == nil {
		w.invalid(join(path, "match"), "is missing")
	}
	complete := w.match(rt.GetMatch(), join(path, "match"), &out.Match)
	refs := w.action(rt, path, out)
	faults := maps.Clone(inherited)
	for name, f := range w.perFilter(rt.GetTypedPerFilterConfig(), join(path, "typed_per_filter_config")) {
		if faults == nil {
			faults = map[string]fault{}
		}
		faults[name] = f
	}
	if refused || !complete {
		return &mesh.Route{Name: out.Name, Match: out.Match, Unsupported: true}
	}
	for _, ref := range refs {
		ref.VirtualHost, ref.Route = vh, rt.GetName()
		w.out.References = append(w.out.References, ref)
	}
	if len(faults) > 0 {
		w.out.faults[out] = faults
		for _, name := range slices.Sorted(maps.Keys(faults)) {
			if a := faults[name].abort; a != nil && out.Abort == nil {
				out.Abort = a
			}
		}
	}
	return out
}

// withFaults returns the routes with the aborts that a connection manager's fault
// filter asks for; nil: it has none, and nothing is aborted.
func (rc *RouteConfig) withFaults(f *faultFilter) *mesh.HTTP {
	abort := func(r *mesh.Route) *mesh.Abort {
		switch own, ok := rc.faults[r][name(f)]; {
		case f == nil || r.Unsupported:
			return nil
		case ok:
			return own.abort
		default:
			return f.abort
		}
	}
	var out *mesh.HTTP
	for i, vh := range rc.HTTP.VirtualHosts {
		var changed *mesh.VirtualHost
		for j, route := range vh.Routes {
			a := abort(route)
			if a == route.Abort || a != nil && route.Abort != nil && *a == *route.Abort {
				continue
			}
			if changed == nil {
				clone := *vh
				clone.Routes = slices.Clone(vh.Routes)
				changed = &clone
			}
			clone := *route
			clone.Abort = a
			changed.Routes[j] = &clone
		}
		if changed == nil {
			continue
		}
		if out == nil {
			clone := *rc.HTTP
			clone.VirtualHosts = slices.Clone(rc.HTTP.VirtualHosts)
			out = &clone
		}
		out.VirtualHosts[i] = changed
	}
	if out == nil {
		return rc.HTTP
	}
	return out
}

func name(f *faultFilter) string {
	if f == nil {
		return ""
	}
	return f.name
}
