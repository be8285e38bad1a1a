// SPDX-License-Identifier: Apache-2.0

package automaton

import (
	"errors"
	"fmt"
	"time"
)

// Limits that the layout of a Program sets, whatever the Budget.
const (
	MaxStates     = 1 << 15 // a state is 15 bits of a table entry
	MaxRoutes     = 4096
	MaxDimensions = 64
	MaxHits       = 1024
	MaxConds      = 16 // infixes that one route asks about in headers and parameters
)

// Budget bounds what a virtual host may cost. The zero Budget is the largest.
type Budget struct {
	States int // of the table: its rows, however wide, which Bytes bounds
	Bytes  int // of the whole Program
	Nodes  int // of the patterns' automata before they are made deterministic
	// Work is the number of steps of compiling: twenty million take less than a second.
	// It is not a time, so that whether a virtual host is accepted does not depend on
	// what else the machine does.
	Work int
	// Time bounds Classes, which nothing depends on but a person's patience.
	Time time.Duration
}

// DefaultBudget is what a virtual host may cost unless it is set otherwise.
var DefaultBudget = Budget{States: MaxStates, Bytes: 4 << 20, Nodes: 400_000, Work: 20_000_000, Time: time.Second}

func (b Budget) withDefaults() Budget {
	d := DefaultBudget
	if b.States <= 0 || b.States > d.States {
		b.States = d.States
	}
	if b.Bytes <= 0 || b.Bytes > d.Bytes {
		b.Bytes = d.Bytes
	}
	if b.Nodes <= 0 || b.Nodes > d.Nodes {
		b.Nodes = d.Nodes
	}
	if b.Work <= 0 {
		b.Work = d.Work
	}
	if b.Time <= 0 {
		b.Time = d.Time
	}
	return b
}

// BudgetError says that a virtual host costs more than its Budget.
type BudgetError struct {
	VirtualHost string
	Route       string // the route that is the likeliest reason, by name or number
	What        string // states, bytes, nodes, steps, ...
	Limit       string
}

func (e *BudgetError) Error() string {
	return fmt.Sprintf("virtual host %s: route %s: needs more than %s %s: make its patterns simpler (anchor regexes, replace .* by [^/]+), or send it to a waypoint",
		e.VirtualHost, e.Route, e.Limit, e.What)
}

var (
	errStates = errors.New("states")
	errNodes  = errors.New("nodes")
	errWork   = errors.New("steps")
	errTime   = errors.New("time")
	errBytes  = errors.New("bytes")
)

// limits bound what a construction may take: a number of steps, or a time.
type limits struct {
	work int // 0: any
	done int
	end  time.Time
	now  func() time.Time // nil: the time does not count
	next int              // steps at which to look at the clock
}

// tick counts n steps.
func (l *limits) tick(n int) error {
	l.done += n
	if l.work > 0 && l.done > l.work {
		return errWork
	}
	if l.now != nil && l.done >= l.next {
		l.next = l.done + 4096
		if l.now().After(l.end) {
			return errTime
		}
	}
	return nil
}
