// SPDX-License-Identifier: Apache-2.0

// Package conflist reads a CNI network configuration (a conflist, or the older single conf) and edits the chain of plugins in it.
//
// Invariant: what is not edited stays byte for byte, and every result has been read back with libcni and compared with what was asked for before it is
// given out. An edit that cannot be proven is an error. The package touches no files.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// MaxSize bounds a configuration. A real one has a few kilobytes.
const MaxSize = 1 << 20

// Kind of a configuration file.
type Kind int

const (
	// List is a conflist: an object with a list of plugins.
	List Kind = iota
	// Single is one plugin, as files that end in .conf or .json hold it.
	Single
)

// Plugin is one element of the chain.
type Plugin struct {
	Type string
	// Raw is the element as it is in the file.
	Raw []byte

	start, end int // in the file
}

// Conf is a configuration as it was read.
type Conf struct {
	Kind       Kind
	Name       string
	CNIVersion string // as it is in the file; may be empty
	Plugins    []Plugin
	// LoadOnlyInlined says that the runtime must not read plugins from the network's folder.
	LoadOnlyInlined bool

	data []byte
	open int // where the list of plugins begins, behind its bracket
}

// Bytes are the file's.
func (c *Conf) Bytes() []byte { return c.data }

// Find gives the elements of a type.
func (c *Conf) Find(pluginType string) []Plugin {
	var out []Plugin
	for _, p := range c.Plugins {
		if p.Type == pluginType {
			out = append(out, p)
		}
	}
	return out
}

// ParseList reads a conflist.
func ParseList(data []byte) (*Conf, error) {
	c := &Conf{Kind: List, data: data, open: -1}
	if err := checkText(data); err != nil {
		return nil, err
	}
	err := object(data, 0, func(key string, raw []byte, start int) error {
		switch key {
		case "name":
			return text(key, raw, &c.Name)
		case "cniVersion":
			return text(key, raw, &c.CNIVersion)
		case "plugins":
			return c.readPlugins(raw, start)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if c.open < 0 {
		return nil, errors.New(`key "plugins" is missing: a conflist has a list of plugins`)
	}
	if c.Name == "" {
		return nil, errors.New(`key "name" is missing or empty: give the network a name`)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("libcni does not take it: %w", err)
	}
	if len(list.Plugins) != len(c.Plugins) {
		return nil, fmt.Errorf("libcni finds %d plugins, here are %d", len(list.Plugins), len(c.Plugins))
	}
	for i, p := range list.Plugins {
		c.Plugins[i].Type = p.Network.Type
	}
	c.LoadOnlyInlined = list.LoadOnlyInlinedPlugins
	return c, nil
}

// ParseSingle reads a single conf.
func ParseSingle(data []byte) (*Conf, error) {
	c := &Conf{Kind: Single, data: data, open: -1}
	if err := checkText(data); err != nil {
		return nil, err
	}
	list := false
	err := object(data, 0, func(key string, raw []byte, _ int) error {
		switch key {
		case "name":
			return text(key, raw, &c.Name)
		case "cniVersion":
			return text(key, raw, &c.CNIVersion)
		case "plugins":
			list = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if list {
		return nil, errors.New(`it has a list of plugins, but its name does not end in .conflist, and the runtime does not take it: rename it`)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("libcni does not take it: %w", err)
	}
	if c.Name == "" {
		return nil, errors.New(`key "name" is missing or empty: give the network a name`)
	}
	from := bytes.IndexByte(data, '{')
	to := bytes.LastIndexByte(data, '}') + 1
	c.Plugins = []Plugin{{Type: conf.Network.Type, Raw: data[from:to], start: from, end: to}}
	return c, nil
}

// readPlugins finds where each element of the list is.
func (c *Conf) readPlugins(raw []byte, at int) error {
	if c.open >= 0 {
		return errors.New(`key "plugins" is there twice: remove one`)
	}
	if len(raw) == 0 || raw[0] != '[' {
		return errors.New(`key "plugins" is not a list`)
	}
	c.open = at + 1
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		var element json.RawMessage
		if err := dec.Decode(&element); err != nil {
			return fmt.Errorf("plugin %d: %w", len(c.Plugins), err)
		}
		var conf types.PluginConf
		if err := json.Unmarshal(element, &conf); err != nil || element[0] != '{' {
			return fmt.Errorf("plugin %d is no configuration of a plugin: %w", len(c.Plugins), errors.Join(err, errNotObject(element)))
		}
		if conf.Type == "" {
			return fmt.Errorf(`plugin %d has no "type"`, len(c.Plugins))
		}
		end := at + int(dec.InputOffset())
		c.Plugins = append(c.Plugins, Plugin{Type: conf.Type, Raw: element, start: end - len(element), end: end})
	}
	if len(c.Plugins) == 0 {
		return errors.New(`key "plugins" is an empty list`)
	}
	return nil
}

func errNotObject(raw []byte) error {
	if raw[0] != '{' {
		return errors.New("it is not an object")
	}
	return nil
}

// checkText refuses what no configuration is.
func checkText(data []byte) error {
	if len(data) > MaxSize {
		return fmt.Errorf("it has %d bytes, more than %d: this is no network's configuration", len(data), MaxSize)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	for at := 0; at < len(data); {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n == 1 {
			return fmt.Errorf("byte %d is not UTF-8, as JSON has to be: write the file anew", at)
		}
		at += n
	}
	return nil
}

// object calls f with each key of the object that data is, the value's bytes, and where they begin. The keys that the chain's meaning depends on may not
// be there twice: readers differ in which one they take.
func object(data []byte, base int, f func(key string, raw []byte, start int) error) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	token, err := dec.Token()
	if err != nil {
		return fmt.Errorf("it is not JSON: %w", unexpected(err))
	}
	if token != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return fmt.Errorf("it is not JSON: %w", unexpected(err))
		}
		key, ok := token.(string)
		if !ok {
			return errors.New("it is not JSON: a key is no string")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return fmt.Errorf("key %q: %w", key, unexpected(err))
		}
		switch {
		case seen[key] && slices.Contains(decisive, key):
			return fmt.Errorf("key %q is there twice: remove one", key)
		case len(raw) == 0:
			return fmt.Errorf("key %q has no value", key)
		}
		seen[key] = true
		if err := f(key, raw, base+int(dec.InputOffset())-len(raw)); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("it is not JSON: %w", unexpected(err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something stands behind the JSON object: remove it")
	}
	return nil
}

var decisive = []string{"name", "cniVersion", "cniVersions", "plugins", "loadOnlyInlinedPlugins", "type"}

// unexpected says of a cut-off text what it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func text(key string, raw []byte, to *string) error {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return fmt.Errorf("key %q is not a string", key)
	}
	*to = *s
	return nil
}
