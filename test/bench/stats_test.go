// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		want   spread
	}{
		{"none", nil, spread{}},
		{"one", []float64{7}, spread{1, 7, 7, 7, 7, 7}},
		{"two", []float64{4, 2}, spread{2, 3, 2.5, 3.5, 2, 4}},
		{"odd, not sorted", []float64{5, 1, 4, 2, 3}, spread{5, 3, 2, 4, 1, 5}},
		{"even, not sorted", []float64{40, 10, 30, 20}, spread{4, 25, 17.5, 32.5, 10, 40}},
		{"one far off", []float64{1, 1, 1, 1000}, spread{4, 1, 1, 250.75, 1, 1000}},
	} {
		before := slices.Clone(tc.values)
		if got := spreadOf(tc.values); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
		if !slices.Equal(tc.values, before) {
			t.Errorf("%s: the values were moved: %v", tc.name, tc.values)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 101)
	for i := range hundred {
		hundred[i] = float64(i)
	}
	for _, tc := range []struct {
		values  []float64
		q, want float64
	}{
		{nil, 0.5, 0}, {[]float64{3}, 0.99, 3}, {hundred, 0, 0}, {hundred, 0.99, 99}, {hundred, 1, 100}, {[]float64{0, 10}, 0.99, 9.9},
	} {
		if got := quantile(tc.values, tc.q); math.Abs(got-tc.want) > 1e-9 {
			t.Errorf("quantile(%v values, %v) = %v, want %v", len(tc.values), tc.q, got, tc.want)
		}
	}
}

