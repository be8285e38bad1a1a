// SPDX-License-Identifier: Apache-2.0

// Package envoy translates Envoy's resources (Listener, RouteConfiguration, Cluster,
// ClusterLoadAssignment) into the mesh model.
//
// It is pure: one resource in, mesh objects and verdicts out, no look at other
// resources, no clock, no I/O, the same output for the same input. The invariant:
// every populated field of a resource gets a verdict. What becomes of a field is
// said in one place, the table in rules.go; a populated field that the table does
// not know is reported as not supported, never skipped in silence.
package envoy

import (
	"kmesh/helper/mesh"
)

// MaxWeightedClusters bounds the clusters of one service: the data path's
// service entry holds them in a fixed array that the verifier can walk.
const MaxWeightedClusters = 32

// MaxMaglevTableSize is Envoy's own upper bound of a Maglev table.
const MaxMaglevTableSize = 5000011

// maxVerdicts bounds what one resource may report, so that a hostile or very
// large resource cannot fill the status; the rest is counted.
const maxVerdicts = 256

// maxRouteVerdicts is the same for a RouteConfiguration, which holds the routes of
// many services.
const maxRouteVerdicts = 2048

// maxDepth bounds how deep extensions may nest in extensions. Real ones need
// three or four levels; each level is one more stack frame here.
const maxDepth = 32

// The short names of the resource types, as verdicts carry them.
const (
	TypeListener   = "Listener"
	TypeCluster    = "Cluster"
	TypeAssignment = "ClusterLoadAssignment"
	TypeRoute      = "RouteConfiguration"
)

// Reference is one place in a listener that names a cluster.
type Reference struct {
	Cluster string
	Field   string
}

// Listener is what became of a Listener.
type Listener struct {
	Name     string
	Verdicts []mesh.Verdict
	// Services that the data path can serve, in the order of the filter chains;
	// none when the listener is not governed or invalid.
	Services []*mesh.Service
	// HTTP is the same for a listener of which a chain speaks HTTP; Services is
	// empty then.
	HTTP []*HTTPService
	// References to clusters, in the order of their fields; each name may come
	// more than once.
	References []Reference
	// Rest: it gets what matches no other listener.
	Rest bool
	// Unenforced are the authorization policies of a listener that is not governed since it
	// is inbound, sorted; one without a name is called after the listener.
	Unenforced []string
}

// Cluster is what became of a Cluster.
type Cluster struct {
	Name     string
	Verdicts []mesh.Verdict
	// Cluster is nil when the resource is invalid. For an EDS cluster it has no
	// localities: they are in the assignment; for one with Names, these have them.
	Cluster *mesh.Cluster
	// Assignment is the name of the ClusterLoadAssignment that an EDS cluster
	// takes its endpoints from; empty for the other types. A cluster that is
	// refused has one too: servers answer a subscription only as a whole.
	Assignment string
	// Names are where a cluster whose endpoints are names takes them from; nil for the
	// other types, and where they are not needed.
	Names *Names
}

// Assignment is what became of a ClusterLoadAssignment.
type Assignment struct {
	Name       string
	Verdicts   []mesh.Verdict
	Localities []mesh.Locality
}

// Invalid returns the verdicts of class Invalid. A resource that has one must not
// be used.
func Invalid(verdicts []mesh.Verdict) []mesh.Verdict {
	var bad []mesh.Verdict
	for _, v := range verdicts {
		if v.Class == mesh.Invalid {
			bad = append(bad, v)
		}
	}
	return bad
}
