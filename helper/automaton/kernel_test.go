// SPDX-License-Identifier: Apache-2.0

package automaton_test

import (
	"flag"
	"testing"
	"unsafe"

	"kmesh/bpf"
	"kmesh/helper/automaton"
	"kmesh/helper/explain"
	"kmesh/helper/head"
	"kmesh/helper/mesh"
	"kmesh/test/match"
)

var kernelPairs = flag.Int("kernelpairs", 20_000, "generated pairs to run in the kernel")

// kernel runs programs in the kernel's machine.
type kernel struct {
	t testing.TB
	*bpf.HeadRunner
	used int
}

func newKernel(t testing.TB) *kernel {
	r, err := bpf.NewHeadRunner()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return &kernel{t: t, HeadRunner: r}
}

// load puts a program into the slab, and returns where.
func (k *kernel) load(p *automaton.Program) uint32 {
	if k.used+len(p.Bytes) > len(k.Slab) {
		k.used = 0 // over those that are no longer needed
	}
	at := k.used
	k.used += copy(k.Slab[at:], p.Bytes)
	return uint32(at)
}

// run feeds a head that ends at each of the cuts, and returns the machine.
func (k *kernel) run(p *automaton.Program, at uint32, b []byte, cuts ...int) *automaton.Machine {
	piece := k.Piece(0)
	piece.Program, piece.First, piece.Fresh = at, 0, 1
	copy(piece.Bytes[:], b)
	var m *automaton.Machine
	for _, end := range append(cuts, len(b)) {
		piece.End = uint32(end)
		m = k.runPiece(p)
		piece.Fresh = 0
	}
	return m
}

// runPiece reads the first piece, and returns the machine.
func (k *kernel) runPiece(p *automaton.Program) *automaton.Machine {
	_, result, err := k.Run(1, 1)
	if err != nil {
		k.t.Fatal(err)
	}
	m := automaton.NewMachine(p)
	m.State = *(*automaton.State)(unsafe.Pointer(&result.Machine))
	for w := range m.Candidates {
		if result.Found.Summary>>w&1 != 0 {
			m.Candidates[w] = result.Found.Words[w]
		}
	}
	return m
}

func every(b []byte) []int {
	cuts := make([]int, len(b))
	for i := range b {
		cuts[i] = i
	}
	return cuts
}

// TestKernel holds the kernel's machine against the Go one and the reference.
func TestKernel(t *testing.T) {
	const perConfig = 100
	if a, b := unsafe.Sizeof(automaton.State{}), unsafe.Sizeof(bpf.HeadResult{}.Machine); a != b {
		t.Fatalf("a State has %d bytes, struct machine %d", a, b)
	}
	k := newKernel(t)
	var refusals refusals
	defer func() { refusals.check(t) }()
	for seed := range *kernelPairs / perConfig {
		g := match.NewGenerator(uint64(seed) + 1<<32)
		cfg := g.Config()
		programs := map[*mesh.VirtualHost]*automaton.Program{}
		places := map[*mesh.VirtualHost]uint32{}
		for _, vh := range cfg.VirtualHosts {
			if p := refusals.compile(t, seed, vh); p != nil {
				programs[vh], places[vh] = p, k.load(p)
			}
		}
		var matcher explain.Matcher
		for n := range perConfig {
			req := g.Request(cfg)
			vh := cfg.VirtualHosts[n%len(cfg.VirtualHosts)]
			if r, out := head.ParseRequest(req); out.Kind == head.Route {
				if found := explain.FindVirtualHost(cfg, r.Authority); found != nil {
					vh = found
				}
			}
			p, at := programs[vh], places[vh]
			if p == nil {
				continue
			}
			want := wanted(&matcher, vh, req)
			check := func(way string, have verdict) {
				if have != want {
					t.Fatalf("seed %d, %s:\nhave %+v\nwant %+v\nmirror %+v\n%s", seed, way, have, want, run(p, req),
						match.Format(&mesh.HTTP{VirtualHosts: []*mesh.VirtualHost{vh}}, req))
				}
			}
			check("whole", got(k.run(p, at, req), req))
			check("in two", got(k.run(p, at, req, n*len(req)/perConfig), req))
			if n%20 == 0 {
				check("byte by byte", got(k.run(p, at, req, every(req)...), req))
			}
			if n == 1 {
				for cut := range req {
					check("cut", got(k.run(p, at, req, cut), req))
					// A prefix of it: what is decided so far, and when.
					if early, mirror := got(k.run(p, at, req[:cut]), req), run(p, req[:cut]); early != mirror {
						t.Fatalf("seed %d, first %d bytes of %q: kernel %+v, Go %+v", seed, cut, req, early, mirror)
					}
				}
			}
		}
	}
}
