// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"maps"
	"slices"
	"strings"
	"time"

	"kmesh/helper/mesh"
)

// unclaimed is the version that is claimed of a resource whose name is held, but in
// no version that the server should spare itself: the newest was rejected, or could
// not be had, or what is held is another server's. It will send what it has, or tell
// that it has none.
const unclaimed = "?"

// table is what is known about the resources of one type. It outlives streams.
type table struct {
	typ Type
	// server is the one in use.
	server string
	// version of the whole type that was accepted last, and whose word it is.
	version, versionFrom string
	// accepted and rejected responses, and why the last was rejected.
	accepted, rejected uint64
	lastError          string
	entries            map[string]*entry
	// nameless are the problems of the last response that no entry can have.
	nameless []mesh.Verdict
}

// entry is what is known about one resource.
type entry struct {
	state State
	since time.Time
	// heldFrom is the server whose version has been accepted, and may still be in use;
	// empty if there is none.
	heldFrom string
	// heardFrom is the server that has answered for it last; empty if none has.
	heardFrom string

	version  string // the last accepted
	refused  string // the newest, if it is not accepted
	problems []mesh.Verdict
	err      string
}

func newTable(t Type) *table { return &table{typ: t, entries: map[string]*entry{}} }

// get returns an entry; it makes one that was asked for if there is none.
func (t *table) get(name string) *entry {
	e := t.entries[name]
	if e == nil {
		e = &entry{state: Requested, since: time.Now()}
		t.entries[name] = e
	}
	return e
}

// enter changes the state.
func (e *entry) enter(s State) {
	if e.state != s {
		e.state, e.since = s, time.Now()
	}
}

// accept records an accepted version.
func (t *table) accept(name, version string) {
	e := t.get(name)
	e.enter(Acked)
	e.heldFrom, e.heardFrom = t.server, t.server
	e.version, e.refused, e.problems, e.err = version, "", nil, ""
}

// reject records a version that was not accepted.
func (t *table) reject(name, version, why string, problems []mesh.Verdict) {
	e := t.get(name)
	e.enter(Nacked)
	e.heardFrom = t.server
	e.refused, e.err, e.problems = version, why, problems
}

// fail records what the server says about a resource that it does not give.
func (t *table) fail(name, why string, problem mesh.Verdict) {
	e := t.get(name)
	e.enter(ReceivedError)
	e.heardFrom = t.server
	e.refused, e.err, e.problems = "", why, []mesh.Verdict{problem}
}

// lack records that the server does not have it. The consumer is told, so that
// nothing of it needs to be claimed, even if it keeps what it holds.
func (t *table) lack(name string) {
	e := t.get(name)
	e.enter(DoesNotExist)
	e.heldFrom, e.heardFrom = "", t.server
	e.refused, e.err, e.problems = "", "", nil
}

// heard tells whether the server in use has answered for a name, if only with an
// error.
func (t *table) heard(name string) bool {
	e := t.entries[name]
	return e != nil && e.heardFrom == t.server && (e.state == Acked || e.state == Nacked || e.state == ReceivedError)
}

// current is the version that was accepted last of the server in use; empty if
// there is none: nothing that another server has said holds for this one.
func (t *table) current() string {
	if t.versionFrom != t.server {
		return ""
	}
	return t.version
}

// retain drops what is asked for by name no longer.
func (t *table) retain(names []string) {
	maps.DeleteFunc(t.entries, func(name string, _ *entry) bool {
		_, still := slices.BinarySearch(names, name)
		return !still
	})
}

// others are the names of the entries that are neither in an update nor in a list.
func (t *table) others(u Update, but []string) (names []string) {
	given := map[string]bool{}
	for _, r := range u.Resources {
		given[r.Name] = true
	}
	for _, name := range but {
		given[name] = true
	}
	for name := range t.entries {
		if !given[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// claims are the versions that a server can spare itself, by name.
func (t *table) claims() map[string]string {
	out := make(map[string]string, len(t.entries))
	for name, e := range t.entries {
		switch {
		case e.heldFrom == "":
		case e.heldFrom != t.server || e.state != Acked:
			out[name] = unclaimed
		default:
			out[name] = e.version
		}
	}
	return out
}

// whole tells whether the server in use has sent all of these names.
func (t *table) whole(names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return !t.heard(name) || t.entries[name].state == ReceivedError })
}

// status shows the table.
func (t *table) status() TypeStatus {
	out := TypeStatus{Type: short(t.typ.URL), Version: t.version, Accepted: t.accepted, Rejected: t.rejected, LastError: t.lastError,
		States: map[State]int{}}
	for _, e := range t.entries {
		out.States[e.state]++
		if e.heldFrom != "" {
			out.Resources++
		}
	}
	return out
}

// problems are those of the newest versions, by name.
func (t *table) problems() []mesh.Verdict {
	out := slices.Clone(t.nameless)
	var bad []string
	for name, e := range t.entries {
		if len(e.problems) > 0 {
			bad = append(bad, name)
		}
	}
	slices.Sort(bad)
	for _, name := range bad {
		out = append(out, t.entries[name].problems...)
	}
	return out
}

// resources shows the entries that a function picks, by name.
func (t *table) resources(pick func(*entry) bool) (out []ResourceState) {
	for name, e := range t.entries {
		if pick(e) {
			out = append(out, ResourceState{Type: short(t.typ.URL), Name: name, State: e.state, Version: e.version,
				RejectedVersion: e.refused, LastError: e.err, Since: e.since})
		}
	}
	slices.SortFunc(out, func(a, b ResourceState) int { return strings.Compare(a.Name, b.Name) })
	return out
}
