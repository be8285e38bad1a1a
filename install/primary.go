// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kmesh/cni/entry"
	"kmesh/install/conflist"
	"kmesh/install/place"
)

// errNoPrimary: the node has no network yet.
var errNoPrimary = errors.New("the node has no network yet")

// ownSuffix ends the name of a configuration that is made of a single one: 10-x.conf gives 10-x-kmesh.conflist, which stands before it in the order of
// names, and so is the one that a runtime takes.
const ownSuffix = "-kmesh.conflist"

// primary is the configuration that the runtime takes, as it would be without one of ours.
type primary struct {
	path string
	conf *conflist.Conf
}

// own is a configuration of ours beside a single one.
type own struct {
	path string
	data []byte
}

// ownPath is where the configuration that is made of a single one is.
func ownPath(single string) string {
	return strings.TrimSuffix(single, filepath.Ext(single)) + ownSuffix
}

// findPrimary reads the folder as a runtime does: the first file by name that ends as a configuration does. It is the only one that counts: a runtime
// that cannot read the first does not go on to the next. What is ours is given apart.
func findPrimary(dir string) (*primary, []own, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("conf-dir: %w", err)
	}
	var ours []own
	var first string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(path)) {
			continue
		}
		if o, ok := readOwn(path); ok {
			ours = append(ours, o)
		} else if first == "" {
			first = path
		}
	}
	if first == "" {
		return nil, ours, errNoPrimary
	}
	p, err := readPrimary(first)
	return p, ours, err
}

func readPrimary(path string) (*primary, error) {
	data, _, err := place.Read(path, conflist.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("the network's configuration cannot be used: %w", err)
	}
	p := &primary{path: path}
	if filepath.Ext(path) == ".conflist" {
		p.conf, err = conflist.ParseList(data)
	} else {
		p.conf, err = conflist.ParseSingle(data)
	}
	if err != nil {
		return nil, fmt.Errorf("the network's configuration %s cannot be used: %w", path, err)
	}
	return p, nil
}

// readOwn recognises a configuration of ours by its name, and by the stamp in it or the single one beside it: a stamp alone can be in a copy, and what
// somebody has made of our file is still in the way of the network that it was made of.
func readOwn(path string) (own, bool) {
	if !strings.HasSuffix(path, ownSuffix) {
		return own{}, false
	}
	data, _, err := place.Read(path, conflist.MaxSize)
	if err != nil {
		return own{}, false
	}
	if conf, err := conflist.ParseList(data); err == nil {
		stamp := stampIn(conf)
		if stamp != nil && stamp.From != "" && ownPath(filepath.Join(filepath.Dir(path), stamp.From)) == path {
			return own{path, data}, true
		}
	}
	for _, ext := range []string{".conf", ".json"} {
		if exists(strings.TrimSuffix(path, ownSuffix) + ext) {
			return own{path, data}, true
		}
	}
	return own{}, false
}

// stampIn gives the stamp of the entry in a chain; nil when there is no entry or it has none.
func stampIn(c *conflist.Conf) *entry.Stamp {
	for _, p := range c.Find(entry.Type) {
		if stamp, err := entry.StampOf(p.Raw); err == nil && stamp != nil {
			return stamp
		}
	}
	return nil
}

// dropInPath is where a drop-in for a network is; false when the network's name is none for a folder.
func dropInPath(confDir, network string) (string, bool) {
	if network == "" || network != filepath.Base(network) || network == "." || network == ".." || strings.ContainsAny(network, "/\x00") {
		return "", false
	}
	return filepath.Join(confDir, network, dropInName), true
}

const dropInName = "50-kmesh.conf"

// dropIns are the drop-ins of ours below a folder of configurations, whatever the network.
func dropIns(confDir string) ([]own, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(confDir), "*", dropInName))
	if err != nil {
		return nil, err
	}
	var out []own
	for _, path := range paths {
		data, _, err := place.Read(path, conflist.MaxSize)
		if err != nil {
			continue
		}
		if stamp, err := entry.StampOf(data); err == nil && stamp != nil {
			out = append(out, own{path: path, data: data})
		}
	}
	return out, nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
