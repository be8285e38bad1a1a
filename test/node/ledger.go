// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// ledger remembers all that a node ever made, so that Close can look for it. The kernel gives ids in a circle, so an
// id that is in use after Close is the same thing still.
type ledger struct {
	mu      sync.Mutex
	links   map[uint32]string // id -> pin
	progs   map[uint32]string
	maps    map[uint32]string
	cgroups map[uint64]string // inode -> path
	spaces  map[nsID]space    // network namespaces
	found   []string          // leaks that were seen while the node lived
}

// nsID is what a namespace is known by: the file that stands for it.
type nsID struct{ dev, ino uint64 }

// space is a network namespace. The kernel gives the numbers of files that stand for namespaces to new ones at once; a
// cookie it gives to one only.
type space struct {
	name   string
	cookie uint64
}

func (l *ledger) init() {
	l.links, l.progs, l.maps = map[uint32]string{}, map[uint32]string{}, map[uint32]string{}
	l.cgroups, l.spaces = map[uint64]string{}, map[nsID]space{}
}

func (l *ledger) netns(id nsID, s space) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spaces[id] = s
}

func (l *ledger) cgroup(ino uint64, path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cgroups[ino] = path
}

func (l *ledger) cgroupID(path string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ino, p := range l.cgroups {
		if p == path {
			return ino
		}
	}
	return 0
}

func (l *ledger) leak(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.found = append(l.found, fmt.Sprintf(format, args...))
}

// record remembers what is pinned at and below dir now.
func (n *Node) record(dir string) {
	// Pins may go while we look: what cannot be opened any more was taken away by the one who should.
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		obj, err := pin.Load(path, nil)
		if err != nil {
			return nil
		}
		defer obj.Close()
		n.seen.object(strings.TrimPrefix(path, n.BPFFS+"/"), obj)
		return nil
	})
}

// recordPod remembers what is pinned for a sandbox.
func (n *Node) recordPod(s *Sandbox) {
	n.record(filepath.Join(n.BPFFS, "pods", s.ContainerID))
	n.record(filepath.Join(n.BPFFS, "cgroups", strconv.FormatUint(s.pod.CgroupID, 10)))
}

func (l *ledger) object(name string, obj any) {
	switch obj := obj.(type) {
	case *ebpf.Map:
		if info, err := obj.Info(); err == nil {
			if id, ok := info.ID(); ok {
				l.note(l.maps, uint32(id), name)
			}
		}
	case *ebpf.Program:
		l.program(name, obj)
	case link.Link:
		info, err := obj.Info()
		if err != nil {
			return
		}
		l.note(l.links, uint32(info.ID), name)
		if l.has(l.progs, uint32(info.Program)) {
			return
		}
		if prog, err := ebpf.NewProgramFromID(info.Program); err == nil {
			l.program(name, prog)
			prog.Close()
		}
	}
}

func (l *ledger) program(name string, prog *ebpf.Program) {
	info, err := prog.Info()
	if err != nil {
		return
	}
	if id, ok := info.ID(); ok {
		l.note(l.progs, uint32(id), name)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		l.note(l.maps, uint32(id), "map of "+name)
	}
}

func (l *ledger) note(into map[uint32]string, id uint32, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := into[id]; !ok {
		into[id] = name
	}
}

func (l *ledger) has(in map[uint32]string, id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := in[id]
	return ok
}

// Report says what Close looked for.
type Report struct {
	Links, Programs, Maps, Cgroups, Namespaces int
	Left                                       []string // what it found, one sentence each
}

func (l *ledger) report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Report{Links: len(l.links), Programs: len(l.progs), Maps: len(l.maps), Cgroups: len(l.cgroups), Namespaces: len(l.spaces)}
}

func (r Report) String() string {
	s := fmt.Sprintf("looked for %d links, %d programs, %d maps, %d cgroups, %d network namespaces, their pins, processes, mounts and descriptors: ",
		r.Links, r.Programs, r.Maps, r.Cgroups, r.Namespaces)
	if len(r.Left) == 0 {
		return s + "all gone"
	}
	return s + strings.Join(r.Left, "; ")
}

func (r Report) err() error {
	errs := []error{fmt.Errorf("%d things were left behind", len(r.Left))}
	for _, l := range r.Left {
		errs = append(errs, errors.New("left behind: "+l))
	}
	return errors.Join(errs...)
}
