// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"testing"
)

// TestAuthorizationMatches: rules or, clauses and, matches or, fields and, values or; an
// empty match is never, an empty clause and an empty rule are always, no rules is never.
func TestAuthorizationMatches(t *testing.T) {
	peer := AuthPeer{
		TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa",
		Source: netip.MustParseAddr("10.0.0.7"), Destination: netip.MustParseAddrPort("10.1.0.9:80"),
	}
	unproved := AuthPeer{Source: peer.Source, Destination: peer.Destination}
	exact := func(s string) []AuthString { return []AuthString{{Kind: StringExact, Value: s}} }
	pre := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	rules := func(r ...AuthRule) []AuthRule { return r }
	rule := func(c ...AuthClause) AuthRule { return AuthRule{c} }
	clause := func(m ...AuthMatch) AuthClause { return AuthClause{m} }
	one := func(m AuthMatch) []AuthRule { return rules(rule(clause(m))) }
	yes, no := AuthMatch{Ports: []uint16{80}}, AuthMatch{Ports: []uint16{81}}
	for name, tc := range map[string]struct {
		rules []AuthRule
		want  bool
		plain bool // what an unproved peer gets
	}{
		"no rules":                    {nil, false, false},
		"a rule without clauses":      {rules(rule()), true, true},
		"an empty clause":             {rules(rule(clause())), true, true},
		"an empty match":              {one(AuthMatch{}), false, false},
		"an empty match or another":   {rules(rule(clause(AuthMatch{}, yes))), true, true},
		"an empty match and another":  {rules(rule(clause(AuthMatch{}), clause(yes))), false, false},
		"an empty clause and another": {rules(rule(clause(), clause(no))), false, false},
		"stripped":                    {rules(rule(clause(AuthMatch{}), clause(AuthMatch{Namespaces: exact("ns")}), clause(AuthMatch{}))), false, false},
		"clauses and":                 {rules(rule(clause(yes), clause(no))), false, false},
		"matches or":                  {rules(rule(clause(no, yes))), true, true},
		"rules or":                    {rules(rule(clause(no)), rule(clause(yes))), true, true},
		"fields and":                  {one(AuthMatch{Ports: []uint16{80}, Namespaces: exact("other")}), false, false},
		"values or":                   {one(AuthMatch{Ports: []uint16{79, 80}}), true, true},
		"never":                       {one(AuthMatch{Ports: []uint16{80}, Never: true}), false, false},

		"namespace":                 {one(AuthMatch{Namespaces: exact("ns")}), true, false},
		"not namespace":             {one(AuthMatch{NotNamespaces: exact("other")}), true, true},
		"not this namespace":        {one(AuthMatch{NotNamespaces: exact("ns")}), false, true},
		"but not":                   {one(AuthMatch{Namespaces: []AuthString{{Kind: StringPrefix, Value: "n"}}, NotNamespaces: exact("ns")}), false, false},
		"suffix":                    {one(AuthMatch{Namespaces: []AuthString{{Kind: StringSuffix, Value: "s"}}}), true, false},
		"other suffix":              {one(AuthMatch{Namespaces: []AuthString{{Kind: StringSuffix, Value: "n"}}}), false, false},
		"other prefix":              {one(AuthMatch{Namespaces: []AuthString{{Kind: StringPrefix, Value: "s"}}}), false, false},
		"empty prefix":              {one(AuthMatch{Namespaces: []AuthString{{Kind: StringPrefix}}}), true, true},
		"present":                   {one(AuthMatch{Namespaces: []AuthString{{Present: true}}}), true, false},
		"contains is not known":     {one(AuthMatch{Namespaces: []AuthString{{Kind: StringContains, Value: "n"}}}), false, false},
		"principal":                 {one(AuthMatch{Principals: exact("td/ns/ns/sa/sa")}), true, false},
		"principal with a scheme":   {one(AuthMatch{Principals: exact("spiffe://td/ns/ns/sa/sa")}), false, false},
		"any principal":             {one(AuthMatch{Principals: []AuthString{{Present: true}}}), true, false},
		"every prefix of principal": {one(AuthMatch{Principals: []AuthString{{Kind: StringPrefix}}}), true, false},
		"no principal":              {one(AuthMatch{NotPrincipals: []AuthString{{Present: true}}}), false, true},
		"account":                   {one(AuthMatch{ServiceAccounts: []AuthAccount{{"ns", "sa"}}}), true, false},
		"another's account":         {one(AuthMatch{ServiceAccounts: []AuthAccount{{"other", "sa"}}}), false, false},
		"not account":               {one(AuthMatch{NotServiceAccounts: []AuthAccount{{"ns", "sa"}}}), false, true},
		"source":                    {one(AuthMatch{Sources: pre("10.0.0.0/24")}), true, true},
		"not source":                {one(AuthMatch{NotSources: pre("10.0.0.0/24")}), false, false},
		"another source":            {one(AuthMatch{Sources: pre("10.0.1.0/24")}), false, false},
		"destination":               {one(AuthMatch{Destinations: pre("10.1.0.9/32")}), true, true},
		"not destination":           {one(AuthMatch{NotDestinations: pre("0.0.0.0/0")}), false, false},
		"of another family":         {one(AuthMatch{Sources: pre("::/0")}), false, false},
		"not of another family":     {one(AuthMatch{NotSources: pre("::/0")}), true, true},
		"not port":                  {one(AuthMatch{NotPorts: []uint16{80}}), false, false},
	} {
		a := &Authorization{Rules: tc.rules}
		if got := a.Matches(peer); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if got := a.Matches(unproved); got != tc.plain {
			t.Errorf("%s: of an unproved peer %v, want %v", name, got, tc.plain)
		}
	}
	// An IPv4 address is one however it is written.
	peer.Source = netip.AddrFrom16(peer.Source.As16())
	if a := (&Authorization{Rules: one(AuthMatch{Sources: pre("10.0.0.0/24")})}); !a.Matches(peer) {
		t.Error("a mapped address is not its own")
	}
}
