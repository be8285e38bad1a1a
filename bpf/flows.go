// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Buckets is the number of buckets of a request's duration (KM_BUCKETS); the last one
// has no bound.
const Buckets = len(RequestStats{}.Buckets)

// RequestLocal is the flag of requests that the program answered (KM_REQUEST_LOCAL).
const RequestLocal = 1

var flowStates = [...]string{
	abiFlowStateKM_FLOW_FREE:   "free",
	abiFlowStateKM_FLOW_SYN:    "syn",
	abiFlowStateKM_FLOW_OPEN:   "open",
	abiFlowStateKM_FLOW_CLOSED: "closed",
}

var legStates = [...]string{
	abiLegStateKM_LEG_NONE: "none",
	abiLegStateKM_LEG_SYN:  "syn",
	abiLegStateKM_LEG_OPEN: "open",
	abiLegStateKM_LEG_DEAD: "dead",
}

var pins = [...]string{
	abiPinKM_PIN_NONE:         "",
	abiPinKM_PIN_TLS:          "tls",
	abiPinKM_PIN_H2:           "h2",
	abiPinKM_PIN_OPAQUE:       "opaque",
	abiPinKM_PIN_CONNECT:      "connect",
	abiPinKM_PIN_SERVER_FIRST: "server_first",
	abiPinKM_PIN_UPGRADED:     "upgraded",
	abiPinKM_PIN_MALFORMED:    "malformed",
	abiPinKM_PIN_UNTIL_CLOSE:  "until_close",
	abiPinKM_PIN_LOST:         "lost",
}

func word(words []string, n uint8) string {
	if int(n) < len(words) {
		return words[n]
	}
	return "unknown"
}

// StateName is the flow's state in a word.
func (f *abiFlow) StateName() string { return word(flowStates[:], f.State) }

// PinName says why the flow stays with its endpoint; empty: it does not.
func (f *abiFlow) PinName() string { return word(pins[:], f.Pin) }

// StateName is the leg's state in a word.
func (l *abiLeg) StateName() string { return word(legStates[:], l.State) }

// Idle is how long ago the flow's last packet was, at a time of FlowClock's.
func (f *abiFlow) Idle(now uint32) time.Duration {
	// Both wrap after 49 days; a packet may have come since now was read.
	return time.Duration(max(int32(now-f.Seen), 0)) * time.Millisecond
}

// FlowClock is the time as Flow.Seen has it: milliseconds of CLOCK_MONOTONIC, which
// bpf_ktime_get_ns reads, cut to 32 bits.
func FlowClock() (uint32, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return uint32(t.Nano() / int64(time.Millisecond)), nil
}

// LiveFlows copies the connections that are being opened or are open. Programs write
// meanwhile: fields of one flow may be a packet apart, but they are of one connection.
func (r *Runtime) LiveFlows() []Flow { return liveFlows(r.Flows()) }

func liveFlows(all []Flow) []Flow {
	var out []Flow
	for i := range all {
		f := &all[i]
		if f.State != FlowSyn && f.State != FlowOpen {
			continue
		}
		// One that was given away while it was copied is a mixture of two.
		generation := atomic.LoadUint32(&f.Generation)
		c := *f
		if atomic.LoadUint32(&f.Generation) != generation || (c.State != FlowSyn && c.State != FlowOpen) {
			continue
		}
		out = append(out, c)
	}
	return out
}
