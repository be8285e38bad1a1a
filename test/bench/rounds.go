// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
)

// sample is one measurement.
type sample struct {
	Rate float64 `json:"rate"` // in the workload's unit
	P50  float64 `json:"p50_us,omitempty"`
	P99  float64 `json:"p99_us,omitempty"`
	CPU  float64 `json:"cpu_us"` // by the workload's unit of work: a request, or a MB
	Soft float64 `json:"softirq_share"`
}

// round is one measurement of everything, between two of the reference: what drifts slowly falls out of the ratios.
type round struct {
	Before  sample            `json:"before"` // the reference
	Others  map[string]sample `json:"others"`
	After   sample            `json:"after"` // the reference again; also Before of the next round
	Noise   float64           `json:"noise"` // coefficient of variation of Before.Rate and After.Rate
	Refused bool              `json:"refused,omitempty"`
}

// reference is what the others are compared with in a round.
func (r round) reference() sample {
	return sample{
		Rate: (r.Before.Rate + r.After.Rate) / 2,
		P50:  (r.Before.P50 + r.After.P50) / 2,
		P99:  (r.Before.P99 + r.After.P99) / 2,
		CPU:  (r.Before.CPU + r.After.CPU) / 2,
		Soft: (r.Before.Soft + r.After.Soft) / 2,
	}
}

// plan of rounds: how many are wanted, how many may be refused and repeated, and how noisy one may be.
type plan struct {
	Rounds  int
	Repeats int
	Noise   float64
}

// interleave measures the reference and the others in turn (a b c a c b a ...) until it has the rounds it wants or has
// repeated as often as it may. The refused ones are in the answer, marked.
func interleave(ctx context.Context, p plan, reference string, others []string,
	measure func(ctx context.Context, variant string) (sample, error),
) ([]round, error) {
	before, err := measure(ctx, reference)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", reference, err)
	}
	var rounds []round
	order := slices.Clone(others)
	for good, refused := 0, 0; good < p.Rounds && refused <= p.Repeats; {
		r := round{Before: before, Others: map[string]sample{}}
		for _, v := range order {
			if r.Others[v], err = measure(ctx, v); err != nil {
				return rounds, fmt.Errorf("%s: %w", v, err)
			}
		}
		slices.Reverse(order) // nobody is always the first after the reference
		if r.After, err = measure(ctx, reference); err != nil {
			return rounds, fmt.Errorf("%s: %w", reference, err)
		}
		before = r.After
		r.Noise = variation(r.Before.Rate, r.After.Rate)
		if r.Refused = r.Noise > p.Noise; r.Refused {
			refused++
		} else {
			good++
		}
		rounds = append(rounds, r)
	}
	return rounds, nil
}

// accepted are the rounds that count.
func accepted(rounds []round) []round {
	return slices.DeleteFunc(slices.Clone(rounds), func(r round) bool { return r.Refused })
}
