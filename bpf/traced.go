// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// The word that begins with a flow's flags is aligned, or this does not compile.
const _ = -(unsafe.Offsetof(Flow{}.Flags) % 4)

// flagWord is that word; little-endian, as is everything here. The helper only ever ORs
// and ANDs it, so what lies beside the flags is never lost.
func flagWord(f *Flow) *uint32 { return (*uint32)(unsafe.Pointer(&f.Flags)) }

// String names a flow for as long as it lives: "slot.generation".
func (r abiFlowRef) String() string { return fmt.Sprintf("%d.%d", r.Slot, r.Generation) }

// ParseFlowRef is the inverse of FlowRef.String.
func ParseFlowRef(s string) (FlowRef, error) {
	a, b, _ := strings.Cut(s, ".")
	slot, err1 := strconv.ParseUint(a, 10, 32)
	generation, err2 := strconv.ParseUint(b, 10, 32)
	if err1 != nil || err2 != nil {
		return FlowRef{}, fmt.Errorf("%q is no flow: give SLOT.GENERATION", s)
	}
	return FlowRef{Slot: uint32(slot), Generation: uint32(generation)}, nil
}

// flow returns the element that a flow still has; nil: it has ended.
func (r *Runtime) flow(ref FlowRef) *Flow {
	flows := r.Flows()
	if int(ref.Slot) >= len(flows) {
		return nil
	}
	f := &flows[ref.Slot]
	if atomic.LoadUint32(&f.Generation) != ref.Generation || f.State == FlowFree {
		return nil
	}
	return f
}

// eachFlow calls each for every element of km_flows that is in use.
func (r *Runtime) eachFlow(each func(ref FlowRef, f *Flow)) error {
	var l abiLimits
	if err := r.maps["km_limits"].Lookup(uint32(0), &l); err != nil {
		return fmt.Errorf("map km_limits: %w", err)
	}
	flows := r.Flows()
	for i := range flows[:min(int(l.NextFlow), len(flows))] {
		if f := &flows[i]; f.State != FlowFree {
			each(FlowRef{Slot: uint32(i), Generation: atomic.LoadUint32(&f.Generation)}, f)
		}
	}
	return nil
}

// FlowsOf returns the flows of some pods, also those that ended and are remembered.
func (r *Runtime) FlowsOf(pods []uint64) (out []FlowRef, err error) {
	err = r.eachFlow(func(ref FlowRef, f *Flow) {
		if slices.Contains(pods, atomic.LoadUint64(&f.Key.Pod)) {
			out = append(out, ref)
		}
	})
	return out, err
}

// FlowLives tells whether the flow is there and has not ended.
func (r *Runtime) FlowLives(ref FlowRef) bool {
	f := r.flow(ref)
	return f != nil && f.State != FlowClosed
}

// Traced tells whether the flow is traced, and whether it is still there at all.
func (r *Runtime) Traced(ref FlowRef) (traced, there bool) {
	f := r.flow(ref)
	if f == nil {
		return false, false
	}
	return atomic.LoadUint32(flagWord(f))&FlowTrace != 0, true
}

// SetTraced makes the programs write a record of every packet of the flow, or no
// longer. A program that had the flow locked may undo it: callers look again. It
// returns whether the flow is still there.
func (r *Runtime) SetTraced(ref FlowRef, on bool) bool {
	f := r.flow(ref)
	if f == nil {
		return false
	}
	if !on {
		atomic.AndUint32(flagWord(f), ^uint32(FlowTrace))
		return true
	}
	atomic.OrUint32(flagWord(f), FlowTrace)
	if atomic.LoadUint32(&f.Generation) != ref.Generation {
		// It ended just now, and the next one in its place was not meant.
		atomic.AndUint32(flagWord(f), ^uint32(FlowTrace))
		return false
	}
	return true
}

// ClearTraced takes the trace off every flow: a helper that died may have left some.
func (r *Runtime) ClearTraced() error {
	return r.eachFlow(func(ref FlowRef, f *Flow) {
		if atomic.LoadUint32(flagWord(f))&FlowTrace != 0 {
			r.SetTraced(ref, false)
		}
	})
}

var verdicts = [...]string{
	abiVerdictKM_VERDICT_PASS:    "pass",
	abiVerdictKM_VERDICT_FORWARD: "forward",
	abiVerdictKM_VERDICT_SWALLOW: "swallow",
	abiVerdictKM_VERDICT_BOUNCE:  "bounce",
	abiVerdictKM_VERDICT_CRAFT:   "craft",
	abiVerdictKM_VERDICT_DROP:    "drop",
}

// VerdictName says what was done with the packet.
func (t *abiTrace) VerdictName() string { return word(verdicts[:], t.Verdict) }

// StateName is the flow's state in a word.
func (t *abiTrace) StateName() string { return word(flowStates[:], t.State) }

// PinName says why the flow stays with its endpoint; empty: it does not.
func (t *abiTrace) PinName() string { return word(pins[:], t.Pin) }

// Ref is the flow that the packet is of.
func (t *abiTrace) Ref() FlowRef { return FlowRef{Slot: t.Slot, Generation: t.Generation} }

// TraceReader takes records out of km_trace. Records that one reader takes no other
// one gets: there must be one at a time.
type TraceReader struct {
	r   *ringbuf.Reader
	rec ringbuf.Record
}

// ReadTrace opens the ring buffer.
func (r *Runtime) ReadTrace() (*TraceReader, error) {
	rd, err := ringbuf.NewReader(r.Trace)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	return &TraceReader{r: rd}, nil
}

// Next waits for a record. After Close its error wraps os.ErrClosed.
func (t *TraceReader) Next() (TraceRecord, error) {
	var out TraceRecord
	if err := t.r.ReadInto(&t.rec); err != nil {
		return out, fmt.Errorf("trace: %w", err)
	}
	if len(t.rec.RawSample) < int(unsafe.Sizeof(out)) {
		return out, errors.New("trace: a record is too short")
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out)), t.rec.RawSample)
	return out, nil
}

// Close ends Next.
func (t *TraceReader) Close() error { return t.r.Close() }

// ScopeOf returns the id of the view of the mesh that the pod of a network namespace
// gets; false: it is not in the programs' table of pods.
func (r *Runtime) ScopeOf(netnsCookie uint64) (scope uint32, ok bool, err error) {
	var v abiPod
	switch err := r.maps["km_pods"].Lookup(netnsCookie, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("pod table: %w", err)
	}
	return v.Scope, true, nil
}
