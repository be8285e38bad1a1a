// SPDX-License-Identifier: Apache-2.0

package bpf

import "fmt"

// Event is an event of the L7 path: an index of km_events (abi_watch.h, enum event).
type Event uint32

// eventNames are the enumeration's own words.
var eventNames = [Events]string{
	abiEventKM_EVENT_FLOW:             "flow",
	abiEventKM_EVENT_CONFIRMED:        "confirmed",
	abiEventKM_EVENT_REBOUND:          "rebound",
	abiEventKM_EVENT_SWITCH_PARKED:    "switch_parked",
	abiEventKM_EVENT_SWITCH_NEW:       "switch_new",
	abiEventKM_EVENT_PIN_TLS:          "pin_tls",
	abiEventKM_EVENT_PIN_H2:           "pin_h2",
	abiEventKM_EVENT_PIN_OPAQUE:       "pin_opaque",
	abiEventKM_EVENT_PIN_CONNECT:      "pin_connect",
	abiEventKM_EVENT_PIN_SERVER_FIRST: "pin_server_first",
	abiEventKM_EVENT_PIN_UPGRADED:     "pin_upgraded",
	abiEventKM_EVENT_PIN_MALFORMED:    "pin_malformed",
	abiEventKM_EVENT_PIN_UNTIL_CLOSE:  "pin_until_close",
	abiEventKM_EVENT_PIN_LOST:         "pin_lost",
	abiEventKM_EVENT_REJECTED:         "rejected",
	abiEventKM_EVENT_NO_ROUTE:         "no_route",
	abiEventKM_EVENT_NO_ENDPOINT:      "no_endpoint",
	abiEventKM_EVENT_REFUSED:          "refused",
	abiEventKM_EVENT_TIMEOUT:          "timeout",
	abiEventKM_EVENT_HELD:             "held",
	abiEventKM_EVENT_HOLD_FULL:        "hold_full",
	abiEventKM_EVENT_FLOW_FULL:        "flow_full",
	abiEventKM_EVENT_QUOTA:            "quota",
	abiEventKM_EVENT_LOST:             "lost",
	abiEventKM_EVENT_LEG_PORT:         "leg_port",
	abiEventKM_EVENT_DISORDER:         "disorder",
	abiEventKM_EVENT_HIDDEN_END:       "hidden_end",
	abiEventKM_EVENT_BUSY:             "busy",
	abiEventKM_EVENT_CHALLENGE:        "challenge",
	abiEventKM_EVENT_RECLAIMED:        "reclaimed",
	abiEventKM_EVENT_TRACE_FULL:       "trace_full",
}

// String returns the word used as the label "event".
func (e Event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return "unknown"
}

// EventCounts reads km_events: how often each event occurred, in every layout.
func (r *Runtime) EventCounts() (counts [Events]uint64, err error) {
	maps, done, err := r.Counted("km_events")
	if err != nil {
		return counts, err
	}
	defer done()
	for _, m := range maps {
		for i := range min(len(counts), int(m.MaxEntries())) {
			var n uint64
			if err := m.Lookup(uint32(i), &n); err != nil {
				return counts, fmt.Errorf("map km_events: %w", err)
			}
			counts[i] += n
		}
	}
	return counts, nil
}
