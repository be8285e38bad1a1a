// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"net/netip"

	"kmesh/helper/mesh"
	"kmesh/helper/translate/workload/policy"
)

// Authorization is what became of an istio.security.Authorization; nil Policy: it is
// invalid.
type Authorization struct {
	Name     string // "namespace/name"
	Verdicts []mesh.Verdict
	Policy   *mesh.Authorization
}

// TranslateAuthorization translates a policy. What HTTP conditions it had, the control
// plane has taken out: of a DENY each leaves a match without any field, which never
// matches; an ALLOW has lost the rule.
func TranslateAuthorization(a *policy.Authorization, source string) *Authorization {
	name := a.GetNamespace() + "/" + a.GetName()
	r := &report{source: source, typ: TypeAuthorization, name: name}
	if a.GetName() == "" {
		r.invalid("name", "is empty: a policy is known by its namespace and name")
	}
	r.walk(a.ProtoReflect(), "")
	out := &mesh.Authorization{
		Namespace: a.GetNamespace(), Name: a.GetName(), DryRun: a.GetDryRun(),
		Deny: a.GetAction() == policy.Action_DENY,
	}
	switch a.GetScope() {
	case policy.Scope_GLOBAL:
	case policy.Scope_NAMESPACE:
		out.Scope = mesh.AuthNamespace
	case policy.Scope_WORKLOAD_SELECTOR:
		out.Scope = mesh.AuthSelector
	default:
		r.invalid("scope", "%d is not a scope", a.GetScope())
	}
	if n := a.GetAction(); n != policy.Action_ALLOW && n != policy.Action_DENY {
		r.invalid("action", "%d is not an action", n)
	}
	for i, rule := range a.GetRules() {
		var to mesh.AuthRule
		for j, c := range rule.GetClauses() {
			var clause mesh.AuthClause
			for k, m := range c.GetMatches() {
				clause.Matches = append(clause.Matches, r.match(m, fmt.Sprintf("rules[%d].clauses[%d].matches[%d]", i, j, k)))
			}
			to.Clauses = append(to.Clauses, clause)
		}
		out.Rules = append(out.Rules, to)
	}
	verdicts := r.done()
	if r.bad {
		out = nil
	}
	return &Authorization{Name: name, Verdicts: verdicts, Policy: out}
}

// Stripped tells whether HTTP conditions were taken out of a policy that denies: it
// denies less than it was written to.
func Stripped(a *mesh.Authorization) bool {
	if !a.Deny {
		return false
	}
	for _, rule := range a.Rules {
		for _, c := range rule.Clauses {
			for i := range c.Matches {
				if c.Matches[i].Empty() {
					return true
				}
			}
		}
	}
	return false
}

func (r *report) match(m *policy.Match, at string) mesh.AuthMatch {
	return mesh.AuthMatch{
		Namespaces:         r.strings(m.GetNamespaces(), at+".namespaces"),
		NotNamespaces:      r.strings(m.GetNotNamespaces(), at+".not_namespaces"),
		Principals:         r.strings(m.GetPrincipals(), at+".principals"),
		NotPrincipals:      r.strings(m.GetNotPrincipals(), at+".not_principals"),
		ServiceAccounts:    accounts(m.GetServiceAccounts()),
		NotServiceAccounts: accounts(m.GetNotServiceAccounts()),
		Sources:            r.prefixes(m.GetSourceIps(), at+".source_ips"),
		NotSources:         r.prefixes(m.GetNotSourceIps(), at+".not_source_ips"),
		Destinations:       r.prefixes(m.GetDestinationIps(), at+".destination_ips"),
		NotDestinations:    r.prefixes(m.GetNotDestinationIps(), at+".not_destination_ips"),
		Ports:              r.ports(m.GetDestinationPorts(), at+".destination_ports"),
		NotPorts:           r.ports(m.GetNotDestinationPorts(), at+".not_destination_ports"),
		// A condition that is not known must not be left out: the match would be wider.
		Never: len(m.GetExtensions()) > 0 || len(m.ProtoReflect().GetUnknown()) > 0,
	}
}

func (r *report) strings(list []*policy.StringMatch, at string) []mesh.AuthString {
	var out []mesh.AuthString
	for i, s := range list {
		switch m := s.GetMatchType().(type) {
		case *policy.StringMatch_Exact:
			out = append(out, mesh.AuthString{Kind: mesh.StringExact, Value: m.Exact})
		case *policy.StringMatch_Prefix:
			out = append(out, mesh.AuthString{Kind: mesh.StringPrefix, Value: m.Prefix})
		case *policy.StringMatch_Suffix:
			out = append(out, mesh.AuthString{Kind: mesh.StringSuffix, Value: m.Suffix})
		case *policy.StringMatch_Presence:
			out = append(out, mesh.AuthString{Present: true})
		default:
			r.invalid(fmt.Sprintf("%s[%d]", at, i), "compares with nothing that is known")
		}
	}
	return out
}

func (r *report) prefixes(list []*policy.Address, at string) []netip.Prefix {
	var out []netip.Prefix
	for i, a := range list {
		length := a.GetLength()
		if prefix, ok := r.prefix(a.GetAddress(), &length, fmt.Sprintf("%s[%d]", at, i)); ok {
			out = append(out, prefix)
		}
	}
	return out
}

func (r *report) ports(list []uint32, at string) []uint16 {
	var out []uint16
	for i, p := range list {
		if p == 0 || p > 65535 {
			r.invalid(fmt.Sprintf("%s[%d]", at, i), "%d is not a port", p)
			continue
		}
		out = append(out, uint16(p))
	}
	return out
}

func accounts(list []*policy.ServiceAccountMatch) []mesh.AuthAccount {
	var out []mesh.AuthAccount
	for _, a := range list {
		out = append(out, mesh.AuthAccount{Namespace: a.GetNamespace(), Name: a.GetServiceAccount()})
	}
	return out
}
