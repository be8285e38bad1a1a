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
	if below(19.9, 20) != reached || below(20, 20) != notReached {
		t.Error("below the limit means below")
	}
}
