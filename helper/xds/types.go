// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"kmesh/helper/mesh"
)

// Type is one kind of resource that a server is asked for.
type Type struct {
	// URL is the type's URL.
	URL string
	// ByName: only what Consumer.Wanted names is asked for. Otherwise everything is.
	ByName bool
	// Decode unpacks one resource: its name, its message, and what is wrong with it
	// (field and message; the rest of the verdicts is filled in). The first argument
	// is the name in the envelope of the delta protocol, which may be all that there
	// is; the second has the type's URL. An error says that it cannot be used at all.
	Decode func(name string, a *anypb.Any) (Resource, error)
}

// Unpack makes a resource of what was sent, or kept: its name in the envelope, if it had
// one, its version, where it came from, and its bytes.
func (t Type) Unpack(name, version, source string, packed *anypb.Any) (Resource, error) {
	if got := packed.GetTypeUrl(); short(got) == "" || string(packed.MessageName()) != strings.TrimPrefix(t.URL, typePrefix) {
		return Resource{}, fmt.Errorf("has type %q in a response of type %q", got, t.URL)
	}
	res, err := t.Decode(name, packed)
	if err != nil {
		return Resource{}, err
	}
	if res.Name == "" {
		return Resource{}, errNoName
	}
	res.Raw = packed.GetValue()
	if res.Hash == [sha256.Size]byte{} {
		res.Hash = sha256.Sum256(res.Raw)
	}
	res.Version, res.Source, res.typeURL = version, source, t.URL
	for i := range res.Invalid {
		v := &res.Invalid[i]
		v.Source, v.Type, v.Resource, v.Class = source, short(t.URL), res.Name, mesh.Invalid
	}
	return res, nil
}

// EnvoyTypes are the types that the mesh is made of, in the order in which they
// depend on each other.
func EnvoyTypes() []Type {
	return []Type{
		{URL: ClusterType, Decode: decodeEnvoy},
		{URL: AssignmentType, ByName: true, Decode: decodeEnvoy},
		{URL: ListenerType, Decode: decodeEnvoy},
		{URL: RouteType, ByName: true, Decode: decodeRoutes},
	}
}

// decodeEnvoy decodes and validates a resource that has its name inside.
func decodeEnvoy(name string, a *anypb.Any) (Resource, error) {
	_, res, err := decode(a)
	if err != nil {
		return Resource{}, err
	}
	if name != "" && name != res.Name {
		return Resource{}, fmt.Errorf("is called %q in the envelope and %q inside", name, res.Name)
	}
	for _, e := range validate(res.Message, "") {
		res.Invalid = append(res.Invalid, mesh.Verdict{Field: e.field, Message: e.reason})
	}
	return res, nil
}

// Named decodes the resources of a type that has no names inside: the envelope of
// the delta protocol names them.
func Named[M proto.Message](alloc func() M) func(string, *anypb.Any) (Resource, error) {
	return func(name string, a *anypb.Any) (Resource, error) {
		m := alloc()
		if err := proto.Unmarshal(a.GetValue(), m); err != nil {
			return Resource{}, fmt.Errorf("decode %s: %w", a.GetTypeUrl(), err)
		}
		return Resource{Name: name, Message: m, Hash: sha256.Sum256(a.GetValue())}, nil
	}
}
