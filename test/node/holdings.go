// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Holdings is how much a node holds at one moment of what a leak would show in.
type Holdings struct {
	FDs      int // of this process and of the helper
	Links    int // in the kernel, that run one of the node's programs
	Programs int // in the kernel, that use one of the node's maps
	Maps     int
	Pins     int // files and folders below BPFFS
	Netns    int // network namespaces of the node that something holds
	Files    int // records in RunDir, addresses, results of libcni
}

// Beyond is what h has more than before, of each kind.
func (h Holdings) Beyond(before Holdings) Holdings {
	more := func(a, b int) int { return max(0, a-b) }
	return Holdings{
		more(h.FDs, before.FDs), more(h.Links, before.Links), more(h.Programs, before.Programs), more(h.Maps, before.Maps),
		more(h.Pins, before.Pins), more(h.Netns, before.Netns), more(h.Files, before.Files),
	}
}

// Holdings counts. What is the node's is known by the maps that were ever pinned in it: other nodes on this machine
// load the same programs.
func (n *Node) Holdings() (Holdings, error) {
	n.record(n.BPFFS)
	var h Holdings
	progs, err := n.programsNow()
	if err != nil {
		return h, err
	}
	h.Programs = len(progs)
	if h.Links, err = linksOf(progs); err != nil {
		return h, err
	}
	n.seen.mu.Lock()
	for id := range n.seen.maps {
		if hasMap(id) {
			h.Maps++
		}
	}
	n.seen.mu.Unlock()
	if h.FDs, err = descriptors("self"); err != nil {
		return h, err
	}
	if helper := n.currentHelper(); helper != nil {
		of, err := descriptors(fmt.Sprint(helper.Process.Process.Pid))
		if err != nil {
			return h, err
		}
		h.FDs += of
	}
	held, err := n.heldNamespaces()
	if err != nil {
		return h, err
	}
	h.Netns = len(held)
	if h.Pins, err = countBelow(n.BPFFS); err != nil {
		return h, err
	}
	for _, dir := range []string{filepath.Join(n.RunDir, "pods"), n.cni.ipamDir, filepath.Join(n.cni.cacheDir, "results")} {
		of, err := countBelow(dir)
		if err != nil {
			return h, err
		}
		h.Files += of
	}
	return h, nil
}

// programsNow are the programs in the kernel that use a map of the node.
func (n *Node) programsNow() (map[ebpf.ProgramID]bool, error) {
	ours := map[ebpf.ProgramID]bool{}
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return ours, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing programs: %w", err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if info, err := p.Info(); err == nil {
			used, _ := info.MapIDs()
			for _, m := range used {
				if n.seen.has(n.seen.maps, uint32(m)) {
					ours[id] = true
				}
			}
		}
		p.Close()
	}
}

// linksOf counts the links that run one of the programs.
func linksOf(progs map[ebpf.ProgramID]bool) (int, error) {
	for {
		count := 0
		it := new(link.Iterator)
		for it.Next() {
			if info, err := it.Link.Info(); err == nil && progs[info.Program] {
				count++
			}
		}
		err := it.Err()
		it.Close()
		if errors.Is(err, unix.EAGAIN) {
			continue // somebody is making a link at this moment
		}
		if err != nil {
			return 0, fmt.Errorf("listing links: %w", err)
		}
		return count, nil
	}
}

func descriptors(pid string) (int, error) {
	all, err := os.ReadDir(filepath.Join("/proc", pid, "fd"))
	return len(all), err
}

// countBelow counts files and folders; those that go meanwhile do not count.
func countBelow(dir string) (count int, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && path != dir {
			count++
		}
		return err
	})
	return count, err
}
