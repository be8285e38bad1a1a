// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxDepth bounds how deep extensions may nest in extensions; real ones need
// three or four levels.
const maxDepth = 32

// maxErrors bounds what is reported about one resource.
const maxErrors = 20

// fieldError is one violated rule.
type fieldError struct {
	field  string
	reason string
}

// waived are rules of the API that are stricter than what the mesh needs: a
// weighted cluster of weight 0 is one that gets nothing, as it is in routes.
var waived = map[string]bool{
	"TcpProxy_WeightedCluster_ClusterWeightValidationError/Weight/value must be greater than or equal to 1": true,
}

// violation is the interface of the errors that the API's generated validators
// return.
type violation interface {
	Field() string
	Reason() string
	Cause() error
	ErrorName() string
}

// validate checks a message and everything packed inside it against the rules of
// the API.
func validate(m proto.Message, path string) []fieldError {
	var errs []fieldError
	check(m, path, &errs)
	inside(m.ProtoReflect(), path, 0, &errs)
	if len(errs) > maxErrors {
		rest := len(errs) - maxErrors
		errs = append(errs[:maxErrors:maxErrors], fieldError{path, fmt.Sprintf("and %d more errors", rest)})
	}
	return errs
}

// check runs the generated validator of one message.
func check(m proto.Message, path string, errs *[]fieldError) {
	v, ok := m.(interface{ ValidateAll() error })
	if !ok {
		return
	}
	if err := v.ValidateAll(); err != nil {
		flatten(err, path, errs)
	}
}

// flatten turns nested validation errors into paths.
func flatten(err error, path string, errs *[]fieldError) {
	if multi, ok := err.(interface{ AllErrors() []error }); ok {
		for _, e := range multi.AllErrors() {
			flatten(e, path, errs)
		}
		return
	}
	v, ok := err.(violation)
	if !ok {
		*errs = append(*errs, fieldError{path, err.Error()})
		return
	}
	field := join(path, snake(v.Field()))
	if v.Cause() != nil {
		flatten(v.Cause(), field, errs)
		return
	}
	if waived[v.ErrorName()+"/"+v.Field()+"/"+v.Reason()] {
		return
	}
	*errs = append(*errs, fieldError{field, v.Reason()})
}

// inside validates what is packed in Any: the generated validators do not look
// there. What this build does not know is left to the translation's verdict.
func inside(m protoreflect.Message, path string, depth int, errs *[]fieldError) {
	if depth > maxDepth {
		*errs = append(*errs, fieldError{path, fmt.Sprintf("nested more than %d levels deep", maxDepth)})
		return
	}
	if packed, ok := m.Interface().(*anypb.Any); ok {
		msg, err := packed.UnmarshalNew()
		if err != nil {
			if knownType(packed) {
				*errs = append(*errs, fieldError{path, "cannot be decoded as " + packed.GetTypeUrl()})
			}
			return
		}
		check(msg, path, errs)
		inside(msg.ProtoReflect(), path, depth+1, errs)
		return
	}
	if !mayPack(m.Descriptor()) {
		return
	}
	fields := m.Descriptor().Fields()
	for i := 0; i < fields.Len(); i++ {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		at := join(path, string(fd.Name()))
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				continue
			}
			var keys []string
			values := map[string]protoreflect.Message{}
			m.Get(fd).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				keys = append(keys, k.String())
				values[k.String()] = v.Message()
				return true
			})
			sort.Strings(keys)
			for _, k := range keys {
				inside(values[k], at+"["+strconv.Quote(k)+"]", depth+1, errs)
			}
		case fd.Message() == nil:
		case fd.IsList():
			list := m.Get(fd).List()
			for j := 0; j < list.Len(); j++ {
				inside(list.Get(j).Message(), at+"["+strconv.Itoa(j)+"]", depth, errs)
			}
		default:
			inside(m.Get(fd).Message(), at, depth, errs)
		}
	}
}

// leaves are messages that come in great numbers and cannot hold an Any that
// would need validation here.
var leaves = map[protoreflect.FullName]bool{
	"envoy.config.core.v3.Address":  true,
	"envoy.config.core.v3.Locality": true,
	"google.protobuf.Struct":        true,
	"google.protobuf.Duration":      true,
}

// mayPack tells whether it is worth looking into a message of this kind.
func mayPack(md protoreflect.MessageDescriptor) bool {
	return !leaves[md.FullName()]
}

// knownType tells whether this build knows the type in an Any.
func knownType(a *anypb.Any) bool {
	return known(string(a.MessageName()))
}

// join appends a field to a path.
func join(path, field string) string {
	if path == "" || field == "" {
		return path + field
	}
	return path + "." + field
}

// snake turns the Go name of a field, as validators give it ("FilterChains[0]"),
// into the name in the API ("filter_chains[0]").
func snake(name string) string {
	var b strings.Builder
	inBrackets := false
	for i, c := range name {
		switch {
		case c == '[':
			inBrackets = true
		case c == ']':
			inBrackets = false
		}
		if unicode.IsUpper(c) && !inBrackets {
			if i > 0 {
				b.WriteByte('_')
			}
			c = unicode.ToLower(c)
		}
		b.WriteRune(c)
	}
	return b.String()
}
