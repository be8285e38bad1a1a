// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"fmt"
	"slices"
	"strings"

	"kmesh/helper/mesh"
)

// file is what is known about one file of the directory.
type file struct {
	path string
	// sum of the bytes that were parsed last.
	sum [32]byte
	// latest is the newest version; nil when it is bad, with the reasons.
	latest   *parsed
	problems []mesh.Verdict
	// good is the last version that was used; nil if there never was one.
	good *parsed
	// conflicts say why latest is not used although it can be read.
	conflicts []mesh.Verdict
}

// choose decides which version of each file is used: the latest if it can be
// read and has no name in common with another file that is used, else the last
// good one, else none. It returns one version per file, in the files' order, and
// whether every file has one.
func choose(files []*file) (chosen []*parsed, whole bool) {
	chosen = make([]*parsed, len(files))
	for i, f := range files {
		f.conflicts = nil
		chosen[i] = f.latest
		if f.latest == nil {
			chosen[i] = f.good
		}
	}
	// A file that steps back to its last good version may meet another one
	// there, so this goes on until it is quiet. Every round takes a step back
	// for at least one file, so it ends.
	for {
		moved := false
		for _, c := range duplicates(files, chosen) {
			for _, i := range []int{c.a.file, c.b.file} {
				f := files[i]
				if chosen[i] == nil || chosen[i] == f.good {
					continue
				}
				f.conflicts = append(f.conflicts, c.verdict(files, i))
			}
		}
		for i, f := range files {
			if len(f.conflicts) > 0 && chosen[i] != nil && chosen[i] != f.good {
				chosen[i] = f.good
				moved = true
			}
		}
		if !moved {
			break
		}
	}
	whole = true
	for i := range files {
		whole = whole && chosen[i] != nil
	}
	return chosen, whole
}

// byName are the types whose resources are used only if another one names them.
var byName = []string{AssignmentType, RouteType}

// place is one resource of one file.
type place struct {
	file int
	res  *Resource
}

// clash is one name that two files have.
type clash struct{ a, b place }

// verdict says it from the side of one of the two files.
func (c clash) verdict(files []*file, side int) mesh.Verdict {
	mine, other := c.a, c.b
	if side == c.b.file {
		mine, other = c.b, c.a
	}
	return mesh.Verdict{
		Source: files[side].path, Type: short(mine.res.typeURL), Resource: mine.res.Name, Field: mine.res.Path,
		Class:   mesh.Invalid,
		Message: fmt.Sprintf("duplicate name: %s of %s has it too: remove one", other.res.Path, files[other.file].path),
	}
}

// duplicates finds the names that more than one of the chosen versions has.
func duplicates(files []*file, chosen []*parsed) []clash {
	type key struct{ typeURL, name string }
	first := map[key]place{}
	var out []clash
	for i := range files {
		if chosen[i] == nil {
			continue
		}
		for j := range chosen[i].resources {
			res := &chosen[i].resources[j]
			k := key{res.typeURL, res.Name}
			if p, ok := first[k]; ok {
				out = append(out, clash{p, place{i, res}})
				continue
			}
			first[k] = place{i, res}
		}
	}
	return out
}

// updates are the chosen resources by type, each type complete.
func updates(chosen []*parsed) []Update {
	byType := map[string][]Resource{}
	for _, p := range chosen {
		if p == nil {
			continue
		}
		for _, r := range p.resources {
			byType[r.typeURL] = append(byType[r.typeURL], r)
		}
	}
	var out []Update
	for _, t := range []string{ClusterType, AssignmentType, ListenerType, RouteType} {
		list := byType[t]
		slices.SortFunc(list, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, Update{Type: t, Resources: list, Complete: true})
	}
	return out
}
