// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// words returns the members of an enumeration of the ABI that begin with prefix,
// in lower case and without it, by value.
func words(t *testing.T, prefix string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, name := range []string{"abi_http.h", "abi_watch.h"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\t`+prefix+`_(\w+) =\s+(\d+)`).FindAllStringSubmatch(string(text), -1) {
			out[m[2]] = strings.ToLower(m[1])
		}
	}
	if len(out) == 0 {
		t.Fatalf("the ABI has no %s_", prefix)
	}
	return out
}

// Each table has the words of its enumeration, and no others.
func TestWords(t *testing.T) {
	for prefix, table := range map[string][]string{
		"KM_EVENT": eventNames[:], "KM_FLOW": flowStates[:], "KM_LEG": legStates[:], "KM_PIN": pins[:], "KM_VERDICT": verdicts[:],
	} {
		want := words(t, prefix)
		if prefix == "KM_PIN" {
			want["0"] = ""
		}
		if len(table) != len(want) {
			t.Errorf("%s: %d words, want %d", prefix, len(table), len(want))
		}
		for i, got := range table {
			if want := want[fmt.Sprint(i)]; got != want {
				t.Errorf("%s %d is %q, want %q", prefix, i, got, want)
			}
		}
		if sorted := slices.Sorted(slices.Values(table)); len(slices.Compact(sorted)) != len(table) {
			t.Errorf("%s: a word stands for two", prefix)
		}
	}
	if len(eventNames) != Events {
		t.Errorf("%d events, want %d", len(eventNames), Events)
	}
	if got := Event(Events).String(); got != "unknown" {
		t.Errorf("an event beyond the last is %q", got)
	}
	if got := (&Flow{State: 9, Pin: 200}); got.StateName() != "unknown" || got.PinName() != "unknown" {
		t.Errorf("states beyond the last are %q and %q", got.StateName(), got.PinName())
	}
}

func TestIdle(t *testing.T) {
	tests := []struct {
		name      string
		seen, now uint32
		want      time.Duration
	}{
		{"a while", 1000, 4500, 3500 * time.Millisecond},
		{"over the wrap", 0xfffffff0, 0x10, 32 * time.Millisecond},
		{"a packet since", 4501, 4500, 0},
		{"a packet since, over the wrap", 1, 0xffffffff, 0},
	}
	for _, tt := range tests {
		if got := (&Flow{Seen: tt.seen}).Idle(tt.now); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestFlowClock(t *testing.T) {
	now, err := FlowClock()
	if err != nil {
		t.Fatal(err)
	}
	later, err := FlowClock()
	if err != nil {
		t.Fatal(err)
	}
	if took := later - now; took > 10_000 {
		t.Errorf("from %d to %d ms", now, later)
	}
}

func TestLiveFlows(t *testing.T) {
	all := []Flow{
		{Slot: 0, State: FlowFree}, {Slot: 1, State: FlowSyn, Generation: 7}, {Slot: 2, State: FlowOpen},
		{Slot: 3, State: FlowClosed}, {Slot: 4, State: FlowOpen},
	}
	var slots []uint32
	for _, f := range liveFlows(all) {
		slots = append(slots, f.Slot)
	}
	if want := []uint32{1, 2, 4}; !slices.Equal(slots, want) {
		t.Errorf("slots %v, want %v", slots, want)
	}
}

func TestEventCounts(t *testing.T) {
	rt := mustLoad(t, mountBPFFS(t))
	defer rt.Close()
	for i, n := range map[uint32]uint64{0: 1, uint32(Events) - 1: 1 << 40} {
		if err := rt.Events.Put(i, n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := rt.EventCounts()
	if err != nil {
		t.Fatal(err)
	}
	want := [Events]uint64{0: 1, Events - 1: 1 << 40}
	if got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
