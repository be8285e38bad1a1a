// SPDX-License-Identifier: Apache-2.0

package match

import (
	"errors"
	"testing"

	"kmesh/bpf"
	"kmesh/helper/mesh"
)

// FuzzHead: the reference and the automaton decide alike about any bytes, for the
// routes of a few seeds.
func FuzzHead(f *testing.F) {
	k := newKernel(f)
	var trials []*trial
	for seed := range uint64(8) {
		g := NewGenerator(seed)
		cfg := g.Config()
		for _, vh := range cfg.VirtualHosts {
			tr, err := newTrial(k, vh)
			if err != nil {
				f.Fatalf("seed %d: %v", seed, err)
			}
			trials = append(trials, tr)
		}
		for range 20 {
			f.Add(uint8(len(trials)-1), g.r.Uint64(), g.Request(cfg))
		}
	}
	f.Fuzz(func(t *testing.T, number uint8, cuts uint64, req []byte) {
		tr := trials[int(number)%len(trials)]
		if d := tr.compare(req, ^uint64(0), cuts); d != "" {
			t.Errorf("%s\n%s", d, Format(&mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{tr.vh}}, req))
		}
	})
}

// FuzzPlain: plain.h says nothing of any bytes but what the reference says, whatever
// lies behind them, and nothing of a head's beginning.
func FuzzPlain(f *testing.F) {
	p := newPlainRunner(f)
	g := NewGenerator(1)
	for range 100 {
		b := g.Served(10)
		f.Add(b, uint16(g.r.IntN(len(b))), g.junk(b, len(b)))
		f.Add(g.tamper(b), uint16(len(b)), []byte("\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16, junk []byte) {
		b, junk = b[:min(len(b), 2*bpf.PlainBytes)], junk[:min(len(junk), bpf.PlainBytes)]
		want, n := wantPlain(b)
		for _, end := range []int{len(b), min(len(b), bpf.PlainBytes), min(len(b), int(at))} {
			if err := errors.Join(p.add(b, end, junk, want, n), p.add(b, end, b[end:], want, n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.run(); err != nil {
			p.tries = p.tries[:0]
			t.Fatal(err)
		}
	})
}
