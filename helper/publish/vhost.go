// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// vhost mirrors a virtual host with its routes and their shares. Routes lie in one
// extent of km_routes, all their shares in one of km_shares.
type vhost struct {
	value   bpf.VHost // as written; compared is what follows
	shares  bpf.Extent
	program digest
	routes  []route
}

// route is a route whose shares are numbered within the virtual host.
type route struct {
	value  bpf.Route
	shares []bpf.Share
}

func (v vhost) equal(o vhost) bool {
	return v.program == o.program && (sameSlice(v.routes, o.routes) || slices.EqualFunc(v.routes, o.routes, route.equal))
}

func (r route) equal(o route) bool {
	return r.value == o.value && slices.Equal(r.shares, o.shares)
}

func (v vhost) nShares() int {
	n := 0
	for _, r := range v.routes {
		n += len(r.shares)
	}
	return n
}

func (v vhost) routesExtent() bpf.Extent {
	return bpf.Extent{Offset: v.value.Routes, N: v.value.N_routes}
}

func (v vhost) place() place { return place{v.value.Slab, v.value.Program} }

// RouteName is what the counters of a route are under in km_names: its virtual host
// and its name, or its number where it has none, after the service and a "|".
func RouteName(service, virtualHost, route string, index int) string {
	if route == "" {
		route = "#" + strconv.Itoa(index)
	}
	return StoredName(service + "|" + virtualHost + "/" + route)
}

// hostKey finds what was made of a virtual host in the last publication: snapshots
// are never mutated, so the same pointer is the same content.
type hostKey struct {
	service uint32
	vh      *mesh.VirtualHost
}

// compileVHost enters a virtual host into want and returns its id.
func (c *scopeCompiler) compileVHost(service uint32, svc *mesh.Service, vh *mesh.VirtualHost) (uint32, error) {
	key := hostKey{service, vh}
	if id, ok := c.p.hostIDs[key]; ok && c.carryVHost(id) {
		c.hostIDs[key] = id
		return id, nil
	}
	id := c.unusedName(bpf.NameVHost, svc.Name+"|"+vh.Name)
	out, err := c.compileRoutes(svc, vh)
	if err != nil {
		return 0, err
	}
	c.want.vhosts[id] = out
	c.hostIDs[key] = id
	return id, nil
}

// compileRoutes computes a virtual host without a place.
func (c *scopeCompiler) compileRoutes(svc *mesh.Service, vh *mesh.VirtualHost) (out vhost, err error) {
	out.routes = make([]route, len(vh.Routes))
	if out.program, err = c.p.programs.compile(vh); err != nil {
		return out, err
	}
	offset := uint32(0)
	for i, r := range vh.Routes {
		o := &out.routes[i]
		if err := c.compileRoute(r, o); err != nil {
			return out, fmt.Errorf("virtual host %q: route %d %q: %w", vh.Name, i, r.Name, err)
		}
		o.value.Id = c.unusedName(bpf.NameRoute, RouteName(svc.Name, vh.Name, r.Name, i))
		if len(o.shares) > 0 {
			o.value.Shares = offset
			offset += uint32(len(o.shares))
			if len(o.shares) == 1 {
				o.value.Only = o.shares[0].Cluster
			}
		}
	}
	return out, nil
}

// unusedName enters a name that nothing else of this snapshot has: the one given,
// or with a number behind it.
func (c *scopeCompiler) unusedName(kind uint8, text string) uint32 {
	for i := 0; ; i++ {
		n := name{scope: c.scope, kind: kind, name: StoredName(text)}
		if i > 0 {
			n.name = StoredName(text + "#" + strconv.Itoa(i))
		}
		id := c.ids.nameID(n)
		if _, taken := c.want.names[id]; !taken {
			c.want.names[id] = n
			return id
		}
	}
}

// carryVHost enters a virtual host that is in the maps as it is, with everything
// that it leads to; false if another one of this snapshot has taken a name.
func (c *scopeCompiler) carryVHost(id uint32) bool {
	now := &c.p.now
	v, ok := now.vhosts[id]
	if !ok {
		return false
	}
	if _, taken := c.want.names[id]; taken {
		return false
	}
	for _, r := range v.routes {
		if _, taken := c.want.names[r.value.Id]; taken {
			return false
		}
	}
	c.want.names[id] = now.names[id]
	c.want.vhosts[id] = v
	for _, r := range v.routes {
		c.want.names[r.value.Id] = now.names[r.value.Id]
		for _, reply := range []uint32{r.value.Reply, r.value.AbortReply} {
			if reply != 0 {
				c.want.replies[reply] = now.replies[reply]
			}
		}
	}
	return true
}

// compileRoute computes a route without its id.
func (c *scopeCompiler) compileRoute(r *mesh.Route, out *route) error {
	v := &out.value
	if f := r.Match.Fraction; f != nil {
		v.Fraction, v.Never = chance(*f)
		if v.Never == always {
			v.Never = 0
		}
	}
	if a := r.Abort; a != nil && a.Fraction.Numerator > 0 {
		part, all := chance(a.Fraction)
		v.Abort = part
		if all == always {
			v.AbortAlways = 1
		}
		v.AbortReply = uint32(a.Status)
		c.want.replies[v.AbortReply] = statusReply(a.Status)
	}
	switch r.Hash.Kind {
	case mesh.HashSource:
		v.Hash = bpf.HashSource
	case mesh.HashHeader:
		if len(r.Hash.Header) > bpf.MaxHashName {
			return fmt.Errorf("the hashed header %q has more than %d bytes", r.Hash.Header, bpf.MaxHashName)
		}
		v.Hash, v.HashLen = bpf.HashHeader, uint8(len(r.Hash.Header))
		copy(v.HashName[:], r.Hash.Header)
	}
	answer := func(reply reply, err error) error {
		v.Kind = bpf.RouteReply
		if err == nil {
			v.Reply = c.ids.replyID(reply)
			c.want.replies[v.Reply] = reply
		}
		return err
	}
	switch {
	case r.Unsupported:
		v.Kind = bpf.RouteUnsupported
	case r.Direct != nil:
		return answer(directReply(r.Direct))
	case r.Redirect != nil:
		return answer(redirectReply(r.Redirect, &r.Match.Path))
	default:
		return c.forward(r.Clusters, out)
	}
	return nil
}

// forward enters the clusters of a route.
func (c *scopeCompiler) forward(clusters []mesh.WeightedCluster, out *route) error {
	total := uint64(0)
	for _, w := range clusters {
		id, ok := c.clusterIDs[w.Cluster]
		if !ok {
			return fmt.Errorf("cluster %q is not in the snapshot", w.Cluster)
		}
		total += uint64(w.Weight)
		out.shares = append(out.shares, bpf.Share{Cluster: id, Weight: w.Weight})
	}
	if total == 0 || total > math.MaxUint32 {
		return fmt.Errorf("the weights sum to %d, want 1 to %d", total, uint32(math.MaxUint32))
	}
	out.value.Kind = bpf.RouteForward
	out.value.N_shares = uint32(len(clusters))
	out.value.Total = uint32(total)
	return nil
}

const (
	never  = 1
	always = 2
)

// chance is a fraction of 2^32; what that cannot say is never or always.
func chance(f mesh.Fraction) (part uint32, special uint8) {
	switch {
	case f.Numerator == 0:
		return 0, never
	case f.Denominator == 0 || f.Numerator >= f.Denominator:
		return 0, always
	}
	return uint32(uint64(f.Numerator) << 32 / uint64(f.Denominator)), 0
}
