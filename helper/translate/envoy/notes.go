// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"encoding/binary"
	"unique"

	"kmesh/helper/mesh"
)

// Notes are verdicts of one resource, without its name and source. Most resources of a kind have the same, and
// equal ones are kept once: a mesh has a handful of them.
type Notes struct{ packed unique.Handle[string] }

// NotesOf keeps verdicts, which are all of one resource.
func NotesOf(verdicts []mesh.Verdict) Notes {
	var b []byte
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, v := range verdicts {
		b = append(b, byte(v.Class))
		text(v.Type)
		text(v.Field)
		text(v.Message)
	}
	return Notes{unique.Make(string(b))}
}

// each calls f for each verdict, in their order.
func (n Notes) each(f func(v mesh.Verdict)) {
	if n == (Notes{}) {
		return
	}
	left := n.packed.Value()
	text := func() string {
		size, at := binary.Uvarint([]byte(left[:min(len(left), binary.MaxVarintLen64)]))
		s := left[at : at+int(size)]
		left = left[at+int(size):]
		return s
	}
	for len(left) > 0 {
		v := mesh.Verdict{Class: mesh.Class(left[0])}
		left = left[1:]
		v.Type, v.Field, v.Message = text(), text(), text()
		f(v)
	}
}

// Verdicts are those of a resource.
func (n Notes) Verdicts(source, resource string) (out []mesh.Verdict) {
	n.each(func(v mesh.Verdict) {
		v.Source, v.Resource = source, resource
		out = append(out, v)
	})
	return out
}

// replay gives a report the verdicts of a part of its resource, below a field.
func (n Notes) replay(r *report, below string) {
	n.each(func(v mesh.Verdict) { r.add(join(below, v.Field), v.Class, v.Message) })
}
