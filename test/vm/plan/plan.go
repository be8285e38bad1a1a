// SPDX-License-Identifier: Apache-2.0

// Package plan is what the machine that starts a virtual machine and the one inside say to each other: a plan, in the
// initial file system, and the results, line by line on a serial port of their own.
package plan

import (
	"time"

	"kmesh/test/programs"
)

// Where things are in the guest.
const (
	Path = "/plan.json"
	// Bin holds the programs of the steps and what they start.
	Bin = "/bin"
)

// Port is the serial port that results are written to, on an architecture: the second one of a PC, the only one of its
// kind elsewhere.
func Port(arch string) string {
	if arch == "amd64" {
		return "/dev/ttyS1"
	}
	return "/dev/ttyS0"
}

// Plan is what the guest does, in this order, before it turns itself off.
type Plan struct {
	Modules []string `json:"modules"` // files, in the order to load them
	Steps   []Step   `json:"steps"`   // after every program was loaded and measured
}

// Step is a command.
type Step struct {
	Name  string        `json:"name"`
	Args  []string      `json:"args"`
	Env   []string      `json:"env"`
	Limit time.Duration `json:"limit_ns"`
}

// Result is a line: of a step, or of the programs, or the last one.
type Result struct {
	Step    string           `json:"step,omitempty"`
	Kernel  *programs.Kernel `json:"kernel,omitempty"`
	Done    bool             `json:"done,omitempty"` // all that was planned was done
	Err     string           `json:"err,omitempty"`
	Seconds float64          `json:"seconds,omitempty"`
}
