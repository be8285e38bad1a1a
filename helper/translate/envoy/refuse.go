// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"kmesh/helper/mesh"
)

// RefusedCluster is the cluster of connections that are refused. It exists without a
// resource, and one of this name is never reached.
const RefusedCluster = "kmesh.refused"

// An action that cannot be enforced is served without it, and reported. Refuse is the
// other choice: nothing is served without what it asks for. It is made of a resource that
// was translated already, by its verdicts, so that there is one place that says what is
// not enforced.

// refuse changes the verdicts of such actions, and calls apply with the field of each.
func refuse(verdicts []mesh.Verdict, apply func(field string)) {
	for i := range verdicts {
		v := &verdicts[i]
		if v.Class != mesh.UnsupportedAction {
			continue
		}
		v.Class = mesh.UnsupportedCondition
		v.Message = strings.TrimSpace(v.Message + " (refused: actions that cannot be enforced are)")
		apply(v.Field)
	}
}

// Refuse refuses what is not as the listener asks for: the route in it that the field is
// in, or else all connections to the listener. What the mesh does not know is refused if
// the listener says so, and not for how it would be logged.
func (l *Listener) Refuse() {
	all := false
	refuse(l.Verdicts, func(field string) {
		for _, h := range l.HTTP {
			if rest, ok := strings.CutPrefix(field, h.path+"."); ok && h.inline != nil {
				h.inline.refuseAt(rest)
				return
			}
		}
		all = true
	})
	if !all || l.Rest {
		return
	}
	l.References = nil
	to := []mesh.WeightedCluster{{Cluster: RefusedCluster, Weight: 1}}
	for _, s := range l.Services {
		s.Clusters = to
	}
	for _, h := range l.HTTP {
		h.service.Clusters = to
		if h.inline != nil || h.RouteConfig != "" {
			h.inline = &RouteConfig{}
			h.inline.refuseAll(h.service.Name)
			h.RouteConfig, h.Field, h.fault = "", "", nil
		}
	}
}

// Refuse refuses connections to a cluster that are not as it asks for. An endpoint that
// cannot be used is left out in any case.
func (c *Cluster) Refuse() {
	refuse(c.Verdicts, func(field string) {
		// What is only let pass is not ours to do: as without a mesh, it goes as it is.
		if c.Cluster != nil && c.Cluster.Kind != mesh.Passthrough && !strings.HasPrefix(field, "load_assignment") {
			c.Cluster.Kind, c.Cluster.Localities = mesh.Refused, nil
		}
	})
}

// Refuse answers requests 503 that are not served as the routes ask for.
func (rc *RouteConfig) Refuse() {
	refuse(rc.Verdicts, rc.refuseAt)
}

// refusedAt is the route, or the virtual host, that a field is in.
var refusedAt = regexp.MustCompile(`^virtual_hosts\[(\d+)\](?:\.routes\[(\d+)\])?\.`)

// refuseAt refuses the smallest thing that a field is in.
func (rc *RouteConfig) refuseAt(field string) {
	if rc.HTTP == nil {
		return // invalid: it is not served at all
	}
	rc.unfold()
	m := refusedAt.FindStringSubmatch(field)
	if m == nil {
		rc.refuseAll(rc.Name)
		return
	}
	i, err := strconv.Atoi(m[1])
	if err != nil || i >= len(rc.HTTP.VirtualHosts) {
		rc.refuseAll(rc.Name)
		return
	}
	// It may be that of other resources, too.
	vh := *rc.HTTP.VirtualHosts[i]
	vh.Routes = slices.Clone(vh.Routes)
	rc.HTTP.VirtualHosts[i] = &vh
	j, err := strconv.Atoi(m[2])
	if m[2] == "" || err != nil || j >= len(vh.Routes) {
		vh.Routes = refuseAll()
		rc.forget("virtual_hosts[" + m[1] + "].")
		return
	}
	route := vh.Routes[j]
	delete(rc.faults, route)
	vh.Routes[j] = &mesh.Route{Name: route.Name, Match: route.Match, Unsupported: true}
	rc.forget("virtual_hosts[" + m[1] + "].routes[" + m[2] + "].")
}

// refuseAll refuses every request.
func (rc *RouteConfig) refuseAll(name string) {
	rc.HTTP = &mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: refuseAll()}}}
	rc.References, rc.hosts, rc.faults = nil, nil, nil
}

// forget drops references from below a field: what is refused waits for no cluster.
func (rc *RouteConfig) forget(below string) {
	rc.References = slices.DeleteFunc(rc.References, func(ref RouteReference) bool {
		at := strings.Index(ref.Field, "virtual_hosts[")
		return at >= 0 && strings.HasPrefix(ref.Field[at:], below)
	})
}
