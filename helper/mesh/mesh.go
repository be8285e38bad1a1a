// SPDX-License-Identifier: Apache-2.0

// Package mesh is the model of the mesh as one node sees it: kmesh-api's types.
//
// It is pure data. It imports nothing of ours, knows neither xDS nor BPF, and is
// never mutated after it has been handed over: a Snapshot is built once, closed
// under references (every cluster that a service names is in it), and then only
// read.
package mesh

import (
	"net/netip"
)

// Protocol is an IP protocol number (RFC 791, "Protocol") of a service.
type Protocol uint8

// The protocols that are governed.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// String returns "TCP", "UDP" or "" for anything else.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return ""
}

// ScopeKey names a scope: the set of pods that see the same view of the mesh,
// because the control plane evaluates a configuration for (namespace, the labels
// that matter, service account). The zero value is the default scope: the only
// one when the source is a directory or a plain xDS server.
type ScopeKey struct {
	Namespace      string
	Labels         string // canonical: sorted "k=v" joined by ","
	ServiceAccount string
}

// Snapshot is everything the data path needs, at one moment.
type Snapshot struct {
	// Version identifies the content; it grows with every change.
	Version uint64
	// Scopes holds one view per scope.
	Scopes []Scope
}

// Scope is one view of the mesh.
type Scope struct {
	Key ScopeKey
	// Services, sorted by name; names are unique within the scope.
	Services []*Service
	// HTTP are the services of the listeners that speak HTTP, sorted by name; a
	// name is in one of the two lists only.
	HTTP []*Service
	// Clusters by name. Closed: every cluster that a service names is here.
	Clusters map[string]*Cluster
}

// Service is one thing a client connects to: frontends that lead to weighted
// clusters. It is the unit of counting.
type Service struct {
	// Name is unique within a scope: the listener's name, followed by "/" and the
	// filter chain's name or index where a listener has several.
	Name string
	// Frontends, at least one: what the client connects to.
	Frontends []Frontend
	// Clusters and their weights, at least one entry. The sum is between 1 and
	// math.MaxUint32; a weight of 0 is never drawn.
	Clusters []WeightedCluster
	// HashSource: MAGLEV clusters are indexed by the client pod's address (the
	// proxy filter's source_ip hash policy); without it, they are drawn from at
	// random, as Envoy does.
	HashSource bool
	// HTTP is the routing of a service that speaks HTTP/1; nil for L4. Clusters
	// then serve what is not HTTP/1: the filter chain that the listener has for it,
	// else what the only or the "*" virtual host does with any path; they may be
	// empty then, and what is not HTTP/1 is refused.
	HTTP *HTTP
}

// Frontend is a destination: a prefix of addresses, a port and a protocol. A host
// prefix (/32, /128) is looked up first, then the longest prefix with this port,
// then the longest prefix with port 0.
type Frontend struct {
	Prefix   netip.Prefix // masked; never v4-mapped
	Port     uint16       // 0: every port
	Protocol Protocol
}

// WeightedCluster is a share of a service's connections.
type WeightedCluster struct {
	Cluster string
	Weight  uint32
}

// ClusterKind says how a cluster finds its endpoint.
type ClusterKind uint8

// The kinds of cluster.
const (
	// Endpoints: one of the cluster's endpoints is chosen by its policy.
	Endpoints ClusterKind = iota
	// Passthrough: the connection goes where the client meant it (ORIGINAL_DST).
	Passthrough
	// Blackhole: nothing is reachable by design (a static cluster without endpoints).
	Blackhole
	// Refused: the cluster demands what the kernel cannot do (TLS origination);
	// its connections are refused rather than sent in clear.
	Refused
)

// Policy is a load balancing policy.
type Policy uint8

// The policies, as Envoy names them.
const (
	RoundRobin Policy = iota
	Random
	LeastRequest
	Maglev
)

// String returns Envoy's name of the policy.
func (p Policy) String() string {
	switch p {
	case RoundRobin:
		return "ROUND_ROBIN"
	case Random:
		return "RANDOM"
	case LeastRequest:
		return "LEAST_REQUEST"
	case Maglev:
		return "MAGLEV"
	}
	return "UNKNOWN"
}

// String returns a word for status output.
func (k ClusterKind) String() string {
	switch k {
	case Endpoints:
		return "endpoints"
	case Passthrough:
		return "passthrough"
	case Blackhole:
		return "blackhole"
	case Refused:
		return "refused"
	}
	return "unknown"
}

// Cluster is a group of equal endpoints.
type Cluster struct {
	Name   string
	Kind   ClusterKind
	Policy Policy
	// MaglevTableSize is a prime number of slots, 0 for the default.
	MaglevTableSize uint32
	// LocalityWeighted: Locality.Weight takes part in the choice
	// (locality_weighted_lb_config); otherwise localities only carry priorities.
	LocalityWeighted bool
	// MaxRequests is how many HTTP requests one connection to an endpoint serves
	// (max_requests_per_connection); 0: no limit.
	MaxRequests uint16
	// MaxConnections is how many connections one pod may have to the cluster
	// (circuit_breakers); nil: no limit.
	MaxConnections *uint32
	Localities     []Locality
}

// Locality is a group of endpoints in one place, with one priority.
type Locality struct {
	Region, Zone, SubZone string
	// Priority: 0 is the highest. A lower one is used only while no endpoint of a
	// higher one is healthy.
	Priority uint32
	// Weight counts only with Cluster.LocalityWeighted; 0 there: no traffic.
	Weight    uint32
	Endpoints []Endpoint
}

// Health is an endpoint's state as the control plane sees it.
type Health uint8

// The states of health (envoy.config.core.v3.HealthStatus, folded).
const (
	Healthy   Health = iota // UNKNOWN or HEALTHY
	Degraded                // chosen only while its priority has no healthy endpoint
	Unhealthy               // UNHEALTHY, TIMEOUT
	Draining                // no new connections
)

// String returns Envoy's word for the state.
func (h Health) String() string {
	switch h {
	case Healthy:
		return "HEALTHY"
	case Degraded:
		return "DEGRADED"
	case Unhealthy:
		return "UNHEALTHY"
	case Draining:
		return "DRAINING"
	}
	return "UNKNOWN"
}

// Endpoint is one address of a cluster.
type Endpoint struct {
	Addr   netip.AddrPort // never v4-mapped
	Weight uint32         // at least 1
	Health Health
}
