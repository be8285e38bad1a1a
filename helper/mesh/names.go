// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
	"time"
)

// Family says which addresses of a name are asked for.
type Family uint8

// The families, as Envoy names them (dns_lookup_family).
const (
	FamilyAuto        Family = iota // IPv6, or IPv4 where there is none
	FamilyV4                        // IPv4 only
	FamilyV6                        // IPv6 only
	FamilyV4Preferred               // IPv4, or IPv6 where there is none
	FamilyAll                       // both
)

// String returns Envoy's name of the family.
func (f Family) String() string {
	switch f {
	case FamilyAuto:
		return "AUTO"
	case FamilyV4:
		return "V4_ONLY"
	case FamilyV6:
		return "V6_ONLY"
	case FamilyV4Preferred:
		return "V4_PREFERRED"
	case FamilyAll:
		return "ALL"
	}
	return "UNKNOWN"
}

// Lookup is a name to resolve, and how. It is comparable: two clusters that ask the
// same are answered the same.
type Lookup struct {
	Name   string // lower-case; a final dot makes it absolute
	Family Family
	// Refresh is the time between two answers; the records' own time to live takes its
	// place with RespectTTL, unless it is zero; MinTTL if that is longer.
	Refresh    time.Duration
	RespectTTL bool
	MinTTL     time.Duration
	// FailureBase is the wait after a first failure; it doubles up to FailureMax.
	FailureBase, FailureMax time.Duration
	// Jitter is the most that is added to the time between two answers, at random.
	Jitter time.Duration
	// TCP: UDP is not tried first.
	TCP bool
}

// Answer is what is known about a name.
type Answer struct {
	// Addrs are the last known addresses, in the order of the answer; never v4-mapped.
	Addrs []netip.Addr
	// Problem says why they may not be the newest, or why there are none; empty if the
	// name was answered with addresses.
	Problem string
}
