// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"fmt"
	"slices"
	"sort"
	"strconv"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// report collects the verdicts of one resource.
type report struct {
	source, typ, name string

	verdicts []mesh.Verdict
	seen     map[string]bool // benign verdicts by field: lists are reported once
	more     int             // verdicts that were dropped by maxVerdicts
	bad      bool            // an Invalid verdict was given

	// collapse reports benign verdicts of lists as "list[]": an assignment may
	// have thousands of endpoints that are all the same.
	collapse bool
	// tlsInspector: the listener looks into TLS, so that a transport protocol can
	// differ between connections.
	tlsInspector bool
	// httpInspector: the listener looks for HTTP in the first bytes.
	httpInspector bool
	// rest: the listener gets what matches no other one.
	rest bool
	// inbound says what inbound authorization is not enforced, if any is.
	inbound string
	// resolves: the cluster's own fields say how its names are resolved.
	resolves bool
	// httpChain: the chain that is looked at ends in an HTTP connection manager.
	httpChain bool
}

// newReport starts the report of one resource.
func newReport(source, typ, name string) *report {
	return &report{source: source, typ: typ, name: name, seen: map[string]bool{}}
}

// add records one verdict.
func (r *report) add(field string, class mesh.Class, message string) {
	if class == mesh.Invalid {
		r.bad = true
	}
	if benignClass(class) {
		if r.collapse {
			field = collapsed(field)
		}
		if r.seen[field] {
			return
		}
		r.seen[field] = true
	}
	limit := maxVerdicts
	if r.typ == TypeRoute {
		limit = maxRouteVerdicts
	}
	if len(r.verdicts) >= limit {
		r.more++
		return
	}
	r.verdicts = append(r.verdicts, mesh.Verdict{
		Source: r.source, Type: r.typ, Resource: r.name,
		Field: field, Class: class, Message: message,
	})
}

// benignClass: nothing of what the resource asks for is missing.
func benignClass(c mesh.Class) bool { return c == mesh.Enforced || c == mesh.Default }

// invalid records an Invalid verdict.
func (r *report) invalid(field, format string, args ...any) {
	r.add(field, mesh.Invalid, fmt.Sprintf(format, args...))
}

// done returns the verdicts: sorted by field and class, those that were dropped
// counted in a last one, which is Invalid if the resource is.
func (r *report) done() []mesh.Verdict {
	sort.SliceStable(r.verdicts, func(i, j int) bool {
		a, b := r.verdicts[i], r.verdicts[j]
		if a.Field != b.Field {
			return fieldLess(a.Field, b.Field)
		}
		return a.Class < b.Class
	})
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

// fieldLess orders paths so that list[2] comes before list[10].
func fieldLess(a, b string) bool {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		na, nb := digits(a[i:]), digits(b[i:])
		if na > 0 && nb > 0 && na != nb {
			return na < nb
		}
		return a[i] < b[i]
	}
	return len(a) < len(b)
}

// digits counts the leading decimal digits.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// collapsed turns "a[12].b[3]" into "a[].b[]".
func collapsed(field string) string {
	out := make([]byte, 0, len(field))
	skip := false
	for i := 0; i < len(field); i++ {
		switch c := field[i]; {
		case c == '[':
			skip = true
			out = append(out, c)
		case c == ']':
			skip = false
			out = append(out, c)
		case !skip:
			out = append(out, c)
		}
	}
	return string(out)
}

// join appends a field name to a path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// walk gives a verdict to every populated field of m by the table, and returns
// whether one of them was an unsupported condition.
func (r *report) walk(m proto.Message, path string) bool {
	return r.message(m.ProtoReflect(), path, 0)
}

