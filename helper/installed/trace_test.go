// SPDX-License-Identifier: Apache-2.0

package installed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"kmesh/bpf"
	apiv1 "kmesh/helper/api/v1"
)

// writer writes records into km_trace, as only a program can.
type writer struct {
	t      *testing.T
	record *ebpf.Map
	prog   *ebpf.Program
}

func newWriter(t *testing.T, rt *bpf.Runtime) *writer {
	t.Helper()
	size := int32(unsafe.Sizeof(bpf.TraceRecord{}))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.LoadMapPtr(asm.R1, rt.Trace.FD()),
		asm.Mov.Imm(asm.R3, size),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { prog.Close() })
	return &writer{t, m, prog}
}

func (w *writer) write(rec bpf.TraceRecord) { w.t.Helper(); w.writeMany(rec, 1) }

func (w *writer) writeMany(rec bpf.TraceRecord, n uint32) {
	w.t.Helper()
	if rec.At == 0 {
		now, err := monotonic()
		if err != nil {
			w.t.Fatal(err)
		}
		rec.At = uint64(now)
	}
	if err := w.record.Put(uint32(0), &rec); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: n}); err != nil {
		w.t.Fatal(err)
	}
}

// running is a Trace under way.
type running struct {
	cancel context.CancelFunc
	ended  chan error

	mu   sync.Mutex
	seqs []uint32
}

func (b *bed) start(in *apiv1.TraceRequest) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		r.ended <- b.Trace(ctx, in, func(rec *apiv1.TraceRecord) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.seqs = append(r.seqs, rec.Seq)
			return nil
		})
	}()
	return r
}

func (r *running) got() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.seqs)
}

// until polls.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func (r *running) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the trace does not end")
		return nil
	}
}

func TestTrace(t *testing.T) {
	b := newBed(t)
	w := newWriter(t, b.rt)
	flows := b.rt.Flows()
	one := b.flow(0, bpf.Flow{Generation: 3, State: bpf.FlowOpen, Flags: bpf.FlowRebound, Key: bpf.FlowKey{Pod: 7}})
	other := b.flow(1, bpf.Flow{Generation: 4, State: bpf.FlowOpen, Key: bpf.FlowKey{Pod: 8}})
	traced := func(ref bpf.FlowRef) bool { on, _ := b.rt.Traced(ref); return on }

	w.write(bpf.TraceRecord{Slot: 0, Generation: 3, Seq: 1}) // before anybody listens
	pod := b.start(&apiv1.TraceRequest{Namespace: "shop", Name: "web"})
	until(t, "the flow's flag", func() bool { return traced(one) })
	if traced(other) {
		t.Error("a flow of another pod is traced")
	}
	w.write(bpf.TraceRecord{Slot: 0, Generation: 3, Seq: 2})
	w.write(bpf.TraceRecord{Slot: 1, Generation: 4, Seq: 3}) // not its
	w.write(bpf.TraceRecord{Slot: 0, Generation: 2, Seq: 4}) // of the flow before
	w.write(bpf.TraceRecord{Slot: 0, Generation: 3, Seq: 5, At: 1})
	w.write(bpf.TraceRecord{Slot: 0, Generation: 3, Seq: 6})
	until(t, "records", func() bool { return pod.got() == "[2 6]" })

	// A second one shares the ring buffer, and its end leaves the first one's flag.
	flow := b.start(&apiv1.TraceRequest{Flow: "0.3"})
	until(t, "the second one", func() bool { b.trace.mu.Lock(); defer b.trace.mu.Unlock(); return len(b.trace.all) == 2 })
	until(t, "a record for both", func() bool {
		w.write(bpf.TraceRecord{Slot: 0, Generation: 3, Seq: 7})
		return flow.got() != "[]"
	})
	flow.cancel()
	if err := flow.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("the second one ended with %v", err)
	}
	if !traced(one) {
		t.Error("the end of one trace ended another one of the same flow")
	}

	// A program that had the flow locked undoes the flag; a flow begins meanwhile.
	b.rt.SetTraced(one, false)
	late := b.flow(2, bpf.Flow{Generation: 1, State: bpf.FlowSyn, Key: bpf.FlowKey{Pod: 7}})
	until(t, "the flags", func() bool { return traced(one) && traced(late) })

	pod.cancel()
	if err := pod.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if flows[0].Flags != bpf.FlowRebound || flows[1].Flags != 0 || flows[2].Flags != 0 {
		t.Errorf("flags %#x %#x %#x are left", flows[0].Flags, flows[1].Flags, flows[2].Flags)
	}
	if b.trace.reader != nil {
		t.Error("the ring buffer is still read")
	}

	// It begins anew, and ends with its flow.
	flow = b.start(&apiv1.TraceRequest{Flow: "0.3"})
	until(t, "the flag", func() bool { return traced(one) })
	flows[0].State = bpf.FlowClosed
	if err := flow.end(t); err != nil {
		t.Errorf("the trace of a flow that ended: %v", err)
	}
	for _, tt := range []struct {
		in   *apiv1.TraceRequest
		code codes.Code
	}{
		{&apiv1.TraceRequest{Flow: "0.3"}, codes.NotFound},
		{&apiv1.TraceRequest{Flow: "1.3"}, codes.NotFound},
		{&apiv1.TraceRequest{Flow: "1"}, codes.InvalidArgument},
		{&apiv1.TraceRequest{Namespace: "shop", Name: "x"}, codes.NotFound},
	} {
		if err := b.start(tt.in).end(t); status.Code(err) != tt.code {
			t.Errorf("%v: %v, want %v", tt.in, err, tt.code)
		}
	}
}

