// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strconv"

	"kmesh/helper/mesh"
)

var pathKinds = map[mesh.PathKind]string{
	mesh.PathPrefix: "begins with", mesh.PathExact: "is",
	mesh.PathSegmentPrefix: "is or lies below", mesh.PathRegex: "matches",
}

var stringKinds = map[mesh.StringKind]string{
	mesh.StringExact: "is", mesh.StringPrefix: "begins with", mesh.StringSuffix: "ends with",
	mesh.StringContains: "contains", mesh.StringRegex: "matches",
}

func describePath(p mesh.PathMatch) string {
	return fmt.Sprintf("path %s %q%s", pathKinds[p.Kind], p.Value, ignoring(p.IgnoreCase))
}

func describeHeader(h mesh.HeaderMatch) string {
	not := ""
	if h.Invert {
		not = "not: "
	}
	text := ""
	switch h.Kind {
	case mesh.HeaderString:
		text = describeString(h.Match)
	case mesh.HeaderRange:
		text = fmt.Sprintf("is a number from %d to below %d", h.Start, h.End)
	case mesh.HeaderPresent:
		text = "is there"
	case mesh.HeaderAbsent:
		text = "is not there"
	}
	if h.MissingAsEmpty {
		text += ", empty if it is missing"
	}
	return fmt.Sprintf("%sheader %s %s", not, h.Name, text)
}

func describeQuery(q mesh.QueryMatch) string {
	if q.Present {
		return fmt.Sprintf("parameter %q is there", q.Name)
	}
	return fmt.Sprintf("parameter %q %s", q.Name, describeString(q.Match))
}

func describeString(s mesh.StringMatch) string {
	return fmt.Sprintf("%s %q%s", stringKinds[s.Kind], s.Value, ignoring(s.IgnoreCase))
}

func ignoring(ignoreCase bool) string {
	if ignoreCase {
		return " in any case"
	}
	return ""
}

// quote shows a value, or that there is none.
func quote(value string, present bool) string {
	if !present {
		return "none"
	}
	return strconv.Quote(value)
}
