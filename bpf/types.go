// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// The structures of abi.h, generated from its BTF.
type (
	FrontendKey = abiFrontendKey
	PrefixKey   = abiPrefixKey
	Service     = abiService
	Share       = abiShare
	Cluster     = abiCluster
	Extent      = abiExtent
	Slot        = abiSlot
	Endpoint    = abiEndpoint
	Name        = abiName
	StatsKey    = abiStatsKey
	Stats       = abiStats
	RefusalKey  = abiRefusalKey
	Socket      = abiSocketRecord

	ConnectionsKey = abiConnectionsKey
	Connections    = abiConnections

	HTTP         = abiHttp
	HostKey      = abiHostKey
	LongHostKey  = abiLongHostKey
	VHost        = abiVhost
	Route        = abiRoute
	Reply        = abiReply
	Part         = abiPart
	Flow         = abiFlow
	FlowKey      = abiFlowKey
	FlowRef      = abiFlowRef
	Leg          = abiLeg
	LegKey       = abiLegKey
	RequestKey   = abiRequestKey
	RequestStats = abiRequestStats
	TraceRecord  = abiTrace
)

// The kinds of cluster (abi.h, enum kind).
const (
	KindEndpoints   = uint8(abiKindKM_KIND_ENDPOINTS)
	KindPassthrough = uint8(abiKindKM_KIND_PASSTHROUGH)
	KindBlackhole   = uint8(abiKindKM_KIND_BLACKHOLE)
	KindRefused     = uint8(abiKindKM_KIND_REFUSED)
)

// The policies (abi.h, enum policy).
const (
	PolicyRoundRobin   = uint8(abiPolicyKM_POLICY_ROUND_ROBIN)
	PolicyRandom       = uint8(abiPolicyKM_POLICY_RANDOM)
	PolicyLeastRequest = uint8(abiPolicyKM_POLICY_LEAST_REQUEST)
	PolicyMaglev       = uint8(abiPolicyKM_POLICY_MAGLEV)
)

// What an id in km_names stands for (abi.h, enum name_kind).
const (
	NameService = uint8(abiNameKindKM_NAME_SERVICE)
	NameCluster = uint8(abiNameKindKM_NAME_CLUSTER)
	NameScope   = uint8(abiNameKindKM_NAME_SCOPE)
)

// The kinds of name that HTTP adds.
const (
	NameRoute = uint8(abiNameKindKM_NAME_ROUTE)
	NameVHost = uint8(abiNameKindKM_NAME_VHOST)
)

// ServiceHashSource is the flag of a service whose maglev clusters are indexed by
// a hash of the pod's address (KM_SERVICE_HASH_SOURCE).
const ServiceHashSource = 1

// StampCounted is the flag of a socket that counts as an open connection of its
// endpoint (KM_STAMP_COUNTED).
const StampCounted = 1

// StampLimited is the flag of a socket that counts in Connections (KM_STAMP_LIMITED).
const StampLimited = 16

// NoLimit is the MaxConnections of a cluster that does not bound them (KM_NO_LIMIT).
const NoLimit = 1<<32 - 1

// Limits of the layout.
const (
	// MaxWeighted is the most clusters that one service may split over.
	MaxWeighted = len(Service{}.Shares)
	// MaxName is the longest name that km_names holds, in bytes.
	MaxName = len(Name{}.Name) - 1
)

// PrefixFixedBits are the bits of a prefix key that always count
// (KM_PREFIX_FIXED_BITS).
const PrefixFixedBits = 64

// Reason is why a connection was refused (abi.h, enum reason).
type Reason uint32

// String returns the word used as the label "reason".
func (r Reason) String() string {
	switch abiReason(r) {
	case abiReasonKM_REASON_NO_ENDPOINT:
		return "no_endpoint"
	case abiReasonKM_REASON_NO_FAMILY:
		return "no_endpoint_of_family"
	case abiReasonKM_REASON_BLACKHOLE:
		return "blackhole"
	case abiReasonKM_REASON_TLS:
		return "tls_required"
	case abiReasonKM_REASON_INCOMPLETE:
		return "incomplete"
	case abiReasonKM_REASON_OVERFLOW:
		return "overflow"
	}
	return "unknown"
}

// AddrWords returns an address as the maps hold it: network order, IPv4 in the
// first word. A v4-mapped address is held as IPv4.
func AddrWords(a netip.Addr) (words [4]uint32, family uint8) {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return [4]uint32{binary.NativeEndian.Uint32(b[:])}, 4
	}
	b := a.As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return words, 6
}

// AddrOf is the inverse of AddrWords.
func AddrOf(words [4]uint32, family uint8) netip.Addr {
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	if family == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}

// FlowKeyOf is the key of a pod's connection.
func FlowKeyOf(netnsCookie uint64, client, vip netip.AddrPort) FlowKey {
	k := FlowKey{Pod: netnsCookie, ClientPort: PortWord(client.Port()), VipPort: PortWord(vip.Port())}
	var family uint8
	k.Client, family = AddrWords(client.Addr())
	k.Vip, _ = AddrWords(vip.Addr())
	k.Family = uint32(family)
	return k
}

// PortWord returns a port as the maps hold it: in network order.
func PortWord(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
