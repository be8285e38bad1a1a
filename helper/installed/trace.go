// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
)

const (
	// lookEvery is how often the flows of a pod are looked for, and the flags of
	// those that are known: packets of a new flow before that are not traced.
	lookEvery = 50 * time.Millisecond
	// clearFor is how long a flag is watched after it was cleared: a program that had
	// the flow locked writes back what it had read, within microseconds.
	clearFor = 20 * time.Millisecond
	// backlog is what one slow caller may leave unread before it loses records.
	backlog = 4096
)

// tracer shares the one reader of the ring buffer among all that trace: it is open
// while there is one.
type tracer struct {
	rt *bpf.Runtime

	mu      sync.Mutex
	all     []*tracing
	reader  *bpf.TraceReader
	stopped chan struct{} // closed when the reader's goroutine has ended
}

// tracing is one caller's.
type tracing struct {
	since   uint64 // ns: what is older was for somebody else
	flows   map[bpf.FlowRef]bool
	records chan bpf.TraceRecord
	lost    uint64
	err     error // of the reader, before records is closed
}

// begin opens the reader for the first one.
func (t *tracer) begin() (*tracing, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reader == nil {
		reader, err := t.rt.ReadTrace()
		if err != nil {
			return nil, err
		}
		t.reader, t.stopped = reader, make(chan struct{})
		go t.read(reader, t.stopped)
	}
	one := &tracing{since: uint64(now), flows: make(map[bpf.FlowRef]bool), records: make(chan bpf.TraceRecord, backlog)}
	t.all = append(t.all, one)
	return one, nil
}

// read hands records out until the reader is closed.
func (t *tracer) read(reader *bpf.TraceReader, stopped chan struct{}) {
	defer close(stopped)
	for {
		rec, err := reader.Next()
		t.mu.Lock()
		switch {
		case errors.Is(err, os.ErrClosed): // there may be another reader already
		case err != nil:
			for _, one := range t.all {
				one.err = err
				close(one.records)
			}
			t.all, t.reader = nil, nil
			reader.Close()
		default:
			t.deliver(rec)
		}
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (t *tracer) deliver(rec bpf.TraceRecord) {
	for _, one := range t.all {
		if rec.At < one.since || !one.flows[rec.Ref()] {
			continue
		}
		select {
		case one.records <- rec:
		default:
			one.lost++
		}
	}
}

// mark sets the flag of flows, and forgets those that are gone.
func (t *tracer) mark(one *tracing, refs []bpf.FlowRef) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ref := range refs {
		one.flows[ref] = true
	}
	for ref := range one.flows {
		traced, there := t.rt.Traced(ref)
		if there && !traced {
			there = t.rt.SetTraced(ref, true)
		}
		if !there {
			delete(one.flows, ref)
		}
	}
}

// lost returns, and forgets, how many records did not fit.
func (t *tracer) lost(one *tracing) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := one.lost
	one.lost = 0
	return n
}

// end closes the reader after the last one, and clears the flags that nobody needs.
func (t *tracer) end(one *tracing) {
	t.mu.Lock()
	t.all = slices.DeleteFunc(t.all, func(o *tracing) bool { return o == one })
	var stopped chan struct{}
	if len(t.all) == 0 && t.reader != nil {
		t.reader.Close() // what it leaves unread is of no use to anybody
		stopped, t.reader = t.stopped, nil
	}
	t.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(clearFor); t.clear(one) && time.Now().Before(deadline); {
		<-tick.C
	}
}

// clear takes the flag off the flows that nobody else traces. It returns whether some
// are still there, and may get it back.
func (t *tracer) clear(one *tracing) (watch bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ref := range one.flows {
		if slices.ContainsFunc(t.all, func(o *tracing) bool { return o.flows[ref] }) {
			continue
		}
		if traced, _ := t.rt.Traced(ref); traced {
			t.rt.SetTraced(ref, false)
		}
		watch = true
	}
	return watch
}

// Trace implements api.Requests.
func (t *Tables) Trace(ctx context.Context, in *apiv1.TraceRequest, send func(*apiv1.TraceRecord) error) error {
	find, err := t.traced(ctx, in)
	if err != nil {
		return err
	}
	one, err := t.trace.begin()
	if err != nil {
		return err
	}
	defer t.trace.end(one)
	look := func() (more bool, err error) {
		refs, more, err := find()
		t.trace.mark(one, refs)
		return more, err
	}
	if more, err := look(); err != nil || !more {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case rec, ok := <-one.records:
			if !ok {
				return one.err
			}
			out := recordOf(&rec)
			out.Lost = t.trace.lost(one)
			if err := send(out); err != nil {
				return fmt.Errorf("trace: %w", err)
			}
		case <-tick.C:
			if more, err := look(); err != nil {
				return err
			} else if !more && len(one.records) == 0 {
				return nil
			}
		}
	}
}

// traced returns who finds the flows to be traced; more is false when there can be no
// other any more.
func (t *Tables) traced(ctx context.Context, in *apiv1.TraceRequest) (find func() (refs []bpf.FlowRef, more bool, err error), err error) {
	if in.Flow != "" {
		ref, err := bpf.ParseFlowRef(in.Flow)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if !t.rt.FlowLives(ref) {
			return nil, status.Errorf(codes.NotFound, "there is no open flow %s: kmeshctl flows lists them", in.Flow)
		}
		return func() ([]bpf.FlowRef, bool, error) { return []bpf.FlowRef{ref}, t.rt.FlowLives(ref), nil }, nil
	}
	pods, err := t.podsNamed(ctx, in.Namespace, in.Name)
	if err != nil {
		return nil, err
	}
	return func() ([]bpf.FlowRef, bool, error) {
		refs, err := t.rt.FlowsOf(pods)
		return refs, true, err
	}, nil
}

func recordOf(r *bpf.TraceRecord) *apiv1.TraceRecord {
	return &apiv1.TraceRecord{
		AtNanoseconds: int64(r.At),
		Flow:          r.Ref().String(),
		Egress:        r.Egress != 0,
		Leg:           uint32(r.Leg),
		Verdict:       r.VerdictName(),
		TcpFlags:      tcpFlags(r.TcpFlags),
		State:         r.StateName(),
		Pin:           r.PinName(),
		Window:        uint32(r.Window),
		Seq:           r.Seq, Ack: r.Ack,
		NewSeq: r.NewSeq, NewAck: r.NewAck,
		Length: r.Len,
	}
}

// monotonic is the programs' clock, in nanoseconds (bpf_ktime_get_ns).
func monotonic() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return ts.Nano(), nil
}

// tcpFlags writes flags as tcpdump does.
func tcpFlags(flags uint8) string {
	out := ""
	for i, letter := range []string{"F", "S", "R", "P", ".", "U", "E", "W"} {
		if flags>>i&1 != 0 {
			out += letter
		}
	}
	if out == "" {
		return "none"
	}
	return out
}