func (r *report) message(m protoreflect.Message, path string, depth int) bool {
	if depth > maxDepth {
		r.invalid(path, "nested more than %d levels deep", maxDepth)
		return false
	}
	rules, known := table[m.Descriptor().FullName()]
	condition := false
	if n := len(m.GetUnknown()); n > 0 {
		condition = r.note(join(path, "?"), rule{class: rules.other,
			msg: fmt.Sprintf("%d bytes of fields that are newer than this build of %s", n, m.Descriptor().FullName())}) || condition
	}
	fields := m.Descriptor().Fields()
	for i := 0; i < fields.Len(); i++ {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		field := join(path, string(fd.Name()))
		rl, ok := rules.fields[fd.Name()]
		if !ok {
			rl = rule{class: rules.other, msg: "not supported"}
			if !known {
				rl = rule{class: mesh.UnsupportedAction, msg: fmt.Sprintf("%s is not supported", m.Descriptor().FullName())}
			}
		}
		condition = r.field(fd, m.Get(fd), rl, field, depth) || condition
	}
	return condition
}

// field gives the verdict of one populated field, or walks into it.
func (r *report) field(fd protoreflect.FieldDescriptor, v protoreflect.Value, rl rule, field string, depth int) bool {
	switch {
	case rl.skip:
		return false
	case !rl.walk:
		return r.note(field, rl.value(r, v))
	case fd.IsMap():
		return r.mapping(fd, v.Map(), field, depth)
	case fd.IsList():
		condition := false
		list := v.List()
		for i := 0; i < list.Len(); i++ {
			condition = r.inner(fd, list.Get(i).Message(), field+"["+strconv.Itoa(i)+"]", depth) || condition
		}
		return condition
	default:
		return r.inner(fd, v.Message(), field, depth)
	}
}

// mapping walks the messages of a map in the order of its keys.
func (r *report) mapping(fd protoreflect.FieldDescriptor, m protoreflect.Map, field string, depth int) bool {
	var keys []string
	values := map[string]protoreflect.Message{}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		keys = append(keys, k.String())
		values[k.String()] = v.Message()
		return true
	})
	sort.Strings(keys)
	condition := false
	for _, k := range keys {
		condition = r.inner(fd, values[k], field+"["+strconv.Quote(k)+"]", depth) || condition
	}
	return condition
}

// inner walks an embedded message, looking through Any: at what may be packed in
// this place, and is in the table.
func (r *report) inner(fd protoreflect.FieldDescriptor, m protoreflect.Message, field string, depth int) bool {
	packed, ok := m.Interface().(*anypb.Any)
	if !ok {
		if empty(m) {
			r.add(field, mesh.Default, "is empty")
			return false
		}
		return r.message(m, field, depth+1)
	}
	name := packed.MessageName()
	if url, ok := structType(packed); ok {
		rl, known := extensions[protoreflect.FullName(shortType(url))]
		if !known {
			rl = ignored(fmt.Sprintf("extension %q, given as a struct, is not supported", url))
		}
		return r.note(field, rl)
	}
	if rl, ok := extensions[name]; ok {
		return r.note(field, rl)
	}
	if !slices.Contains(walked[fd.ContainingMessage().FullName()], name) {
		return r.note(field, rule{class: mesh.UnsupportedAction, msg: fmt.Sprintf("extension %q is not supported", packed.GetTypeUrl())})
	}
	msg, err := packed.UnmarshalNew()
	if err != nil {
		r.invalid(field, "cannot be decoded as %s: %v", name, err)
		return false
	}
	if empty(msg.ProtoReflect()) {
		r.add(field, mesh.Default, "is empty")
		return false
	}
	return r.message(msg.ProtoReflect(), field, depth+1)
}

// structType returns the type of an extension that is given as a struct, which is how control planes send what they have
// no message of.
func structType(packed *anypb.Any) (url string, ok bool) {
	for _, m := range []interface {
		proto.Message
		GetTypeUrl() string
	}{&xdsv3.TypedStruct{}, &udpav1.TypedStruct{}} {
		if packed.MessageIs(m) {
			err := packed.UnmarshalTo(m)
			return m.GetTypeUrl(), err == nil
		}
	}
	return "", false
}

// empty tells whether a message has no field set at all.
func empty(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return false
	}
	any := false
	m.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		any = true
		return false
	})
	return !any
}

// note records the verdict of a rule.
func (r *report) note(field string, rl rule) bool {
	r.add(field, rl.class, rl.msg)
	return rl.class == mesh.UnsupportedCondition
}