func TestVariation(t *testing.T) {
	for _, tc := range []struct{ a, b, want float64 }{
		{100, 100, 0},
		{90, 110, math.Sqrt2 * 10 / 100}, // deviation of a sample of two: the difference over the root of 2
		{110, 90, math.Sqrt2 * 10 / 100},
		{0, 100, math.Sqrt2},
		{0, 0, math.Inf(1)}, // nothing moved at all: never good
	} {
		if got := variation(tc.a, tc.b); math.Abs(got-tc.want) > 1e-12 {
			t.Errorf("variation(%v, %v) = %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}

func TestInterleave(t *testing.T) {
	for _, tc := range []struct {
		name    string
		plan    plan
		directs []float64 // what direct does, in turn; the last one from then on
		order   string
		refused []bool
	}{
		{"quiet", plan{2, 2, 0.15}, []float64{100}, "d a b d b a d", []bool{false, false}},
		{"one jump is one round", plan{2, 2, 0.15}, []float64{100, 200}, "d a b d b a d a b d", []bool{true, false, false}},
		{"a dip is two", plan{1, 2, 0.15}, []float64{100, 50, 100}, "d a b d b a d a b d", []bool{true, true, false}},
		{"at the bound is good", plan{1, 0, math.Sqrt2 * 10 / 100}, []float64{90, 110}, "d a b d", []bool{false}},
		{"over the bound is not", plan{1, 0, 0.14}, []float64{90, 110}, "d a b d", []bool{true}},
		{"slow drift is good", plan{3, 0, 0.15}, []float64{100, 115, 130, 145}, "d a b d b a d a b d", []bool{false, false, false}},
		{"never quiet: bounded", plan{5, 2, 0.15}, []float64{100, 200, 100, 200, 100, 200}, "d a b d b a d a b d", []bool{true, true, true}},
		{"nothing moves", plan{1, 1, 0.15}, []float64{0}, "d a b d b a d", []bool{true, true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var order []string
			directs := tc.directs
			rounds, err := interleave(context.Background(), tc.plan, "d", []string{"a", "b"}, func(_ context.Context, v string) (sample, error) {
				order = append(order, v)
				if v != "d" {
					return sample{Rate: 50}, nil
				}
				rate := directs[0]
				if len(directs) > 1 {
					directs = directs[1:]
				}
				return sample{Rate: rate}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(order, " "); got != tc.order {
				t.Errorf("measured %q, want %q", got, tc.order)
			}
			var refused []bool
			good := 0
			for _, r := range rounds {
				refused = append(refused, r.Refused)
				if !r.Refused {
					good++
				}
				if len(r.Others) != 2 {
					t.Errorf("a round has %v", r.Others)
				}
			}
			if !slices.Equal(refused, tc.refused) {
				t.Errorf("refused %v, want %v", refused, tc.refused)
			}
			if got := len(accepted(rounds)); got != good {
				t.Errorf("%d rounds accepted, want %d", got, good)
			}
		})
	}
}

func TestInterleaveStops(t *testing.T) {
	broken := errors.New("broken")
	calls := 0
	_, err := interleave(context.Background(), plan{5, 5, 1}, "d", []string{"a"}, func(_ context.Context, v string) (sample, error) {
		calls++
		if v == "a" {
			return sample{}, broken
		}
		return sample{Rate: 1}, nil
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "a: ") || calls != 2 {
		t.Errorf("%v after %d calls, want the failure of a after 2", err, calls)
	}
}

// A ratio is to the mean of the references on both sides, and refused rounds are in no figure.
func TestOutcome(t *testing.T) {
	o := outcomeOf(workload{Key: "x"}, []round{
		{Before: sample{Rate: 90, P50: 10}, After: sample{Rate: 110, P50: 30}, Others: map[string]sample{"a": {Rate: 50, P50: 40}}},
		{Before: sample{Rate: 110, P50: 30}, After: sample{Rate: 900}, Others: map[string]sample{"a": {Rate: 900}}, Refused: true},
	})
	if o.Accepted != 1 || o.Refused != 1 {
		t.Errorf("%d accepted, %d refused", o.Accepted, o.Refused)
	}
	if got := o.Variants[direct].Rate; got.Median != 100 || got.N != 1 {
		t.Errorf("direct: %+v", got)
	}
	if got := o.Ratios["a"]; got.Rate.Median != 0.5 || got.P50.Median != 2 || got.CPU.Median != 0 {
		t.Errorf("a to direct: %+v", got)
	}
}

// Each row is judged by its own ratio: to direct, to the same endpoint's, to HAProxy's.
func TestRoutedRows(t *testing.T) {
	others := map[string]sample{
		kmesh: {Rate: 99, P50: 10}, l7: {Rate: 92, P50: 12}, same: {Rate: 95, P50: 11}, haproxy: {Rate: 40, P50: 30},
	}
	rounds := []round{{Before: sample{Rate: 100, P50: 10}, After: sample{Rate: 100, P50: 10}, Others: others}}
	var got []string
	for _, w := range []workload{
		{Key: "echo", others: []string{kmesh, haproxy}},
		{Key: "keepalive1", Unit: "requests/s", others: []string{kmesh, l7, haproxy}},
		{Key: "switch1", Unit: "requests/s", others: []string{l7, same, haproxy}, switches: true},
		{Key: "get", Unit: "Gbit/s", others: []string{l7, haproxy}},
	} {
		for _, r := range routedRows(outcomeOf(w, rounds)) {
			got = append(got, strings.Join([]string{w.Key, r.Kmesh, r.Must, string(r.Reached), r.Design, string(r.There)}, "; "))
		}
	}
	want := []string{
		"keepalive1; 0.92x (0.92-0.92); >= 0.90x; reached; >= 0.95x; not reached",
		"keepalive1; 1.20x (1.20-1.20); <= 1.05x; not reached; ; ",
		"keepalive1; 2.30x (2.30-2.30); >= 2.5x; not reached; ; ",
		"switch1; 1.09x (1.09-1.09); <= 1.05x; not reached; ; ",
		"switch1; 2.30x (2.30-2.30); >= 1.8x; reached; ; ",
		"get; 0.92x (0.92-0.92); >= 0.90x; reached; >= 0.95x; not reached",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A fast answer that took another way is no answer.
func TestEvents(t *testing.T) {
	for _, tc := range []struct {
		name, variant string
		switches      bool
		did           events
		good          bool
	}{
		{"nothing was routed", direct, false, events{}, true},
		{"direct was routed", direct, false, events{flows: 1}, false},
		{"L4 was routed", kmesh, false, events{flows: 1}, false},
		{"routed", l7, false, events{flows: 1}, true},
		{"not routed", l7, false, events{}, false},
		{"not routed, beside", beside, false, events{}, false},
		{"a connection was pinned", l7, false, events{flows: 2, pinned: 1}, false},
		{"a request was answered here", l7, false, events{flows: 2, answered: 1}, false},
		{"all switch", l7, true, events{flows: 1, switched: 100}, true},
		{"nearly all switch", l7, true, events{flows: 1, switched: 90}, true},
		{"many do not switch", l7, true, events{flows: 1, switched: 89}, false},
		{"none should switch", l7, false, events{flows: 1, switched: 1}, false},
		{"the same endpoint", same, true, events{flows: 1}, true},
		{"not the same endpoint", same, true, events{flows: 1, switched: 1}, false},
	} {
		if err := tc.did.check(tc.variant, tc.switches, 100); (err == nil) != tc.good {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if got := (events{5, 6, 7, 8}).minus(events{1, 2, 3, 4}); got != (events{4, 4, 4, 4}) {
		t.Errorf("minus: %+v", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   verdict
	}{
		{nil, unknown},
		{[]float64{0.98}, reached},
		{[]float64{0.979}, notReached},
		{[]float64{0.99, 1, 1.01}, reached},
		{[]float64{0.9, 0.95, 1, 1.01, 1.02}, "reached, within the spread"},
		{[]float64{0.9, 0.95, 0.97, 0.99, 1}, "not reached, within the spread"},
		{[]float64{0.5, 1, 1, 1, 1}, reached}, // one bad round is an end, not the middle
		{[]float64{0.9, 0.91, 0.92}, notReached},
	} {
		if got := atLeast(spreadOf(tc.values), 0.98); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.values, got, tc.want)
		}
	}
	for _, tc := range []struct {
		values []float64
		want   verdict
	}{
		{nil, unknown},
		{[]float64{1.05}, reached},
		{[]float64{1.051}, notReached},
		{[]float64{1, 1, 9}, "reached, within the spread"},
		{[]float64{0.1, 0.9, 1.1, 1.2, 1.3}, "not reached, within the spread"},
		{[]float64{1, 1, 1, 1, 9}, reached},
	} {
		if got := atMost(spreadOf(tc.values), 1.05); got != tc.want {
			t.Errorf("at most: %v: %s, want %s", tc.values, got, tc.want)
		}
	}
	if below(19.9, 20) != reached || below(20, 20) != notReached {
		t.Error("below the limit means below")
	}
}
