// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strconv"
	"strings"
)

// Class says what became of one field of a resource.
type Class uint8

// The classes of verdict. Only Invalid makes a resource be rejected (NACK): the
// others are reported, and the resource is used.
const (
	// Enforced: the data path does what the field says.
	Enforced Class = iota
	// Default: the field asks for what happens anyway, or for nothing that a
	// client could notice.
	Default
	// UnsupportedCondition: the field narrows what the resource applies to and
	// cannot be tested in the kernel; what it guards is not served, never widened.
	UnsupportedCondition
	// UnsupportedAction: traffic is served, but without what the field asks for.
	UnsupportedAction
	// Invalid: Envoy would reject it too, or it exceeds a stated limit.
	Invalid
)

// String returns the word used in status output and metrics.
func (c Class) String() string {
	switch c {
	case Enforced:
		return "enforced"
	case Default:
		return "default"
	case UnsupportedCondition:
		return "unsupported-condition"
	case UnsupportedAction:
		return "not-enforced"
	case Invalid:
		return "invalid"
	}
	return "unknown"
}

// Verdict says what became of one field of one resource.
type Verdict struct {
	// Source is where the resource came from: a file's path, or the server.
	Source string
	// Type is the short name of the resource type: "Listener", "Cluster",
	// "ClusterLoadAssignment".
	Type string
	// Resource is the resource's name.
	Resource string
	// Field is the path inside the resource, as in
	// "filter_chains[0].filters[0].typed_config.access_log".
	Field string
	Class Class
	// Message says why, and what to do; may be empty for Enforced and Default.
	Message string
}

// Error makes a verdict of class Invalid usable as an error: where it is, what is
// wrong. A part that is empty is left out.
func (v Verdict) Error() string {
	var b strings.Builder
	part := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	part(v.Source)
	switch {
	case v.Type != "" && v.Resource != "":
		part(v.Type + " " + strconv.Quote(v.Resource))
	case v.Type != "":
		part(v.Type)
	case v.Resource != "":
		part(strconv.Quote(v.Resource))
	}
	part(v.Field)
	part(v.Message)
	return b.String()
}
