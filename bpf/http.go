// SPDX-License-Identifier: Apache-2.0

package bpf

import "sync/atomic"

// What abi_http.h defines beside structures.
const (
	// ServiceHTTP is the flag of a service whose requests are routed (KM_SERVICE_HTTP).
	ServiceHTTP = 2

	HTTPIgnorePort = 1 // KM_HTTP_IGNORE_PORT
	HTTPLocal      = 2 // KM_HTTP_LOCAL
	HTTPStarOnly   = 4 // KM_HTTP_STAR_ONLY

	// VHostResponse is the id of the grammar of responses.
	VHostResponse = 0
	// ReplyFirst is the first id of a reply that is not a plain status.
	ReplyFirst = 1024
	// MaxReplyText is the text that one reply holds, in bytes.
	MaxReplyText = len(Reply{}.Text)
	// MaxReplyParts is the number of parts that one reply has at most.
	MaxReplyParts = len(Reply{}.Parts)
	// ShortHost is the longest domain that a HostKey holds, in bytes: km_long_hosts has the longer ones.
	ShortHost = len(HostKey{}.Name)
	// MaxHost is the longest domain that a LongHostKey holds, in bytes.
	MaxHost = len(LongHostKey{}.Name)
	// MaxHashName is the longest name of a header that is hashed, in bytes.
	MaxHashName = len(Route{}.HashName)
	// Events is the number of elements of km_events.
	Events = int(abiEventKM_EVENTS)
	// EventRefused is the element that counts connections which an endpoint refused.
	EventRefused = uint32(abiEventKM_EVENT_REFUSED)
)

// The kinds of domain (enum host_kind).
const (
	HostExact  = uint8(abiHostKindKM_HOST_EXACT)
	HostSuffix = uint8(abiHostKindKM_HOST_SUFFIX)
	HostPrefix = uint8(abiHostKindKM_HOST_PREFIX)
)

// The kinds of route (enum route_kind).
const (
	RouteForward     = uint8(abiRouteKindKM_ROUTE_FORWARD)
	RouteReply       = uint8(abiRouteKindKM_ROUTE_REPLY)
	RouteUnsupported = uint8(abiRouteKindKM_ROUTE_UNSUPPORTED)
)

// What maglev hashes for a route (enum hash_kind).
const (
	HashNone   = uint8(abiHashKindKM_HASH_NONE)
	HashSource = uint8(abiHashKindKM_HASH_SOURCE)
	HashHeader = uint8(abiHashKindKM_HASH_HEADER)
)

// The kinds of a reply's parts (enum part_kind).
const (
	PartText      = uint16(abiPartKindKM_PART_TEXT)
	PartHost      = uint16(abiPartKindKM_PART_HOST)
	PartAuthority = uint16(abiPartKindKM_PART_AUTHORITY)
	PartPath      = uint16(abiPartKindKM_PART_PATH)
	PartQuery     = uint16(abiPartKindKM_PART_QUERY)
	PartBody      = uint16(abiPartKindKM_PART_BODY)
	PartNot80     = uint16(abiPartKindKM_PART_NOT_80)
)

// The states of a flow (enum flow_state).
const (
	FlowFree   = uint8(abiFlowStateKM_FLOW_FREE)
	FlowSyn    = uint8(abiFlowStateKM_FLOW_SYN)
	FlowOpen   = uint8(abiFlowStateKM_FLOW_OPEN)
	FlowClosed = uint8(abiFlowStateKM_FLOW_CLOSED)
)

// The states of a leg (enum leg_state).
const (
	LegNone = uint8(abiLegStateKM_LEG_NONE)
	LegSyn  = uint8(abiLegStateKM_LEG_SYN)
	LegOpen = uint8(abiLegStateKM_LEG_OPEN)
	LegDead = uint8(abiLegStateKM_LEG_DEAD)
)

// Limits is the one element of km_limits: sizes, and what the programs remember beside them.
type Limits = abiLimits

// ShareLegPorts makes the programs ask, for each leg that they make, whether a socket has
// its port. They do so by themselves once they see a socket connect from such a port; of
// what was connected before its pod was enrolled they know nothing.
func (r *Runtime) ShareLegPorts() { inPlace[abiLimits](r.memory["km_limits"])[0].Shared = 1 }

// Publish makes the programs forget what they keep of the tables: from now on they see what has been written. What they
// had found before is in use until a grace period after it has passed.
func (r *Runtime) Publish() {
	published := &inPlace[abiLimits](r.memory["km_limits"])[0].Published
	if atomic.AddUint32(published, 1) == 0 { // which keeps nothing
		atomic.AddUint32(published, 1)
	}
}

// Flags of a flow (KM_FLOW_*).
const (
	FlowFirst     = 1
	FlowClientFIN = 2
	FlowServerFIN = 4
	FlowRebound   = 16
	FlowLocal     = 32
	FlowReply     = 64
	FlowClose     = 128
	FlowTrace     = 256
	FlowHeld      = 1024
	FlowListed    = 2048
	FlowIdle      = 4096
	FlowLimited   = 32768
)

// LegCounted is the flag of a leg whose requests are counted in Active while they run
// (KM_LEG_COUNTED).
const LegCounted = 64

// LegLimited is the flag of a leg that counts in Connections (KM_LEG_LIMITED).
const LegLimited = 128

// ReplyOverflow is the answer to a request for which its cluster allows no further
// connection (KM_REPLY_OVERFLOW).
const ReplyOverflow = 1

// LimitConnections makes the programs watch connections: some cluster is to bound them.
func (r *Runtime) LimitConnections() {
	atomic.StoreUint32(&inPlace[abiLimits](r.memory["km_limits"])[0].Limited, 1)
}
