// SPDX-License-Identifier: Apache-2.0

package envoy

//lint:file-ignore SA1019 the fields that replace these are of a cluster type of its own; control planes still give them

import (
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"kmesh/helper/mesh"
)

// defaultRefresh is Envoy's dns_refresh_rate.
const defaultRefresh = 5 * time.Second

// backoffFactor is Envoy's ratio of the longest wait after failures to the first one,
// where the longest is not given.
const backoffFactor = 10

// Names is how a cluster whose endpoints are names (STRICT_DNS, LOGICAL_DNS, DnsCluster) gets its endpoints: what
// translation knows, waiting for what a resolver says.
type Names struct {
	// Logical: of each name only the first address is used.
	Logical bool
	// literal are the localities with the endpoints that are addresses already.
	literal []mesh.Locality
	targets []target
}

// target is an endpoint that is a name.
type target struct {
	lookup mesh.Lookup
	field  string
	// It stands in this locality, before this one of its literal endpoints.
	locality, before int
	port             uint16
	weight           uint32
	health           mesh.Health
}

// Lookups calls f for every name of the cluster and the field that it is in.
func (n *Names) Lookups(f func(lookup mesh.Lookup, field string)) {
	for _, t := range n.targets {
		f(t.lookup, t.field)
	}
}

// Localities returns the endpoints, given the addresses of the names. An address that
// comes more than once counts the first time, as in an assignment.
func (n *Names) Localities(addrs func(mesh.Lookup) []netip.Addr) []mesh.Locality {
	out := slices.Clone(n.literal)
	seen := map[netip.AddrPort]bool{}
	next := 0
	for i := range out {
		var list []mesh.Endpoint
		add := func(e mesh.Endpoint) {
			if !seen[e.Addr] {
				seen[e.Addr] = true
				list = append(list, e)
			}
		}
		literal := out[i].Endpoints
		for j := 0; j <= len(literal); j++ {
			for ; next < len(n.targets) && n.targets[next].locality == i && n.targets[next].before == j; next++ {
				t := &n.targets[next]
				found := addrs(t.lookup)
				if n.Logical && len(found) > 1 {
					found = found[:1]
				}
				for _, addr := range found {
					add(mesh.Endpoint{Addr: netip.AddrPortFrom(addr, t.port), Weight: t.weight, Health: t.health})
				}
			}
			if j < len(literal) {
				add(literal[j])
			}
		}
		out[i].Endpoints = fit(list)
	}
	return out
}

// fit halves the weights of a list until their sum can be counted. A name that has many
// addresses gives its weight to each, so the sum is not known before.
func fit(list []mesh.Endpoint) []mesh.Endpoint {
	var sum uint64
	for _, e := range list {
		sum += uint64(e.Weight)
	}
	if sum <= math.MaxUint32 {
		return list
	}
	// One more than needed makes room for weights that are rounded up to 1.
	shift := bits.Len64(sum>>32) + 1
	for i := range list {
		list[i].Weight = max(list[i].Weight>>shift, 1)
	}
	return list
}

// lookup is how a cluster's names are to be resolved, by its own fields or by those of
// its type.
type lookup struct {
	at                        string // the path of the fields
	refresh, jitter, shortest *durationpb.Duration
	failure                   interface {
		GetBaseInterval() *durationpb.Duration
		GetMaxInterval() *durationpb.Duration
	}
	ttl, tcp, logical bool
	family            mesh.Family
}

// typeDNS is the type of cluster that replaces STRICT_DNS and LOGICAL_DNS.
const typeDNS = "envoy.extensions.clusters.dns.v3.DnsCluster"

// isDNS tells whether a cluster's endpoints are names.
func isDNS(c *clusterv3.Cluster) bool {
	if c.GetClusterType() != nil {
		return c.GetClusterType().GetTypedConfig().MessageName() == typeDNS
	}
	return c.GetType() == clusterv3.Cluster_STRICT_DNS || c.GetType() == clusterv3.Cluster_LOGICAL_DNS
}

// families of both enums.
var (
	families = map[clusterv3.Cluster_DnsLookupFamily]mesh.Family{
		clusterv3.Cluster_AUTO:         mesh.FamilyAuto,
		clusterv3.Cluster_V4_ONLY:      mesh.FamilyV4,
		clusterv3.Cluster_V6_ONLY:      mesh.FamilyV6,
		clusterv3.Cluster_V4_PREFERRED: mesh.FamilyV4Preferred,
		clusterv3.Cluster_ALL:          mesh.FamilyAll,
	}
	typedFamilies = map[commondnsv3.DnsLookupFamily]mesh.Family{
		commondnsv3.DnsLookupFamily_UNSPECIFIED:  mesh.FamilyAuto,
		commondnsv3.DnsLookupFamily_AUTO:         mesh.FamilyAuto,
		commondnsv3.DnsLookupFamily_V4_ONLY:      mesh.FamilyV4,
		commondnsv3.DnsLookupFamily_V6_ONLY:      mesh.FamilyV6,
		commondnsv3.DnsLookupFamily_V4_PREFERRED: mesh.FamilyV4Preferred,
		commondnsv3.DnsLookupFamily_ALL:          mesh.FamilyAll,
	}
)

