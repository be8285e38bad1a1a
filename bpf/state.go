// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Phase says how far the node is (abi.h, enum phase).
type Phase uint32

// The phases.
const (
	// PhaseNone: nothing is loaded.
	PhaseNone = Phase(abiPhaseKM_PHASE_NONE)
	// PhaseLoaded: programs and maps are pinned, the maps are empty.
	PhaseLoaded = Phase(abiPhaseKM_PHASE_LOADED)
	// PhaseLive: a first snapshot is in the maps; pods may be enrolled.
	PhaseLive = Phase(abiPhaseKM_PHASE_LIVE)
)

// String returns a word for messages.
func (p Phase) String() string {
	switch p {
	case PhaseNone:
		return "none"
	case PhaseLoaded:
		return "loaded"
	case PhaseLive:
		return "live"
	}
	return "unknown"
}

// State is the state word that the helper keeps and the plugin reads.
type State struct {
	ABI        uint32
	Phase      Phase
	Generation uint64
}

// ReadState reads the pinned state word. The error wraps fs.ErrNotExist when the
// helper has never run since the node started.
func ReadState(bpffs string) (State, error) {
	w, err := readState(MapPath(bpffs, "km_state"))
	return State{ABI: w.Abi, Phase: Phase(w.Phase), Generation: w.Generation}, err
}

func readState(path string) (w abiState, err error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return w, fmt.Errorf("state word: %w", err)
	}
	defer m.Close()
	if err := m.Lookup(uint32(0), &w); err != nil {
		return w, fmt.Errorf("state word: %w", err)
	}
	return w, nil
}

// State reads the state word.
func (r *Runtime) State() (State, error) {
	var w abiState
	if err := r.state.Lookup(uint32(0), &w); err != nil {
		return State{}, fmt.Errorf("state word: %w", err)
	}
	return State{ABI: w.Abi, Phase: Phase(w.Phase), Generation: w.Generation}, nil
}

// NextID returns the first id that has never been given out.
func (r *Runtime) NextID() (uint64, error) {
	var w abiState
	if err := r.state.Lookup(uint32(0), &w); err != nil {
		return 0, fmt.Errorf("state word: %w", err)
	}
	return w.NextId, nil
}

// SetState writes the state word. The helper is its only writer.
func (r *Runtime) SetState(phase Phase, generation, nextID uint64) error {
	w := abiState{Abi: ABI, Phase: uint32(phase), Generation: generation, NextId: nextID}
	if err := r.state.Put(uint32(0), &w); err != nil {
		return fmt.Errorf("state word: %w", err)
	}
	return nil
}