// A caller that fails ends its trace; one that is slow loses records, and is told.
func TestTraceSlow(t *testing.T) {
	b := newBed(t)
	w := newWriter(t, b.rt)
	b.flow(0, bpf.Flow{Generation: 3, State: bpf.FlowOpen, Key: bpf.FlowKey{Pod: 7}})
	broken := errors.New("the caller went away")
	var last *apiv1.TraceRecord
	ended := make(chan error, 1)
	entered, release := make(chan struct{}), make(chan struct{})
	go func() {
		ended <- b.Trace(context.Background(), &apiv1.TraceRequest{Flow: "0.3"}, func(rec *apiv1.TraceRecord) error {
			if last == nil {
				last = rec
				close(entered)
				<-release
				return nil
			}
			last = rec
			return broken
		})
	}()
	until(t, "the flag", func() bool { on, _ := b.rt.Traced(bpf.FlowRef{Slot: 0, Generation: 3}); return on })
	w.write(bpf.TraceRecord{Slot: 0, Generation: 3})
	<-entered
	const over = 5
	written := 0
	until(t, "the backlog", func() bool {
		w.writeMany(bpf.TraceRecord{Slot: 0, Generation: 3}, 256)
		written += 256
		b.trace.mu.Lock()
		defer b.trace.mu.Unlock()
		return b.trace.all[0].lost >= over
	})
	close(release)
	select {
	case err := <-ended:
		if !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the trace does not end")
	}
	if last.Lost < over || last.Lost > uint64(written-backlog) {
		t.Errorf("%d of %d records are said to be lost", last.Lost, written)
	}
}

func TestRecord(t *testing.T) {
	got := recordOf(&bpf.TraceRecord{
		At: 5, Slot: 1, Generation: 2, Egress: 1, Leg: 3, Verdict: 4, TcpFlags: 0x12, State: 2, Pin: 1,
		Window: 6, Seq: 7, Ack: 8, NewSeq: 9, NewAck: 10, Len: 11,
	})
	want := &apiv1.TraceRecord{
		AtNanoseconds: 5, Flow: "1.2", Egress: true, Leg: 3, Verdict: "craft", TcpFlags: "S.", State: "open", Pin: "tls",
		Window: 6, Seq: 7, Ack: 8, NewSeq: 9, NewAck: 10, Length: 11,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for flags, want := range map[uint8]string{0: "none", 0x10: ".", 0x18: "P.", 0x11: "F.", 0x04: "R", 0xff: "FSRP.UEW"} {
		if got := tcpFlags(flags); got != want {
			t.Errorf("%#x: %s, want %s", flags, got, want)
		}
	}
}

// New takes the flags off that an earlier helper left.
func TestLeftTraces(t *testing.T) {
	b := newBed(t)
	ref := b.flow(0, bpf.Flow{Generation: 3, State: bpf.FlowOpen, Flags: bpf.FlowTrace})
	if _, err := New(b.opts); err != nil {
		t.Fatal(err)
	}
	if on, there := b.rt.Traced(ref); on || !there {
		t.Errorf("traced %v, there %v", on, there)
	}
}
