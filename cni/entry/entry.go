// SPDX-License-Identifier: Apache-2.0

// Package entry is kmesh-cni's entry in a network's configuration, as those who write it and the plugin that reads it both mean it.
//
// Invariant: what Conf encodes the plugin decodes, and the capabilities that make a pod's annotations and cgroup arrive are always declared.
package entry

import (
	"encoding/json"
	"fmt"
)

// Type is the plugin's type, and so the name of its binary.
const Type = "kmesh-cni"

// Defaults of the optional keys.
const (
	DefaultBPFFS    = "/sys/fs/bpf/kmesh"
	DefaultRunDir   = "/run/kmesh"
	DefaultStateDir = "/var/lib/kmesh"
)

// What an opted-in pod does while the mesh is not ready: it is not created and tried again, or it starts ungoverned.
const (
	Wait = "wait"
	Pass = "pass"
)

// The capabilities by which the plugin asks the runtime for a pod's annotations and for its cgroup.
const (
	AnnotationsCapability = "io.kubernetes.cri.pod-annotations"
	CgroupCapability      = "cgroupPath"
)

// Versions of the CNI specification that the plugin speaks. A runtime drops a network whose plugin does not list the network's version, so an entry may
// only be put into a network of one of these.
func Versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Stamp says who put an entry there. The plugin does not read it.
type Stamp struct {
	// Owner is an installation: only it may take the entry away again.
	Owner string `json:"owner"`
	// From is the file of the primary that a configuration of ours was made of.
	From string `json:"from,omitempty"`
}

// Conf is the entry. Keys that are empty are left out: the plugin has the defaults too.
type Conf struct {
	BPFFS    string
	RunDir   string
	StateDir string
	// OnUnready is what an opted-in pod does whose annotations do not say it: Wait or Pass. Empty is Wait.
	OnUnready string
	Stamp     *Stamp
}

// wire is Conf as JSON.
type wire struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	BPFFS        string          `json:"bpffs,omitempty"`
	RunDir       string          `json:"runDir,omitempty"`
	StateDir     string          `json:"stateDir,omitempty"`
	OnUnready    string          `json:"onUnready,omitempty"`
	InstalledBy  *Stamp          `json:"installedBy,omitempty"`
}

// Encode gives the entry as a compact JSON object, the same bytes for the same Conf.
func (c Conf) Encode() []byte {
	data, err := json.Marshal(wire{
		Type:         Type,
		Capabilities: map[string]bool{AnnotationsCapability: true, CgroupCapability: true},
		BPFFS:        c.BPFFS, RunDir: c.RunDir, StateDir: c.StateDir, InstalledBy: c.Stamp,
	})
	if err != nil {
		panic(err) // strings and booleans only
	}
	return data
}

// StampOf reads who put an entry there; nil when it does not say.
func StampOf(raw []byte) (*Stamp, error) {
	var w wire
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, fmt.Errorf("the entry of %s: %w", Type, err)
	}
	if w.Type != Type {
		return nil, fmt.Errorf("the entry is of type %q, not %s", w.Type, Type)
	}
	return w.InstalledBy, nil
}
