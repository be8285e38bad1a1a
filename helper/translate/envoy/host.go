// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"hash/maphash"
	"maps"
	"slices"
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

// Host is what became of one virtual host, wherever it stands: so it can be kept when
// another one of its RouteConfiguration changes, and be that of several. It is not changed
// any more.
type Host struct {
	vh *mesh.VirtualHost
	// refs are its references to clusters; their fields are below the virtual host, and
	// their VirtualHost is empty.
	refs   []RouteReference
	faults map[*mesh.Route]map[string]fault
	notes  Notes
	// plain: all of notes say that all is well, so that they are said once for however
	// many virtual hosts. bad: it is invalid, or there is too much to say about it.
	plain, bad bool
}

// HostSettings are what a virtual host takes of the RouteConfiguration that it stands in,
// as a key: with the same settings the same virtual host is translated to the same.
func HostSettings(rest *routev3.RouteConfiguration) (string, error) {
	if rest.GetMaxDirectResponseBodySizeBytes() == nil && len(rest.GetTypedPerFilterConfig()) == 0 {
		return "", nil
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(&routev3.RouteConfiguration{
		MaxDirectResponseBodySizeBytes: rest.GetMaxDirectResponseBodySizeBytes(),
		TypedPerFilterConfig:           rest.GetTypedPerFilterConfig(),
	})
	return string(data), err
}

// TranslateHost translates a virtual host of a RouteConfiguration, of which rest has all
// but virtual hosts.
func TranslateHost(rest *routev3.RouteConfiguration, vh *routev3.VirtualHost) *Host {
	r := newReport("", TypeRoute, "")
	r.collapse = true
	w := r.router(rest)
	w.faults = newReport("", TypeRoute, "").perFilter(rest.GetTypedPerFilterConfig(), "")
	w.virtualHost(vh, "")
	out := &Host{vh: w.out.HTTP.VirtualHosts[0], refs: slices.Clip(w.out.References), bad: r.bad || r.more > 0, plain: true}
	for i := range out.refs {
		out.refs[i].VirtualHost = ""
	}
	if len(w.out.faults) > 0 {
		out.faults = w.out.faults
	}
	for _, v := range r.verdicts {
		out.plain = out.plain && benignClass(v.Class)
	}
	out.notes = NotesOf(r.verdicts)
	return out
}

// domainSeed is of the hashes that find domains which come twice.
var domainSeed = maphash.MakeSeed()

// distinct tells that no two virtual hosts have one domain; false: they may.
func distinct(hosts []*Host) bool {
	n := 0
	for _, h := range hosts {
		n += len(h.vh.Domains)
	}
	size := 1
	for size < 2*n {
		size *= 2
	}
	seen := make([]uint64, size)
	for _, h := range hosts {
		for _, d := range h.vh.Domains {
			sum := max(maphash.String(domainSeed, d), 1)
			at := int(sum) & (size - 1)
			for ; seen[at] != 0; at = (at + 1) & (size - 1) {
				if seen[at] == sum {
					return false
				}
			}
			seen[at] = sum
		}
	}
	return true
}

// JoinHosts makes of virtual hosts and the rest of their RouteConfiguration what
// TranslateRoutes makes of the whole. false: it has to be done with the whole, for
// something is wrong with it.
func JoinHosts(rest *routev3.RouteConfiguration, hosts []*Host, source string) (*RouteConfig, bool) {
	r := newReport(source, TypeRoute, rest.GetName())
	r.collapse = true
	if r.walk(rest, "") || rest.GetName() == "" || slices.ContainsFunc(hosts, func(h *Host) bool { return h.bad }) || !distinct(hosts) {
		return nil, false
	}
	r.perFilter(rest.GetTypedPerFilterConfig(), "typed_per_filter_config")
	out := r.router(rest).out
	out.hosts = hosts
	out.HTTP.VirtualHosts = slices.Grow(out.HTTP.VirtualHosts, len(hosts))
	said := map[Notes]bool{}
	for i, h := range hosts {
		out.HTTP.VirtualHosts = append(out.HTTP.VirtualHosts, h.vh)
		maps.Copy(out.faults, h.faults)
		if !h.plain || !said[h.notes] {
			h.notes.replay(r, "virtual_hosts["+strconv.Itoa(i)+"]")
			said[h.notes] = h.plain
		}
	}
	if r.bad {
		return nil, false
	}
	out.Verdicts = r.done()
	return out, true
}

// Place is where a RouteConfiguration names a cluster.
type Place struct {
	own  *RouteReference // of those that are the RouteConfiguration's own
	host *Host           // of those of a virtual host
	at   int             // which it is
	ref  int
}

// Reference tells the place.
func (p Place) Reference() RouteReference {
	if p.own != nil {
		return *p.own
	}
	ref := p.host.refs[p.ref]
	ref.Field = join("virtual_hosts["+strconv.Itoa(p.at)+"]", ref.Field)
	ref.VirtualHost = p.host.vh.Name
	return ref
}

// EachReference calls f for every cluster that a RouteConfiguration names, and with the
// place, in the order of their fields.
func (rc *RouteConfig) EachReference(f func(cluster string, at Place)) {
	for i := range rc.References {
		f(rc.References[i].Cluster, Place{own: &rc.References[i]})
	}
	for i, h := range rc.hosts {
		for j := range h.refs {
			f(h.refs[j].Cluster, Place{host: h, at: i, ref: j})
		}
	}
}

// unfold makes the references of its own, to be changed.
func (rc *RouteConfig) unfold() {
	if rc.hosts == nil {
		return
	}
	var all []RouteReference
	rc.EachReference(func(_ string, at Place) { all = append(all, at.Reference()) })
	rc.References, rc.hosts = all, nil
}