// lookupOf reads how names are to be resolved.
func (r *report) lookupOf(c *clusterv3.Cluster) lookup {
	var out lookup
	known, given := false, int32(0)
	if packed := c.GetClusterType().GetTypedConfig(); packed != nil {
		out.at = "cluster_type.typed_config"
		d := &dnsv3.DnsCluster{}
		if packed.UnmarshalTo(d) != nil {
			return out // walk said so
		}
		out.refresh, out.jitter, out.shortest = d.GetDnsRefreshRate(), d.GetDnsJitter(), d.GetDnsMinRefreshRate()
		if f := d.GetDnsFailureRefreshRate(); f != nil {
			out.failure = f
		}
		out.ttl, out.logical = d.GetRespectDnsTtl(), d.GetAllAddressesInSingleEndpoint()
		given = int32(d.GetDnsLookupFamily())
		out.family, known = typedFamilies[d.GetDnsLookupFamily()]
	} else {
		out.refresh, out.jitter = c.GetDnsRefreshRate(), c.GetDnsJitter()
		if f := c.GetDnsFailureRefreshRate(); f != nil {
			out.failure = f
		}
		out.ttl, out.tcp, out.logical = c.GetRespectDnsTtl(), c.GetUseTcpForDnsLookups(), c.GetType() == clusterv3.Cluster_LOGICAL_DNS
		given = int32(c.GetDnsLookupFamily())
		out.family, known = families[c.GetDnsLookupFamily()]
	}
	if !known {
		r.invalid(join(out.at, "dns_lookup_family"), "%d is not a lookup family", given)
	}
	return out
}

// model checks the times. What is given and is not valid is Envoy's to reject.
func (l lookup) model(r *report) mesh.Lookup {
	field := func(name string) string { return join(l.at, name) }
	out := mesh.Lookup{
		Family: l.family, RespectTTL: l.ttl, TCP: l.tcp,
		Refresh: r.span(l.refresh, field("dns_refresh_rate"), defaultRefresh),
		Jitter:  r.span(l.jitter, field("dns_jitter"), 0),
		MinTTL:  r.span(l.shortest, field("dns_min_refresh_rate"), 0),
	}
	if l.shortest != nil && out.MinTTL < time.Second {
		r.invalid(field("dns_min_refresh_rate"), "%v is less than a second", out.MinTTL)
	}
	out.FailureBase, out.FailureMax = out.Refresh, backoffFactor*out.Refresh
	if l.failure != nil {
		out.FailureBase = r.span(l.failure.GetBaseInterval(), field("dns_failure_refresh_rate.base_interval"), out.Refresh)
		out.FailureMax = r.span(l.failure.GetMaxInterval(), field("dns_failure_refresh_rate.max_interval"), backoffFactor*out.FailureBase)
		if out.FailureMax < out.FailureBase {
			r.invalid(field("dns_failure_refresh_rate.max_interval"), "%v is less than the base_interval %v", out.FailureMax, out.FailureBase)
		}
	}
	return out
}

// maxSpan bounds times, so that they can be added and multiplied.
const maxSpan = 10 * 365 * 24 * time.Hour

// span reads a time, which must be positive where it is given.
func (r *report) span(d *durationpb.Duration, field string, otherwise time.Duration) time.Duration {
	switch {
	case d == nil:
		return otherwise
	case d.CheckValid() != nil || d.AsDuration() < 0 || d.AsDuration() < time.Millisecond && otherwise > 0:
		r.invalid(field, "%v is not a time to wait: give at least 1ms", d.AsDuration())
		return otherwise
	}
	return min(d.AsDuration(), maxSpan)
}

// names reads a cluster whose endpoints are names.
func (r *report) names(c *clusterv3.Cluster) *Names {
	inline := c.GetLoadAssignment()
	options := r.lookupOf(c)
	out := &Names{Logical: options.logical}
	if n := endpoints(inline); out.Logical && (n != 1 || len(inline.GetEndpoints()) != 1) {
		r.invalid("load_assignment", "a LOGICAL_DNS cluster (all_addresses_in_single_endpoint) has one locality with one endpoint, not %d endpoints", n)
		return nil
	}
	lookup := options.model(r)
	out.literal, out.targets = r.places(inline, "load_assignment", hostname)
	for i := range out.targets {
		name := out.targets[i].lookup.Name
		out.targets[i].lookup = lookup
		out.targets[i].lookup.Name = name
	}
	return out
}

// isName tells whether s is a name that DNS can be asked for (RFC 1035, section 2.3.4).
// An underscore, and what else resolvers let pass, is no matter of ours.
func isName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			if c := label[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`\"();@$:/`, c) >= 0 {
				return false
			}
		}
	}
	return true
}

// forNames is the rule of a field that says how names are resolved: of a cluster that
// has none it says nothing.
func forNames(rl rule) rule {
	return byCase(func(r *report, v protoreflect.Value) rule {
		if !r.resolves {
			return benign(msgNoNames)
		}
		return rl.value(r, v)
	}, append([]any{"of another type of cluster", benign(msgNoNames)}, casesOf("of STRICT_DNS and LOGICAL_DNS", rl)...)...)
}

// casesOf are the cases of a rule, or the one that it is.
func casesOf(when string, rl rule) []any {
	if rl.eval == nil {
		return []any{when, rl}
	}
	var out []any
	for _, c := range rl.cases {
		out = append(out, c.when, c.rule)
	}
	return out
}

// refreshRate: a busy loop of questions is nobody's intention.
var refreshRate = byCase(func(_ *report, v protoreflect.Value) rule {
	d, ok := v.Message().Interface().(*durationpb.Duration)
	if ok && d.AsDuration() < time.Second {
		return benign(msgOften)
	}
	return enforced
}, "1s or more", enforced, "less", benign(msgOften))

const (
	msgNoNames  = "of no use to this type of cluster"
	msgOften    = "a name is asked for once a second at most"
	msgResolver = "names are resolved by the servers of /etc/resolv.conf, on every node"
)
