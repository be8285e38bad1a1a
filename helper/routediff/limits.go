// SPDX-License-Identifier: Apache-2.0

package routediff

import (
	"fmt"
	"time"
)

// Limits bound what a comparison may cost. Zero fields have the values of DefaultLimits.
type Limits struct {
	States int           // of the automaton of a dimension
	Steps  int           // of the search in a pair of virtual hosts, or for one route
	Time   time.Duration // of each automaton
}

// DefaultLimits are enough for thousands of ordinary routes in a virtual host.
var DefaultLimits = Limits{States: 300_000, Steps: 1_000_000, Time: 30 * time.Second}

func (l Limits) withDefaults() Limits {
	if l.States <= 0 {
		l.States = DefaultLimits.States
	}
	if l.Steps <= 0 {
		l.Steps = DefaultLimits.Steps
	}
	if l.Time <= 0 {
		l.Time = DefaultLimits.Time
	}
	return l
}

// LimitError says that a comparison costs more than its Limits.
type LimitError struct {
	Where string // virtual host, and route if there is one
	What  string // the dimension, or the search
	Err   error  // may be nil
}

func (e *LimitError) Error() string {
	s := fmt.Sprintf("%s: %s: too complex to compare", e.Where, e.What)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s + ": make the patterns there simpler (anchor them, fewer \"contains\")"
}

func (e *LimitError) Unwrap() error { return e.Err }
