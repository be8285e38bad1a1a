// SPDX-License-Identifier: Apache-2.0

package match

import (
	"testing"

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
