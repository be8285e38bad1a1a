// SPDX-License-Identifier: Apache-2.0

package optin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

const (
	setVersion = 1
	// maxSetSize is far above 10,000 namespaces with the longest names.
	maxSetSize = 16 << 20
)

// Set is the last-known set of namespaces.
type Set struct {
	Namespaces   map[string]Mode
	ControlPlane []string // namespaces that are never enrolled, beside the built-in ones
	Policies     Policies
}

// Equal says whether two sets answer alike for every pod.
func (s Set) Equal(o Set) bool {
	return maps.Equal(s.Namespaces, o.Namespaces) && slices.Equal(s.ControlPlane, o.ControlPlane) && s.Policies.Equal(o.Policies)
}

func (s Set) isControlPlane(namespace string) bool { return slices.Contains(s.ControlPlane, namespace) }

// file is the form on disk. A mode that a newer helper may write and this reader does not know is no mode; a key that it does not know it leaves out,
// as a plugin does that is older than policies: what it enrols the helper lets go.
type file struct {
	Version      int             `json:"version"`
	Namespaces   map[string]Mode `json:"namespaces"`
	ControlPlane []string        `json:"controlPlane,omitempty"`
	Policies     *Policies       `json:"policies,omitempty"`
}

// Path is where the set is kept below a state directory.
func Path(stateDir string) string { return filepath.Join(stateDir, "optin.json") }

// Parse reads a set's form on disk.
func Parse(data []byte) (Set, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return Set{}, fmt.Errorf("namespace set: %w: correct or remove the file", err)
	}
	if f.Version != setVersion {
		return Set{}, fmt.Errorf("namespace set: version is %d, this program reads %d: install the same version of kmesh-cni and kmesh-helper", f.Version, setVersion)
	}
	s := Set{Namespaces: make(map[string]Mode, len(f.Namespaces)), ControlPlane: f.ControlPlane}
	for name, mode := range f.Namespaces {
		if name != "" && (mode == Enroll || mode == Required) {
			s.Namespaces[name] = mode
		}
	}
	if f.Policies != nil {
		s.Policies = f.Policies.Whole()
	}
	return s, nil
}

// Read reads the set of a state directory. A missing one is empty. With an error the set is empty too, and may be used: it opts nobody in.
func Read(stateDir string) (Set, error) {
	info, err := os.Stat(Path(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return Set{}, nil
	}
	if err != nil {
		return Set{}, fmt.Errorf("namespace set: %w", err)
	}
	// To open a pipe or a device could hold the pod up.
	if !info.Mode().IsRegular() {
		return Set{}, fmt.Errorf("namespace set: %s is not a regular file: remove it", Path(stateDir))
	}
	f, err := os.Open(Path(stateDir))
	if err != nil {
		return Set{}, fmt.Errorf("namespace set: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSetSize+1))
	if err != nil {
		return Set{}, fmt.Errorf("namespace set: %w", err)
	}
	if len(data) > maxSetSize {
		return Set{}, fmt.Errorf("namespace set: %s is larger than %d bytes: remove it", f.Name(), maxSetSize)
	}
	s, err := Parse(data)
	if err != nil {
		return Set{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return s, nil
}

// Write replaces the set of a state directory at once: a reader, or a node that loses power, has the old one or the new one.
func Write(stateDir string, s Set) (err error) {
	for name, mode := range s.Namespaces {
		if name == "" || mode != Enroll && mode != Required {
			return fmt.Errorf("namespace set: namespace %q has mode %q: use %q or %q", name, mode, Enroll, Required)
		}
	}
	f := file{Version: setVersion, Namespaces: s.Namespaces, ControlPlane: s.ControlPlane}
	if p := s.Policies.Whole(); !p.Equal(Policies{}) {
		f.Policies = &p
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("namespace set: %w", err)
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("namespace set: %w", err)
	}
	tmp, err := os.CreateTemp(stateDir, ".optin-*")
	if err != nil {
		return fmt.Errorf("namespace set: %w", err)
	}
	_, err = tmp.Write(append(data, '\n'))
	if err == nil {
		err = tmp.Sync()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), Path(stateDir))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("namespace set: %w", err), os.Remove(tmp.Name()))
	}
	dir, err := os.Open(stateDir)
	if err != nil {
		return fmt.Errorf("namespace set: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("namespace set: %w", err)
	}
	return nil
}
