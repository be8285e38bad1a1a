// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"slices"
	"testing"
)

// row is one scenario.
type row struct {
	name string
	run  func(s *scene)
	in   where
}

// where says in which ways a row makes sense.
type where int

const (
	guessed where = 1 << iota // the service has a guess: the SYN goes to an endpoint
	local                     // it has none: the program answers the SYN
	plain                     // the same without Kmesh

	routed     = guessed | local
	everywhere = routed | plain
)

var rows []row

func add(in where, name string, run func(s *scene)) { rows = append(rows, row{name, run, in}) }

// slow are rows that are left to the full run: a request that is held waits for the
// client's timer, which doubles each time, so on a busy machine they outlast any limit.
var slow = map[string]bool{
	"pipelining to different clusters":        true,
	"pipelining, in pieces":                   true,
	"answers of the program's own, pipelined": true,
}

func families(t *testing.T, run func(t *testing.T, v6 bool)) {
	for name, v6 := range map[string]bool{"v4": false, "v6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, v6)
		})
	}
}

// TestDirect runs the rows that mean the same without Kmesh straight against a server.
func TestDirect(t *testing.T) {
	b := newBed(t, direct)
	t.Cleanup(func() { b.wantIdle(t) })
	families(t, func(t *testing.T, v6 bool) { runRows(t, b, v6, plain, nil) })
}

// TestMatrix runs every row through Kmesh.
func TestMatrix(t *testing.T) {
	for _, m := range []mode{tcx, clsact} {
		t.Run(string(m), func(t *testing.T) {
			b := newBed(t, m)
			b.tap = newTap(t, b.clients[0], 1<<15)
			t.Cleanup(func() { b.wantIdle(t) }) // after all that runs at the same time
			families(t, func(t *testing.T, v6 bool) {
				for name, in := range map[string]where{"guess": guessed, "local": local} {
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						runRows(t, b, v6, in, nil)
					})
				}
			})
		})
	}
}

// runRows runs the rows of these names, or all.
func runRows(t *testing.T, b *bed, v6 bool, in where, names []string) {
	for _, name := range names {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.name == name }) {
			t.Errorf("no row is called %q", name)
		}
	}
	for _, r := range rows {
		if r.in&in == 0 || slow[r.name] && !full || names != nil && !slices.Contains(names, r.name) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.run(newScene(t, b, v6, in == local))
		})
	}
}
