// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// FeatureSockDestroy is the name in Runtime.Unsupported of ending UDP sockets
// whose endpoint went away (kfunc bpf_sock_destroy, Linux 6.5).
const FeatureSockDestroy = "sock-destroy"

// FeatureMapIterator is the name there of iterators over a map's elements. Without them
// Sockets goes through the network namespaces of the pods.
const FeatureMapIterator = "map-iterator"

const (
	progSockets    = "sockets"
	progSocketsTCP = "sockets_tcp"
	progSocketsUDP = "sockets_udp"
	progReap       = "udp_reap"
)

var iterators = []string{progSockets, progSocketsTCP, progSocketsUDP, progReap}

// loadIterators loads each by itself, since a kernel may have some of them.
func (r *Runtime) loadIterators() error {
	load := func(name string) error {
		others := slices.DeleteFunc(slices.Clone(iterators), func(o string) bool { return o == name })
		progs, err := r.loadObject(loadIter, others...)
		if err == nil {
			r.progs[name] = progs[name]
		}
		return err
	}
	if err := load(progReap); err != nil {
		r.Unsupported[FeatureSockDestroy] = err
	}
	if err := load(progSockets); err != nil {
		r.Unsupported[FeatureMapIterator] = err
	}
	return errors.Join(load(progSocketsTCP), load(progSocketsUDP))
}

// Sockets runs over every socket of the node's pods that carries a stamp, and adds the
// bytes of live connections to the counters on the way.
func (r *Runtime) Sockets() (all []Socket, err error) {
	if r.progs[progSockets] != nil {
		return runIter(r.progs[progSockets], r.maps["km_stamps"])
	}
	if r.EachNetns == nil {
		return nil, nil // no pods
	}
	err = r.EachNetns(func() error {
		some, err := r.SocketsHere()
		all = append(all, some...)
		return err
	})
	return all, err
}

// SocketsHere is Sockets for the network namespace of the calling thread.
func (r *Runtime) SocketsHere() (all []Socket, err error) {
	for _, name := range []string{progSocketsTCP, progSocketsUDP} {
		some, err := runIter(r.progs[name], nil)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
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
