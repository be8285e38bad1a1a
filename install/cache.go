// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kmesh/cni/entry"
)

// NoCache is the value of Options.CacheDir for a node without a cache: libcni makes it with the first pod.
const NoCache = "none"

// maxCached bounds one file of libcni's cache.
const maxCached = 8 << 20

// naming lists the attachments in libcni's cache whose configuration has the plugin in it: a runtime that ends them by what is cached calls it.
func naming(cacheDir string) ([]string, error) {
	if cacheDir == NoCache {
		return nil, nil
	}
	if !isDir(cacheDir) {
		return nil, fmt.Errorf("cache-dir: there is no %s: mount the node's folder at the same path, or set cache-dir to %s if this node never had a pod", cacheDir, NoCache)
	}
	dir := filepath.Join(cacheDir, "results")
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache-dir: %w", err)
	}
	var out []string
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		if names(filepath.Join(dir, f.Name())) {
			out = append(out, f.Name())
		}
	}
	return out, nil
}

// names says whether a cached attachment names the plugin. One that cannot be read cannot be used by libcni either.
func names(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() > maxCached {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && cachedNames(data)
}

func cachedNames(data []byte) bool {
	var cached struct {
		Config []byte `json:"config"`
	}
	if json.Unmarshal(data, &cached) != nil {
		return false
	}
	var conf struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if json.Unmarshal(cached.Config, &conf) != nil {
		return false
	}
	for _, p := range conf.Plugins {
		if p.Type == entry.Type {
			return true
		}
	}
	return conf.Type == entry.Type
}
