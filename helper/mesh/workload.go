// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net/netip"
)

// AppProtocol is what a service's port is declared to speak.
type AppProtocol uint8

// The protocols, as the workload API has them.
const (
	AppUnknown AppProtocol = iota
	AppHTTP1
	AppHTTP2
	AppGRPC
	AppTCP
	AppTLS
)

// Announced is a service as the workload API announces it: one port of it, in one family
// of addresses.
type Announced struct {
	// Service is what it becomes; it has one cluster, or one per waypoint.
	Service *Service
	// Clusters are those that Service names.
	Clusters []*Cluster
	// Namespace and Hostname are the service's.
	Namespace, Hostname string
	App                 AppProtocol
}

// Workload is a pod or machine: who is behind an address. It names the two ends of a
// connection in metrics and logs, and is what authorization is about.
type Workload struct {
	UID             string
	Namespace, Name string
	// Addrs are its addresses in Network; never v4-mapped. With HostNetwork they are its
	// node's, and do not tell which workload it is.
	Addrs       []netip.Addr
	Network     string
	HostNetwork bool
	// TrustDomain, Namespace and ServiceAccount are its identity.
	TrustDomain, ServiceAccount string
	Node, Cluster               string
	Region, Zone, SubZone       string
	// Canonical and the rest are its labels in metrics.
	Canonical, Revision string
	Kind, Owner         string // "deployment", and its name
	Health              Health
	Capacity            uint32 // at least 1
	// Tunnel is what it takes beside plain connections: "HBONE", "" for nothing.
	Tunnel string
	// Policies are the names of the authorizations that select it by its labels.
	Policies []string
}
