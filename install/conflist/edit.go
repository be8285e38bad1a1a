// SPDX-License-Identifier: Apache-2.0

package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// ErrAlone is the answer to an edit that would leave the chain without a plugin, or without one before ours.
var ErrAlone = errors.New("the chain has no other plugin than this one")

// With gives the conflist with the entry in the chain: in the place of one of its type if there is one, otherwise at the end. An entry that is first is
// moved behind the primary, and of several one is kept. The same bytes come back when nothing has to change, and Without takes away exactly what With
// has put in.
func (c *Conf) With(entry []byte) ([]byte, error) {
	pluginType, err := typeOf(entry)
	if err != nil {
		return nil, err
	}
	if c.Kind != List {
		return nil, errors.New("a single configuration has no chain: use Chained")
	}
	ours := indexes(c.Plugins, pluginType)
	if len(ours) == len(c.Plugins) {
		return nil, ErrAlone
	}
	if len(ours) == 1 && ours[0] > 0 {
		p := c.Plugins[ours[0]]
		if sameJSON(p.Raw, entry) {
			return c.data, nil
		}
		return c.prove(splice(c.data, p.start, p.end, render(entry, c.gap(ours[0]))), pluginType, entry)
	}
	base := c
	if len(ours) > 0 {
		data, err := c.Without(pluginType)
		if err != nil {
			return nil, err
		}
		if base, err = ParseList(data); err != nil {
			return nil, err
		}
	}
	last := base.Plugins[len(base.Plugins)-1]
	gap := base.gap(len(base.Plugins) - 1)
	return c.prove(splice(base.data, last.end, last.end, ","+gap+render(entry, gap)), pluginType, entry)
}

// Without gives the conflist without the entries of a type, and of each the comma and the space before it.
func (c *Conf) Without(pluginType string) ([]byte, error) {
	if c.Kind != List {
		return nil, errors.New("a single configuration has no chain")
	}
	ours := indexes(c.Plugins, pluginType)
	switch len(ours) {
	case 0:
		return c.data, nil
	case len(c.Plugins):
		return nil, ErrAlone
	}
	// Those that stand first go with what is behind them; the others with the comma before them.
	first := slices.IndexFunc(c.Plugins, func(p Plugin) bool { return p.Type != pluginType })
	data := c.data
	for _, i := range slices.Backward(ours) {
		if i > first {
			data = splice(data, c.Plugins[i-1].end, c.Plugins[i].end, "")
		}
	}
	if first > 0 {
		data = splice(data, c.Plugins[0].start, c.Plugins[first].start, "")
	}
	return c.prove(data, pluginType, nil)
}

// Chained makes a conflist of a single configuration, with the entry behind it: the same name and version, and the plugin's own bytes. No runtime reads
// drop-ins for a single configuration, so none is to do it for the list.
func (c *Conf) Chained(entry []byte) ([]byte, error) {
	pluginType, err := typeOf(entry)
	if err != nil {
		return nil, err
	}
	if c.Kind != Single {
		return nil, errors.New("a conflist is a chain already: use With")
	}
	if c.Plugins[0].Type == pluginType {
		return nil, ErrAlone
	}
	var b strings.Builder
	b.WriteString("{\n")
	if c.CNIVersion != "" {
		fmt.Fprintf(&b, "  \"cniVersion\": %s,\n", quote(c.CNIVersion))
	}
	fmt.Fprintf(&b, "  \"name\": %s,\n  \"loadOnlyInlinedPlugins\": true,\n  \"plugins\": [\n    ", quote(c.Name))
	b.Write(c.Plugins[0].Raw)
	b.WriteString(",\n    ")
	b.WriteString(render(entry, "\n    "))
	b.WriteString("\n  ]\n}\n")
	return c.prove([]byte(b.String()), pluginType, entry)
}

// Speaks says whether a plugin that knows these versions of the specification can be in the chain: a runtime calls all plugins in the network's version,
// and one that does not know it fails every pod.
func (c *Conf) Speaks(versions []string) error {
	version := c.CNIVersion
	if c.Kind == List {
		list, err := libcni.NetworkConfFromBytes(c.data)
		if err != nil {
			return err
		}
		version = list.CNIVersion
	}
	for _, v := range []string{version, c.CNIVersion} {
		if !slices.Contains(versions, v) && (v != "" || version == "") {
			return fmt.Errorf("cniVersion is %q: set one of %s, in which all plugins of the chain can be called", v, strings.Join(versions, ", "))
		}
	}
	return nil
}

// prove reads an edit back and compares: the name, the version and all plugins but ours are what they were, and ours are what was asked for.
func (c *Conf) prove(data []byte, pluginType string, entry []byte) ([]byte, error) {
	after, err := ParseList(data)
	if err != nil {
		return nil, fmt.Errorf("the edit cannot be read back: %w", err)
	}
	if after.Name != c.Name || after.CNIVersion != c.CNIVersion || after.LoadOnlyInlined != (c.LoadOnlyInlined || c.Kind == Single) {
		return nil, errors.New("the edit changes more than the chain")
	}
	others := func(p Plugin) bool { return p.Type == pluginType }
	before, rest := slices.DeleteFunc(slices.Clone(c.Plugins), others), slices.DeleteFunc(slices.Clone(after.Plugins), others)
	if !slices.EqualFunc(before, rest, func(a, b Plugin) bool { return bytes.Equal(a.Raw, b.Raw) }) {
		return nil, errors.New("the edit changes other plugins")
	}
	ours := after.Find(pluginType)
	switch {
	case entry == nil && len(ours) == 0:
		return data, nil
	case entry != nil && len(ours) == 1 && sameJSON(ours[0].Raw, entry) && after.Plugins[0].Type != pluginType:
		return data, nil
	}
	return nil, fmt.Errorf("the edit leaves %d entries of %s", len(ours), pluginType)
}

// gap is the white space before an element, as whoever wrote the file has it.
func (c *Conf) gap(i int) string {
	from := c.open
	if i > 0 {
		from = c.Plugins[i-1].end
	}
	before, after, found := strings.Cut(string(c.data[from:c.Plugins[i].start]), ",")
	if !found {
		return before
	}
	return after
}

// render writes an entry as the elements beside it are written: on lines of its own when they begin on one.
func render(entry []byte, gap string) string {
	newline := strings.LastIndexByte(gap, '\n')
	if newline < 0 {
		return string(entry)
	}
	indent := gap[newline+1:]
	unit := "  "
	if strings.HasPrefix(indent, "\t") {
		unit = "\t"
	}
	var b bytes.Buffer
	if err := json.Indent(&b, entry, indent, unit); err != nil {
		return string(entry)
	}
	return b.String()
}

func typeOf(entry []byte) (string, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(entry)
	if err != nil {
		return "", fmt.Errorf("the entry to put in: %w", err)
	}
	return conf.Network.Type, nil
}

func indexes(plugins []Plugin, pluginType string) []int {
	var out []int
	for i, p := range plugins {
		if p.Type == pluginType {
			out = append(out, i)
		}
	}
	return out
}

// sameJSON compares but for white space.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func splice(data []byte, from, to int, with string) []byte {
	return slices.Concat(data[:from], []byte(with), data[to:])
}

func quote(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string
	return strings.TrimSpace(b.String())
}
