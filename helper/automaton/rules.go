// SPDX-License-Identifier: Apache-2.0

package automaton

// Kind is what a machine has decided about a head.
type Kind uint8

// The kinds of decision.
const (
	Incomplete Kind = iota // more bytes are needed
	Route                  // a whole head
	Reject                 // answered with a status
	Pin                    // the connection's bytes are not looked at any more
)

func (k Kind) String() string {
	return [...]string{"incomplete", "route", "reject", "pin"}[k]
}

// Rule is a rule of package head that a table can fire, by its name there.
type Rule struct {
	ID     string
	Kind   Kind
	Status uint16
	Reason string // of a Pin
}

// Rules are the rules by number; bpf/table.h has the numbers of those that the
// machine itself fires. The order is part of a Program's format.
var Rules = []Rule{
	{},
	{ID: "tls", Kind: Pin, Reason: "tls"},
	{ID: "h2", Kind: Pin, Reason: "h2"},
	{ID: "opaque", Kind: Pin, Reason: "opaque"},
	{ID: "connect", Kind: Pin, Reason: "connect"},
	{ID: "leading-blank", Kind: Reject, Status: 400},
	{ID: "request-line-blank", Kind: Reject, Status: 400},
	{ID: "target-form", Kind: Reject, Status: 400},
	{ID: "target-byte", Kind: Reject, Status: 400},
	{ID: "fragment", Kind: Reject, Status: 400},
	{ID: "target-authority", Kind: Reject, Status: 400},
	{ID: "star-target", Kind: Reject, Status: 400},
	{ID: "version", Kind: Reject, Status: 400},
	{ID: "version-unsupported", Kind: Reject, Status: 505},
	{ID: "bare-lf", Kind: Reject, Status: 400},
	{ID: "bare-cr", Kind: Reject, Status: 400},
	{ID: "obs-fold", Kind: Reject, Status: 400},
	{ID: "blank-before-colon", Kind: Reject, Status: 400},
	{ID: "field-name", Kind: Reject, Status: 400},
	{ID: "field-value-byte", Kind: Reject, Status: 400},
	{ID: "too-many-fields", Kind: Reject, Status: 431},
	{ID: "head-too-long", Kind: Reject, Status: 431},
	{ID: "host-missing", Kind: Reject, Status: 400},
	{ID: "repeated-host", Kind: Reject, Status: 400},
	{ID: "host", Kind: Reject, Status: 400},
	{ID: "host-differs", Kind: Reject, Status: 400},
	{ID: "repeated-content-length", Kind: Reject, Status: 400},
	{ID: "content-length", Kind: Reject, Status: 400},
	{ID: "te-with-content-length", Kind: Reject, Status: 400},
	{ID: "transfer-encoding", Kind: Reject, Status: 400},
	{ID: "repeated-transfer-encoding", Kind: Reject, Status: 400},
	{ID: "te-in-1.0", Kind: Reject, Status: 400},
	{ID: "status-line", Kind: Pin, Reason: "malformed"},
	{ID: "switching", Kind: Pin, Reason: "upgrade"},
}

var ruleNumbers = func() map[string]uint8 {
	m := make(map[string]uint8, len(Rules))
	for i, r := range Rules {
		m[r.ID] = uint8(i)
	}
	return m
}()

func rule(id string) uint8 {
	n, ok := ruleNumbers[id]
	if !ok {
		panic("automaton: no rule " + id)
	}
	return n
}
