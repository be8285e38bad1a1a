// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"kmesh/cni/entry"
	"kmesh/cni/optin"
)

// Defaults of the conflist entry's optional keys.
const (
	DefaultBPFFS    = entry.DefaultBPFFS
	DefaultRunDir   = entry.DefaultRunDir
	DefaultStateDir = entry.DefaultStateDir
)

// conf is our conflist entry as it arrives on stdin. Keys of our own stay raw until an enrolled pod needs them: a mistake in them must not touch
// pods that did not opt in.
type conf struct {
	CNIVersion string          `json:"cniVersion"`
	Name       string          `json:"name"`
	PrevResult json.RawMessage `json:"prevResult"`

	BPFFS    json.RawMessage `json:"bpffs"`
	RunDir   json.RawMessage `json:"runDir"`
	StateDir json.RawMessage `json:"stateDir"`

	OnUnready json.RawMessage `json:"onUnready"`

	Runtime json.RawMessage `json:"runtimeConfig"`

	// The specification names one key and libcni has long sent the other; it sends both today.
	Valid    json.RawMessage `json:"cni.dev/valid-attachments"`
	ValidOld json.RawMessage `json:"cni.dev/attachments"`
}

func parseConf(stdin []byte) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration cannot be decoded: correct the conflist", err.Error())
	}
	return c, nil
}

// dirs are our own keys with their defaults.
type dirs struct{ bpffs, run, state string }

func (c *conf) dirs() (dirs, error) {
	var d dirs
	for _, f := range []struct {
		key string
		raw json.RawMessage
		def string
		out *string
	}{
		{"bpffs", c.BPFFS, DefaultBPFFS, &d.bpffs},
		{"runDir", c.RunDir, DefaultRunDir, &d.run},
		{"stateDir", c.StateDir, DefaultStateDir, &d.state},
	} {
		dir, err := dirOf(f.key, f.raw, f.def)
		if err != nil {
			return d, err
		}
		*f.out = dir
	}
	return d, nil
}

func dirOf(key string, raw json.RawMessage, def string) (string, error) {
	if len(raw) == 0 {
		return def, nil
	}
	var dir *string
	if err := json.Unmarshal(raw, &dir); err != nil || dir == nil || !filepath.IsAbs(*dir) || filepath.Clean(*dir) == "/" {
		return "", types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("conflist key %q of kmesh-cni is %s: set it to an absolute directory, or leave it out for %s", key, shown(raw), def), "")
	}
	return filepath.Clean(*dir), nil
}

// shown is a value as an error says it.
func shown(raw json.RawMessage) string {
	if len(raw) > 60 {
		return string(raw[:60]) + "..."
	}
	return string(raw)
}

// passUnready says whether an enrolled pod starts ungoverned when the mesh is not ready: the pod's own word, else the entry's.
func (c *call) passUnready(decision optin.Decision) (bool, error) {
	if _, said := c.rt.annotations[optin.AnnotationOnUnready]; said || len(c.OnUnready) == 0 {
		return decision.PassWhenUnready, nil
	}
	var value string
	if err := json.Unmarshal(c.OnUnready, &value); err != nil || value != entry.Wait && value != entry.Pass {
		return false, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("conflist key \"onUnready\" of kmesh-cni is %s: set it to \"wait\" or \"pass\", or leave it out for wait", shown(c.OnUnready)), "")
	}
	return value == entry.Pass, nil
}

// stateDir is the state directory where it can be told: without it nobody is opted in by namespace.
func (c *conf) stateDir() (string, error) { return dirOf("stateDir", c.StateDir, DefaultStateDir) }

// valid reads the attachments that GC must keep: those that either key names. known is false when neither key is there, which is no order to remove
// anything; a null is an empty list, as libcni means it.
func (c *conf) valid() (keep []types.GCAttachment, known bool, err error) {
	for _, k := range []struct {
		key string
		raw json.RawMessage
	}{{"cni.dev/valid-attachments", c.Valid}, {"cni.dev/attachments", c.ValidOld}} {
		if len(k.raw) == 0 {
			continue
		}
		var list []types.GCAttachment
		if err := json.Unmarshal(k.raw, &list); err != nil {
			return nil, false, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("%s is malformed: send a list of objects with containerID and ifname", k.key), err.Error())
		}
		keep, known = append(keep, list...), true
	}
	return keep, known, nil
}

// capabilities are what our capabilities brought.
type capabilities struct {
	annotations map[string]string
	cgroupPath  string
	cgroupErr   error // matters to enrolled pods only
}

// runtimeConfig reads the capabilities. Only the annotations that are ours to read are looked at.
func (c *conf) runtimeConfig() (capabilities, error) {
	rt := capabilities{annotations: make(map[string]string)}
	if len(c.Runtime) == 0 {
		return rt, nil
	}
	var raw struct {
		Annotations map[string]json.RawMessage `json:"io.kubernetes.cri.pod-annotations"`
		CgroupPath  json.RawMessage            `json:"cgroupPath"`
	}
	if err := json.Unmarshal(c.Runtime, &raw); err != nil {
		return rt, types.NewError(types.ErrDecodingFailure, "runtimeConfig is not what the capabilities of kmesh-cni stand for: check the container runtime", err.Error())
	}
	for _, name := range optin.AnnotationsRead {
		value, ok := raw.Annotations[name]
		if !ok {
			continue
		}
		var s string
		if err := json.Unmarshal(value, &s); err != nil {
			return rt, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("pod annotation %s is not a string: quote its value", name), "")
		}
		rt.annotations[name] = s
	}
	if len(raw.CgroupPath) > 0 {
		if err := json.Unmarshal(raw.CgroupPath, &rt.cgroupPath); err != nil {
			rt.cgroupErr = types.NewError(types.ErrDecodingFailure, "runtimeConfig key cgroupPath is not a string: check the container runtime", "")
		}
	}
	return rt, nil
}

// podArgs are the keys of CNI_ARGS that Kubernetes' runtimes set.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
}

// parseArgs reads CNI_ARGS. Keys that are not ours are somebody's.
func parseArgs(s string) (podArgs, error) {
	var a podArgs
	a.IgnoreUnknown = true
	if err := types.LoadArgs(s, &a); err != nil {
		return a, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %v: use KEY=VALUE pairs with semicolons between them", err), "")
	}
	return a, nil
}
