// SPDX-License-Identifier: Apache-2.0

// Package netns is where programs meet a pod: it finds and validates the pod's cgroup, enters its network namespace, attaches and pins, takes over,
// verifies, detaches and sweeps.
//
// Invariant: one link per hook per cgroup inode, always. The pins make it structural: a cgroup's links are pinned under its inode, and every change to
// them happens under an exclusive lock of the cgroup directory's own descriptor. The bpffs alone is enough to verify, release and sweep; the JSON records
// in the run directory are for people. No pod of ours is ever half enrolled after an error: what was there before is there again.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmesh/netns/failpoint"
)

// Attachment is CNI's key of one interface of one sandbox. Names of pods are never keys: they come back with another pod behind them.
type Attachment struct {
	ContainerID string `json:"containerID"`
	Network     string `json:"network"`
	IfName      string `json:"ifName"`
}

func (a Attachment) String() string { return a.ContainerID + "/" + a.Network + "/" + a.IfName }

// Request asks for an enrolment.
type Request struct {
	Attachment
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name,omitempty"`
	UID        string `json:"uid,omitempty"`
	NetnsPath  string `json:"netnsPath,omitempty"`
	CgroupPath string `json:"cgroupPath,omitempty"` // the runtime's cgroupPath capability, verbatim; may be empty
}

// Options configure a Node. BPFFS and RunDir are needed.
type Options struct {
	BPFFS       string // our directory on a bpf filesystem
	RunDir      string // records for people
	CgroupRoot  string // cgroup2 mount; "" = found by type
	ForceClsact bool   // use clsact even where the kernel has TCX
}

// Node enrols the pods of this node. It holds no state of its own; any number of them, in any number of processes, work on one bpffs.
type Node struct {
	opts   Options
	finder cgroupFinder
}

// New makes a Node. It does no I/O.
func New(opts Options) *Node {
	return &Node{opts: opts, finder: cgroupFinder{root: opts.CgroupRoot}}
}

// Link is what the kernel says of one attached program.
type Link struct {
	Hook       string `json:"hook"`
	ID         uint32 `json:"id"` // 0: a clsact filter, which is no link
	ProgramID  uint32 `json:"programID"`
	ProgramTag string `json:"programTag,omitempty"`
	CgroupID   uint64 `json:"cgroupID,omitempty"`
	Ifindex    uint32 `json:"ifindex,omitempty"`
	Live       bool   `json:"live"` // false: severed, its cgroup or interface is gone
}

// Pod is one attachment as the kernel has it; the names come from its record, if there is one.
type Pod struct {
	Request
	Cgroup      uint64    `json:"cgroup"`             // inode of the cgroup
	NetnsCookie uint64    `json:"netnsCookie"`        // key in the pods map
	Ready       bool      `json:"ready"`              // the enrolment was finished
	Owner       bool      `json:"owner"`              // owns the cgroup's links; false after a newer sandbox took over
	Draining    bool      `json:"draining,omitempty"` // opted out: what it opens is not governed, what is open goes on
	Scope       uint32    `json:"scope,omitempty"`    // id of its view of the mesh
	Links       []Link    `json:"links"`
	Drift       []string  `json:"drift,omitempty"` // what is not as it was enrolled, in words
	Time        time.Time `json:"time,omitzero"`
}

// Live says whether the pod is governed as it should be.
func (p Pod) Live() bool { return p.Ready && len(p.Drift) == 0 }

// Marker directories of an attachment.
const (
	markCgroup = "cgroup="
	markNetns  = "netns="
	markReady  = "ready"
	// The clsact filters of an attachment sit on this interface; "own" when we made the qdisc.
	markClsact    = "clsact="
	markClsactOwn = "clsact-own="
)

func (n *Node) podsDir() string    { return filepath.Join(n.opts.BPFFS, "pods") }
func (n *Node) cgroupsDir() string { return filepath.Join(n.opts.BPFFS, "cgroups") }
func (n *Node) cgroupDir(inode uint64) string {
	return filepath.Join(n.cgroupsDir(), strconv.FormatUint(inode, 10))
}
func (n *Node) ownersDir(inode uint64) string { return filepath.Join(n.cgroupDir(inode), "owners") }

