// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"kmesh/helper/mesh"
)

// manyAddresses answers every name with the same addresses.
func manyAddresses(mesh.Lookup) []netip.Addr {
	var out []netip.Addr
	for i := range 9 {
		out = append(out, netip.AddrFrom4([4]byte{10, 8, 0, byte(i)}))
	}
	return append(out, netip.MustParseAddr("2001:db8::8"))
}

const typedDNS = "cluster_type.typed_config."

// typed is the type of cluster that replaces STRICT_DNS and LOGICAL_DNS.
func typed(options string) string {
	return "cluster_type: {name: envoy.clusters.dns, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, " + options + "}}\n"
}

// TestNames: the endpoints of a cluster whose addresses are names, given what a resolver
// says about them.
func TestNames(t *testing.T) {
	known := map[string][]netip.Addr{
		"one.test":  {netip.MustParseAddr("10.0.0.1")},
		"two.test":  {netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")},
		"six.test":  {netip.MustParseAddr("2001:db8::6")},
		"both.test": {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")},
	}
	// at is a list of endpoints: "name", "name*weight".
	at := func(names ...string) string {
		var list []string
		for _, n := range names {
			n, weight, _ := strings.Cut(n, "*")
			one := "{endpoint: {address: {socket_address: {address: '" + n + "', port_value: 80}}}"
			if weight != "" {
				one += ", load_balancing_weight: " + weight
			}
			list = append(list, one+"}")
		}
		return "{lb_endpoints: [" + strings.Join(list, ", ") + "]}"
	}
	load := func(localities ...string) string {
		return "load_assignment: {cluster_name: c, endpoints: [" + strings.Join(localities, ", ") + "]}\n"
	}
	base := mesh.Lookup{Refresh: 5 * time.Second, FailureBase: 5 * time.Second, FailureMax: 50 * time.Second}
	const address = "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address"
	for name, tc := range map[string]struct {
		yaml      string
		endpoints string
		names     string
		lookup    func(*mesh.Lookup) // of all names
		verdicts  []want
	}{
		"strict": {yaml: "type: STRICT_DNS\n" + load(at("two.test")), endpoints: "10.0.0.2:80*1 10.0.0.3:80*1", names: "two.test",
			verdicts: []want{{"load_assignment.endpoints[].lb_endpoints[].endpoint.address.socket_address.address", mesh.Enforced, ""}}},
		"logical": {yaml: "type: LOGICAL_DNS\n" + load(at("two.test")), endpoints: "10.0.0.2:80*1", names: "two.test"},
		"logical, two endpoints": {yaml: "type: LOGICAL_DNS\n" + load(at("two.test", "one.test")),
			verdicts: []want{{"load_assignment", mesh.Invalid, "one endpoint"}}},
		"logical, two localities": {yaml: "type: LOGICAL_DNS\n" + load(at("two.test"), "{}"),
			verdicts: []want{{"load_assignment", mesh.Invalid, "one locality"}}},
		"logical, nothing": {yaml: "type: LOGICAL_DNS", verdicts: []want{{"load_assignment", mesh.Invalid, "0 endpoints"}}},
		"strict, nothing":  {yaml: "type: STRICT_DNS"},
		"in order": {yaml: "type: STRICT_DNS\n" + load(at("10.1.0.1", "two.test*3", "10.1.0.2", "six.test"), at("10.1.0.3", "one.test")),
			endpoints: "10.1.0.1:80*1 10.0.0.2:80*3 10.0.0.3:80*3 10.1.0.2:80*1 [2001:db8::6]:80*1 10.1.0.3:80*1 10.0.0.1:80*1", names: "two.test six.test one.test"},
		"an address once": {yaml: "type: STRICT_DNS\n" + load(at("one.test*5", "both.test", "10.0.0.1")), endpoints: "10.0.0.1:80*5 10.0.0.2:80*1", names: "one.test both.test"},
		"not known":       {yaml: "type: STRICT_DNS\n" + load(at("no.test", "one.test")), endpoints: "10.0.0.1:80*1", names: "no.test one.test"},
		"great weights":   {yaml: "type: STRICT_DNS\n" + load(at("two.test*4294967295", "one.test*1")), endpoints: "10.0.0.2:80*1073741823 10.0.0.3:80*1073741823 10.0.0.1:80*1", names: "two.test one.test"},
		"lower case":      {yaml: "type: STRICT_DNS\n" + load(at("ONE.test")), endpoints: "10.0.0.1:80*1", names: "one.test"},
		"absolute":        {yaml: "type: STRICT_DNS\n" + load(at("one.test.")), names: "one.test."},
		"no name": {yaml: "type: STRICT_DNS\n" + load(at("a b", "x..y", strings.Repeat("a", 64)+".test", strings.Repeat("a.", 127)+"a", "fe80::1%eth0")),
			verdicts: []want{{address, mesh.UnsupportedAction, "skipped"}, {strings.Replace(address, "lb_endpoints[0]", "lb_endpoints[3]", 1), mesh.UnsupportedAction, "skipped"},
				{strings.Replace(address, "lb_endpoints[0]", "lb_endpoints[4]", 1), mesh.UnsupportedAction, "skipped"}}},
		"port 0": {yaml: "type: STRICT_DNS\n" + strings.Replace(load(at("one.test")), "80", "0", 1),
			verdicts: []want{{strings.TrimSuffix(address, "address") + "port_value", mesh.Invalid, ""}}},
		"tls": {yaml: "type: STRICT_DNS\ntransport_socket: {name: tls}\n" + load(at("one.test")),
			verdicts: []want{{"transport_socket", mesh.UnsupportedAction, "refused"}}},

		"options": {yaml: "type: STRICT_DNS\ndns_refresh_rate: 7s\nrespect_dns_ttl: true\ndns_jitter: 2s\ndns_lookup_family: V4_PREFERRED\nuse_tcp_for_dns_lookups: true\ndns_failure_refresh_rate: {base_interval: 3s, max_interval: 9s}\n" + load(at("one.test")),
			endpoints: "10.0.0.1:80*1", names: "one.test",
			lookup: func(l *mesh.Lookup) {
				*l = mesh.Lookup{Family: mesh.FamilyV4Preferred, Refresh: 7 * time.Second, RespectTTL: true, Jitter: 2 * time.Second, FailureBase: 3 * time.Second, FailureMax: 9 * time.Second, TCP: true}
			},
			verdicts: []want{{"dns_refresh_rate", mesh.Enforced, ""}, {"respect_dns_ttl", mesh.Enforced, ""}, {"dns_jitter", mesh.Enforced, ""}, {"dns_lookup_family", mesh.Enforced, ""},
				{"use_tcp_for_dns_lookups", mesh.Enforced, ""}, {"dns_failure_refresh_rate", mesh.Enforced, ""}}},
		"rate": {yaml: "type: STRICT_DNS\ndns_refresh_rate: 2s\n" + load(at("one.test")), endpoints: "10.0.0.1:80*1", names: "one.test",
			lookup: func(l *mesh.Lookup) {
				l.Refresh, l.FailureBase, l.FailureMax = 2*time.Second, 2*time.Second, 20*time.Second
			}},
		"base only": {yaml: "type: STRICT_DNS\ndns_failure_refresh_rate: {base_interval: 1s}\n" + load(at("one.test")), endpoints: "10.0.0.1:80*1", names: "one.test",
			lookup: func(l *mesh.Lookup) { l.FailureBase, l.FailureMax = time.Second, 10*time.Second }},
		"often": {yaml: "type: STRICT_DNS\ndns_refresh_rate: 0.5s\n" + load(at("one.test")), endpoints: "10.0.0.1:80*1", names: "one.test",
			lookup: func(l *mesh.Lookup) {
				l.Refresh, l.FailureBase, l.FailureMax = time.Second/2, time.Second/2, 5*time.Second
			},
			verdicts: []want{{"dns_refresh_rate", mesh.Default, "once a second"}}},
		"no rate": {yaml: "type: STRICT_DNS\ndns_refresh_rate: 0s\n" + load(at("one.test")),
			verdicts: []want{{"dns_refresh_rate", mesh.Invalid, "1ms"}}},
		"negative jitter": {yaml: "type: STRICT_DNS\ndns_jitter: -1s\n" + load(at("one.test")),
			verdicts: []want{{"dns_jitter", mesh.Invalid, ""}}},
		"backoff backwards": {yaml: "type: STRICT_DNS\ndns_failure_refresh_rate: {base_interval: 9s, max_interval: 3s}\n" + load(at("one.test")),
			verdicts: []want{{"dns_failure_refresh_rate.max_interval", mesh.Invalid, "less"}}},
		"family": {yaml: "type: STRICT_DNS\ndns_lookup_family: 77\n" + load(at("one.test")),
			verdicts: []want{{"dns_lookup_family", mesh.Invalid, "77"}}},
		"resolvers": {yaml: "type: STRICT_DNS\ndns_resolvers: [{socket_address: {address: 10.0.0.10, port_value: 53}}]\n" + load(at("one.test")), endpoints: "10.0.0.1:80*1", names: "one.test",
			verdicts: []want{{"dns_resolvers", mesh.UnsupportedAction, "resolv.conf"}}},
		"typed": {yaml: typed("dns_refresh_rate: 7s, respect_dns_ttl: true, dns_jitter: 2s, dns_lookup_family: V4_PREFERRED, dns_failure_refresh_rate: {base_interval: 3s, max_interval: 9s}, dns_min_refresh_rate: 4s") + load(at("two.test")),
			endpoints: "10.0.0.2:80*1 10.0.0.3:80*1", names: "two.test",
			lookup: func(l *mesh.Lookup) {
				*l = mesh.Lookup{Family: mesh.FamilyV4Preferred, Refresh: 7 * time.Second, RespectTTL: true, MinTTL: 4 * time.Second, Jitter: 2 * time.Second, FailureBase: 3 * time.Second, FailureMax: 9 * time.Second}
			},
			verdicts: []want{{typedDNS + "dns_refresh_rate", mesh.Enforced, ""}, {typedDNS + "dns_min_refresh_rate", mesh.Enforced, ""}, {typedDNS + "dns_lookup_family", mesh.Enforced, ""}}},
		"typed, nothing said": {yaml: typed("") + load(at("two.test")), endpoints: "10.0.0.2:80*1 10.0.0.3:80*1", names: "two.test"},
		"typed, logical": {yaml: typed("all_addresses_in_single_endpoint: true") + load(at("two.test")), endpoints: "10.0.0.2:80*1", names: "two.test",
			verdicts: []want{{typedDNS + "all_addresses_in_single_endpoint", mesh.Enforced, ""}}},
		"typed, logical, two endpoints": {yaml: typed("all_addresses_in_single_endpoint: true") + load(at("two.test", "one.test")),
			verdicts: []want{{"load_assignment", mesh.Invalid, "one endpoint"}}},
		"typed, beside the old fields": {yaml: "dns_refresh_rate: 9s\n" + typed("dns_refresh_rate: 0.5s") + load(at("one.test")), endpoints: "10.0.0.1:80*1", names: "one.test",
			lookup: func(l *mesh.Lookup) {
				l.Refresh, l.FailureBase, l.FailureMax = time.Second/2, time.Second/2, 5*time.Second
			},
			verdicts: []want{{typedDNS + "dns_refresh_rate", mesh.Default, "once a second"}, {"dns_refresh_rate", mesh.Default, "no use"}}},
		"typed, too short": {yaml: typed("dns_min_refresh_rate: 0.5s") + load(at("one.test")), verdicts: []want{{typedDNS + "dns_min_refresh_rate", mesh.Invalid, "less"}}},
		"typed, family":    {yaml: typed("dns_lookup_family: 77") + load(at("one.test")), verdicts: []want{{typedDNS + "dns_lookup_family", mesh.Invalid, "77"}}},
		"another type": {yaml: "type: STATIC\ndns_refresh_rate: 7s\ndns_lookup_family: V4_ONLY\n" + load(at("10.1.0.1")),
			verdicts: []want{{"dns_refresh_rate", mesh.Default, "no use"}, {"dns_lookup_family", mesh.Default, "no use"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := TranslateCluster(message(t, &clusterv3.Cluster{}, "name: c\n"+tc.yaml), "server")
			checkVerdicts(t, got.Verdicts, tc.verdicts)
			var names []string
			endpoints := ""
			if got.Names != nil {
				got.Names.Lookups(func(l mesh.Lookup, field string) {
					names = append(names, l.Name)
					want := base
					if tc.lookup != nil {
						tc.lookup(&want)
					}
					if want.Name = l.Name; l != want {
						t.Errorf("asks for %+v, want %+v", l, want)
					}
					if !strings.HasSuffix(field, ".socket_address.address") {
						t.Errorf("from %q", field)
					}
				})
				endpoints = endpointList(got.Names.Localities(func(l mesh.Lookup) []netip.Addr { return known[l.Name] }))
			}
			if endpoints != tc.endpoints {
				t.Errorf("endpoints %q, want %q", endpoints, tc.endpoints)
			}
			if s := strings.Join(names, " "); s != tc.names {
				t.Errorf("names %q, want %q", s, tc.names)
			}
			if bad := len(Invalid(got.Verdicts)) > 0; bad != (got.Cluster == nil) {
				t.Errorf("cluster %v, verdicts %v", got.Cluster, got.Verdicts)
			}
		})
	}
}

// TestNamesUnchanged: what comes out is the caller's; what is inside stays as it is.
func TestNamesUnchanged(t *testing.T) {
	c := TranslateCluster(message(t, &clusterv3.Cluster{}, `
name: c
type: STRICT_DNS
load_assignment:
  endpoints: [{priority: 1, locality: {zone: z}, lb_endpoints: [{endpoint: {address: {socket_address: {address: a.test, port_value: 80}}}}, {endpoint: {address: {socket_address: {address: 10.1.0.1, port_value: 80}}}}]}]`), "x")
	var before string
	for i := range 3 {
		got := c.Names.Localities(manyAddresses)
		text := fmt.Sprint(got)
		if i > 0 && text != before {
			t.Fatalf("now %s, before %s", text, before)
		}
		before = text
		if got[0].Priority != 1 || got[0].Zone != "z" || len(got[0].Endpoints) != 11 {
			t.Errorf("got %+v", got)
		}
		got[0].Endpoints[0].Weight, got[0].Zone = 77, "spoilt"
	}
}
