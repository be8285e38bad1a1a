// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"kmesh/helper/mesh"
)

// maxVerdicts bounds what one resource may report; the rest is counted.
const maxVerdicts = 256

// report collects the verdicts of one resource.
type report struct {
	source, typ, name string

	verdicts []mesh.Verdict
	more     int
	bad      bool
}

// add records a verdict. A harmless one is recorded once for all entries of a list.
func (r *report) add(field string, class mesh.Class, message string) {
	r.bad = r.bad || class == mesh.Invalid
	if class == mesh.Enforced || class == mesh.Default {
		field = collapsed(field)
		if slices.ContainsFunc(r.verdicts, func(v mesh.Verdict) bool { return v.Field == field && v.Class <= mesh.Default }) {
			return
		}
	}
	if len(r.verdicts) >= maxVerdicts {
		r.more++
		return
	}
	r.verdicts = append(r.verdicts, mesh.Verdict{
		Source: r.source, Type: r.typ, Resource: r.name, Field: field, Class: class, Message: message,
	})
}

func (r *report) invalid(field, format string, args ...any) {
	r.add(field, mesh.Invalid, fmt.Sprintf(format, args...))
}

// done returns the verdicts, sorted; those that were dropped are counted in a last one,
// which is Invalid if the resource is.
func (r *report) done() []mesh.Verdict {
	slices.SortStableFunc(r.verdicts, func(a, b mesh.Verdict) int { return strings.Compare(a.Field, b.Field) })
	if r.more > 0 {
		class := mesh.UnsupportedAction
		if r.bad {
			class = mesh.Invalid
		}
		r.verdicts = append(r.verdicts, mesh.Verdict{
			Source: r.source, Type: r.typ, Resource: r.name, Class: class,
			Message: fmt.Sprintf("%d more verdicts are not shown", r.more),
		})
	}
	return r.verdicts
}

// collapsed turns "a[12].b" into "a[].b".
func collapsed(field string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(field, "[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte('[')
		// A key may hold any character; it ends with the last bracket before a dot.
		end := strings.Index(rest, "]")
		if strings.HasPrefix(rest, `"`) {
			if quoted, err := strconv.QuotedPrefix(rest); err == nil {
				end = len(quoted)
			}
		}
		field = rest[max(end, 0):]
	}
}

// walk gives a verdict to every populated field by the table.
func (r *report) walk(m protoreflect.Message, path string) {
	if n := len(m.GetUnknown()); n > 0 {
		r.add(join(path, "?"), mesh.UnsupportedAction, fmt.Sprintf("%d bytes of fields that are newer than this build", n))
	}
	rules := table[m.Descriptor().FullName()]
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		at := join(path, string(fd.Name()))
		rl, ok := rules[fd.Name()]
		switch {
		case !ok:
			r.add(at, mesh.UnsupportedAction, "not supported")
		case rl.skip:
			r.special(fd, m, at)
		case !rl.walk:
			r.add(at, rl.class, rl.msg)
		case fd.IsMap():
			entries := map[string]protoreflect.Message{}
			m.Get(fd).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = v.Message()
				return true
			})
			for _, k := range slices.Sorted(maps.Keys(entries)) {
				r.enter(entries[k], at+"["+strconv.Quote(k)+"]")
			}
		case fd.IsList():
			list := m.Get(fd).List()
			for i := range list.Len() {
				r.enter(list.Get(i).Message(), at+"["+strconv.Itoa(i)+"]")
			}
		default:
			r.enter(m.Get(fd).Message(), at)
		}
	}
}

// meanings are those of messages without a field, where that says something.
var meanings = map[protoreflect.FullName]string{
	"istio.security.Rule":     "without clauses it always matches",
	"istio.security.Clause":   "without matches it always matches",
	"istio.security.Match":    "without a field it never matches: it is what is left of a condition on HTTP",
	"istio.workload.PortList": "the service's own target ports are used",
}

// enter walks a message inside another one. Without a field it still is there.
func (r *report) enter(m protoreflect.Message, at string) {
	empty := len(m.GetUnknown()) == 0
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		empty = false
		return false
	})
	if !empty {
		r.walk(m, at)
		return
	}
	meaning, ok := meanings[m.Descriptor().FullName()]
	if !ok {
		meaning = "is empty"
	}
	r.add(at, mesh.Default, meaning)
}

// special gives the verdicts that depend on more than the field.
func (r *report) special(fd protoreflect.FieldDescriptor, m protoreflect.Message, at string) {
	if fd.FullName() != "istio.workload.Workload.hostname" {
		return // the translation gives them
	}
	if addresses := m.Descriptor().Fields().ByName("addresses"); m.Has(addresses) {
		r.add(at, mesh.Default, "it has an address")
	} else {
		r.add(at, mesh.UnsupportedAction, msgNoName)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