// podDir is the attachment's directory on the bpffs.
func (n *Node) podDir(a Attachment) (string, error) {
	id, net, ifName, err := a.escaped()
	if err != nil {
		return "", err
	}
	return filepath.Join(n.podsDir(), id, net, ifName), nil
}

func (a Attachment) escaped() (id, net, ifName string, err error) {
	var errs [3]error
	id, errs[0] = escape(a.ContainerID)
	net, errs[1] = escape(a.Network)
	ifName, errs[2] = escape(a.IfName)
	for i, field := range []string{"container id", "network", "interface name"} {
		if errs[i] != nil {
			return "", "", "", fmt.Errorf("%s: %w", field, errs[i])
		}
	}
	return id, net, ifName, nil
}

// markers of an attachment, as read from its directory.
type markers struct {
	cgroup, netns uint64 // 0: not there
	clsact        int    // interface index, 0: none
	clsactOwn     bool
	ready         bool
	pins          []string
}

// readMarkers reads an attachment's directory. A missing directory is fs.ErrNotExist.
func readMarkers(dir string) (markers, error) {
	var m markers
	entries, err := os.ReadDir(dir)
	if err != nil {
		return m, err
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case name == markReady:
			m.ready = true
		case strings.HasPrefix(name, markCgroup):
			m.cgroup, err = strconv.ParseUint(name[len(markCgroup):], 10, 64)
		case strings.HasPrefix(name, markNetns):
			m.netns, err = strconv.ParseUint(name[len(markNetns):], 10, 64)
		case strings.HasPrefix(name, markClsact):
			m.clsact, err = strconv.Atoi(name[len(markClsact):])
		case strings.HasPrefix(name, markClsactOwn):
			m.clsactOwn = true
			m.clsact, err = strconv.Atoi(name[len(markClsactOwn):])
		case !e.IsDir():
			m.pins = append(m.pins, name)
		}
		if err != nil {
			return m, fmt.Errorf("marker %s: %w", filepath.Join(dir, name), err)
		}
	}
	return m, nil
}

// mkdir makes a directory with its parents, and again when somebody tidied a parent away meanwhile. made says whether the last one is new.
func mkdir(dir string) (made bool, err error) {
	for range 100 {
		if err = failpoint.Here("make parents"); err == nil {
			err = os.MkdirAll(filepath.Dir(dir), 0o700)
		}
		if err == nil {
			err = failpoint.Here("make directory")
		}
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, fs.ErrExist):
			return false, nil
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	return false, err
}

// remove removes one entry; that it is not there is as good.
func remove(path string) error {
	if err := failpoint.Here("remove"); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return nil
}

// prune removes dir and its parents below top while they are empty.
func prune(dir, top string) error {
	for ; dir != top && strings.HasPrefix(dir, top); dir = filepath.Dir(dir) {
		err := remove(dir)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// names lists a directory; a missing one is empty.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out, nil
}

// attachments walks the pods directory.
func (n *Node) attachments() ([]Attachment, error) {
	var out []Attachment
	ids, err := names(n.podsDir())
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	for _, id := range ids {
		of, err := n.attachmentsOf(id)
		if err != nil {
			return nil, err
		}
		out = append(out, of...)
	}
	return out, nil
}

// attachmentsOf walks one container's directory, given by its escaped id.
func (n *Node) attachmentsOf(id string) ([]Attachment, error) {
	var out []Attachment
	containerID, err := unescape(id)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	nets, err := names(filepath.Join(n.podsDir(), id))
	if err != nil {
		return nil, fmt.Errorf("list networks of %s: %w", containerID, err)
	}
	for _, net := range nets {
		ifNames, err := names(filepath.Join(n.podsDir(), id, net))
		if err != nil {
			return nil, fmt.Errorf("list interfaces of %s: %w", containerID, err)
		}
		network, err := unescape(net)
		if err != nil {
			return nil, fmt.Errorf("list networks of %s: %w", containerID, err)
		}
		for _, i := range ifNames {
			ifName, err := unescape(i)
			if err != nil {
				return nil, fmt.Errorf("list interfaces of %s: %w", containerID, err)
			}
			out = append(out, Attachment{ContainerID: containerID, Network: network, IfName: ifName})
		}
	}
	return out, nil
}
