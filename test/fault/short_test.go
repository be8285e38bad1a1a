// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"testing"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

// A few rows, in their short form: that the command works, and that nothing of what it looks at has broken. `make fault`
// runs all of them.
func TestShortMatrix(t *testing.T) {
	chosen, err := choose("F02,F03,F05,F06")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range chosen {
		t.Run(r.id, func(t *testing.T) {
			res := r.do(t.Context(), true)
			t.Logf("%s\n%s", header, res.text())
			if !res.holds() {
				t.Errorf("%s: it does not hold", r.fault)
			}
		})
	}
}

// A row holds only when nothing was broken, nothing leaked, and every claim is met or has a reason.
func TestHolds(t *testing.T) {
	good := func() *result {
		return &result{n: 1, claims: []claim{{what: "x", met: true}, {what: "y", why: "because"}}}
	}
	if !good().holds() || good().state() != "target not met" {
		t.Errorf("a good row: %v, %s", good().holds(), good().state())
	}
	for name, spoil := range map[string]func(*result){
		"never happened": func(r *result) { r.n = 0 },
		"broken":         func(r *result) { r.broken = 1 },
		"unenrolled":     func(r *result) { r.unenrolled = 1 },
		"leaked":         func(r *result) { r.leaked.Maps = 1 },
		"not run":        func(r *result) { r.err = errors.New("so") },
		"not met":        func(r *result) { r.claims[0].met = false },
	} {
		r := good()
		spoil(r)
		if r.holds() || r.state() != "FAILED" {
			t.Errorf("%s: the row holds", name)
		}
		if err := verdict([]*result{good(), r}, 0); err == nil {
			t.Errorf("%s: the command succeeds", name)
		}
	}
	if err := verdict([]*result{good()}, 0); err != nil {
		t.Error(err)
	}
}

// Rows that are run again take their places in the table, and no other is touched.
func TestRunAgain(t *testing.T) {
	three := []*result{
		{row: row{id: "F01", fault: "one"}, n: 1}, {row: row{id: "F02", fault: "two"}, n: 2}, {row: row{id: "F03", fault: "three"}, n: 3},
	}
	whole := markdown(three, "make fault", 0)
	for i, r := range three {
		fresh := *r
		fresh.n, fresh.notes = 77, []string{"a note"}
		got, err := again(whole, []*result{&fresh}, "bin/fault")
		if err != nil {
			t.Fatal(err)
		}
		want := slices.Clone(three)
		want[i] = &fresh
		if stripped := regexp.MustCompile(`- run again by .*\n`).ReplaceAllLiteralString(got, ""); stripped != markdown(want, "make fault", 0) {
			t.Errorf("%s run again gives\n%s", r.row.id, got)
		}
	}
	if _, err := again(whole, []*result{{row: row{id: "F04"}}}, "bin/fault"); err == nil {
		t.Error("a row that is not there was put in its place")
	}
}
