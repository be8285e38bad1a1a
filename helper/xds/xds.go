// SPDX-License-Identifier: Apache-2.0

// Package xds brings xDS resources to this node: from a directory of files, or
// from a server over ADS.
//
// It knows protobufs and transport, not what resources mean. The invariant: a
// source only ever adds, replaces or removes what it has positively heard of.
// A file that cannot be read, a response that cannot be decoded, a stream that
// breaks: none of them takes anything away from the consumer.
package xds

import (
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/proto"

	"kmesh/helper/mesh"
)

// The type URLs of the resources that are delivered.
const (
	ListenerType   = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType    = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	AssignmentType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	RouteType      = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Resource is one resource and where it came from.
type Resource struct {
	Name    string
	Version string // the source's own word for it
	// Source is a file's path, or the server.
	Source string
	// Path is the place in the file ("resources[2]"); empty for a server.
	Path string
	// Message is there even if the resource is Invalid, for what it refers to.
	Message proto.Message
	// Hosts are the virtual hosts of a RouteConfiguration that was taken apart: Message is
	// without them then. Whole has both.
	Hosts []*Host
	// Raw is the message as a server sent it; nil if it came otherwise.
	Raw []byte
	// Hash tells equal content from changed content.
	Hash [sha256.Size]byte
	// Invalid says why the resource must not be used: Envoy would reject it. The
	// name is known, so its last good version can stay.
	Invalid []mesh.Verdict

	typeURL string
}

// Verdict says that the resource cannot be accepted, and why: part of a Rejected.
func (r Resource) Verdict(field, message string) mesh.Verdict {
	return mesh.Verdict{Source: r.Source, Type: short(r.typeURL), Resource: r.Name, Field: field, Class: mesh.Invalid, Message: message}
}

// Update is what a source has heard about one type.
type Update struct {
	Type      string
	Resources []Resource
	// Complete: what is not in Resources does not exist at the source. Otherwise
	// absence means nothing.
	Complete bool
	// Removed are names that the source says it does not have, or has no longer;
	// names that nobody knows may be among them.
	Removed []string
	// Kept are names that the source has, and that are neither in Resources nor in
	// Removed: what was sent of them cannot be read, or the source has an error about
	// them, or nothing new. An empty one stands for a resource whose name is not known.
	Kept []string
}

// Consumer takes what the sources deliver. Its methods are called from one
// goroutine at a time.
type Consumer interface {
	// Apply takes several updates as one change. The valid resources of a change
	// are used even if others are not; the error says what was not accepted, and
	// why, for the source to pass on (a NACK).
	Apply(ctx context.Context, updates ...Update) error
	// Wanted returns the names of a type that is subscribed by name, sorted. What was
	// returned is never changed: the same slice is the same names.
	Wanted(typeURL string) []string
	// Absent tells that the source does not have these names, or does not give them.
	// What is held of them may stay in use.
	Absent(typeURL string, names []string)
}

// Source delivers resources to a consumer.
type Source interface {
	// Run delivers until ctx ends. It returns an error only when it cannot begin.
	Run(ctx context.Context, c Consumer) error
	// Status says how the source is.
	Status() Status
}

// Status is how a source is, for people.
type Status struct {
	// Source is the directory or the server.
	Source string
	// Connected: the directory can be read and every file in it is good; or the
	// stream to the server is up and has been answered.
	Connected bool
	// Since is when Connected last changed.
	Since time.Time
	// LastUpdate is when something was last delivered; zero if never.
	LastUpdate time.Time
	// Problems of the source itself: files that cannot be used, a stream that is
	// down, a response that was rejected.
	Problems []mesh.Verdict
	// Types, in order of their names: what each type last said.
	Types []TypeStatus
	// Unsettled are, of a server, the resources in another state than Acked, by type and
	// name; the first thousand.
	Unsettled []ResourceState
}

// TypeStatus is the state of one type at a source.
type TypeStatus struct {
	Type      string
	Version   string // the last accepted
	Resources int    // that the source has, as far as they were accepted
	// States counts the resources by state; nil for files.
	States    map[State]int
	Accepted  uint64 // updates
	Rejected  uint64 // updates
	LastError string // why the last one was rejected; empty if it was not
}

// State is what became of one resource at a server, in the words of the client
// status discovery service (CSDS).
type State string

// The states of a resource.
const (
	// Requested: it was asked for and has not come.
	Requested State = "REQUESTED"
	// Acked: its newest version is accepted.
	Acked State = "ACKED"
	// Nacked: its newest version is not; the last accepted one stays in use.
	Nacked State = "NACKED"
	// DoesNotExist: the server does not have it.
	DoesNotExist State = "DOES_NOT_EXIST"
	// ReceivedError: the server says why it does not give it.
	ReceivedError State = "RECEIVED_ERROR"
)

// ResourceState is one resource as a server has answered for it.
type ResourceState struct {
	Type, Name string // the short type
	State      State
	// Version is the last accepted one; empty if there is none.
	Version string
	// RejectedVersion is the newest one, if it was not accepted.
	RejectedVersion string
	// LastError says why it was not accepted, or what the server says.
	LastError string
	// Since is when the state was entered.
	Since time.Time
}

// short returns a type URL's last word: "Listener".
func short(typeURL string) string {
	for i := len(typeURL) - 1; i >= 0; i-- {
		if typeURL[i] == '.' || typeURL[i] == '/' {
			return typeURL[i+1:]
		}
	}
	return typeURL
}
