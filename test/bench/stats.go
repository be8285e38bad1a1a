// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
)

// spread is what is said about a set of values: the middle, the middle half, and the ends. All are 0 for none.
type spread struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Q1     float64 `json:"q1"`
	Q3     float64 `json:"q3"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	return spread{
		N: len(v), Min: v[0], Max: v[len(v)-1],
		Q1: quantile(v, 0.25), Median: quantile(v, 0.5), Q3: quantile(v, 0.75),
	}
}

// quantile of sorted values, straight between the two that are nearest. 0 for none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	low, part := math.Modf(at)
	i := int(low)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + part*(sorted[i+1]-sorted[i])
}

// variation is the coefficient of variation of two values: their standard deviation (of a sample) over their mean.
func variation(a, b float64) float64 {
	if a+b <= 0 {
		return math.Inf(1)
	}
	return math.Sqrt2 * math.Abs(a-b) / (a + b)
}
