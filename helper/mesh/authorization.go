// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"slices"
	"strings"
)

// AuthScope says whom an authorization is about.
type AuthScope uint8

// The scopes.
const (
	AuthGlobal    AuthScope = iota // every workload
	AuthNamespace                  // every workload of its namespace
	AuthSelector                   // the workloads that name it
)

// Authorization is a policy about who may connect to a workload.
type Authorization struct {
	Namespace, Name string
	Scope           AuthScope
	Deny            bool // otherwise it allows
	DryRun          bool // it is only counted
	// Rules: one of them must match. No rules: it never matches.
	Rules []AuthRule
}

// AuthRule matches if all of its clauses do; without any, always.
type AuthRule struct {
	Clauses []AuthClause
}

// AuthClause matches if one of its matches does; without any, always.
type AuthClause struct {
	Matches []AuthMatch
}

// AuthMatch is a conjunction of its fields: of each list that is not empty one entry
// must match, and of its Not list none. A match without any field never matches: it is
// what is left of a condition that only HTTP can test.
type AuthMatch struct {
	Namespaces, NotNamespaces           []AuthString
	Principals, NotPrincipals           []AuthString // without "spiffe://"
	ServiceAccounts, NotServiceAccounts []AuthAccount
	Sources, NotSources                 []netip.Prefix
	Destinations, NotDestinations       []netip.Prefix
	Ports, NotPorts                     []uint16 // of the destination
	// Never: a part of it is not known to this build, so it must not be widened.
	Never bool
}

// AuthString compares a string. Its kind is exact, a prefix or a suffix; or, with
// Present, anything but the empty string.
type AuthString struct {
	Kind    StringKind
	Value   string
	Present bool
}

// AuthAccount is a service account.
type AuthAccount struct {
	Namespace, Name string
}

// AuthPeer is a connection, as authorizations see it.
type AuthPeer struct {
	// Source is proved to have this identity; the zero identity: it is not proved.
	TrustDomain, Namespace, ServiceAccount string
	Source                                 netip.Addr
	Destination                            netip.AddrPort
}

// Matches tells whether the policy is about a connection to a workload that it selects.
func (a *Authorization) Matches(p AuthPeer) bool {
	return slices.ContainsFunc(a.Rules, func(r AuthRule) bool { return r.matches(p) })
}

func (r AuthRule) matches(p AuthPeer) bool {
	for _, c := range r.Clauses {
		if len(c.Matches) > 0 && !slices.ContainsFunc(c.Matches, func(m AuthMatch) bool { return m.matches(p) }) {
			return false
		}
	}
	return true
}

// Empty tells whether a match has no field.
func (m *AuthMatch) Empty() bool {
	return !m.Never &&
		len(m.Namespaces)+len(m.NotNamespaces)+len(m.Principals)+len(m.NotPrincipals)+
			len(m.ServiceAccounts)+len(m.NotServiceAccounts)+len(m.Sources)+len(m.NotSources)+
			len(m.Destinations)+len(m.NotDestinations)+len(m.Ports)+len(m.NotPorts) == 0
}

func (m *AuthMatch) matches(p AuthPeer) bool {
	if m.Never || m.Empty() {
		return false
	}
	proved := p.TrustDomain != ""
	principal, account := "", AuthAccount{}
	if proved {
		principal = p.TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
		account = AuthAccount{p.Namespace, p.ServiceAccount}
	}
	inside := func(addr netip.Addr) func(netip.Prefix) bool {
		return func(one netip.Prefix) bool { return one.Contains(addr.Unmap()) }
	}
	return among(m.Namespaces, m.NotNamespaces, func(s AuthString) bool { return s.matches(p.Namespace) }) &&
		among(m.Principals, m.NotPrincipals, func(s AuthString) bool { return proved && s.matches(principal) }) &&
		among(m.ServiceAccounts, m.NotServiceAccounts, func(s AuthAccount) bool { return proved && s == account }) &&
		among(m.Sources, m.NotSources, inside(p.Source)) &&
		among(m.Destinations, m.NotDestinations, inside(p.Destination.Addr())) &&
		among(m.Ports, m.NotPorts, func(port uint16) bool { return port == p.Destination.Port() })
}

// among tells whether one of some matches, if there is any, and none of others.
func among[T any](some, others []T, f func(T) bool) bool {
	return (len(some) == 0 || slices.ContainsFunc(some, f)) && !slices.ContainsFunc(others, f)
}

func (s AuthString) matches(text string) bool {
	switch {
	case s.Present:
		return text != ""
	case s.Kind == StringPrefix:
		return strings.HasPrefix(text, s.Value)
	case s.Kind == StringSuffix:
		return strings.HasSuffix(text, s.Value)
	}
	return s.Kind == StringExact && text == s.Value
}
