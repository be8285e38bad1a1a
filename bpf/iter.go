// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// FeatureSockDestroy is the name in Runtime.Unsupported of ending UDP sockets
// whose endpoint went away (kfunc bpf_sock_destroy, Linux 6.5).
const FeatureSockDestroy = "sock-destroy"

const (
	progSockets = "sockets"
	progReap    = "udp_reap"
)

func (r *Runtime) loadIterators() error {
	progs, err := r.loadObject(loadIter)
	if err != nil {
		// Without bpf_sock_destroy the other iterator still loads.
		var without error
		if progs, without = r.loadObject(loadIter, progReap); without != nil {
			return without
		}
		r.Unsupported[FeatureSockDestroy] = err
	}
	for name, p := range progs {
		r.progs[name] = p
	}
	return nil
}

// Sockets runs over every socket of the node that carries a stamp, and adds the
// bytes of live connections to the counters on the way.
func (r *Runtime) Sockets() ([]Socket, error) {
	return runIter(r.progs[progSockets], r.maps["km_stamps"])
}

// ReapUDP ends, in the network namespace of the calling thread, the connected UDP
// sockets whose endpoint may no longer be chosen, and returns them. It returns
// ebpf.ErrNotSupported where the kernel cannot.
func (r *Runtime) ReapUDP() ([]Socket, error) {
	if err, no := r.Unsupported[FeatureSockDestroy]; no {
		return nil, fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return runIter(r.progs[progReap], nil)
}

// runIter runs an iterator to its end and decodes its records.
func runIter(prog *ebpf.Program, over *ebpf.Map) (_ []Socket, err error) {
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: over})
	if err != nil {
		return nil, fmt.Errorf("socket iterator: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	rd, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("socket iterator: %w", err)
	}
	defer rd.Close()
	raw, err := io.ReadAll(rd)
	if err != nil {
		return nil, fmt.Errorf("socket iterator: %w", err)
	}
	const size = int(unsafe.Sizeof(Socket{}))
	all := make([]Socket, 0, len(raw)/size)
	for rest := raw; len(rest) >= size; rest = rest[size:] {
		var s Socket
		if err := binary.Read(bytes.NewReader(rest[:size]), binary.NativeEndian, &s); err != nil {
			return nil, fmt.Errorf("socket iterator: %w", err)
		}
		all = append(all, s)
	}
	return all, nil
}
