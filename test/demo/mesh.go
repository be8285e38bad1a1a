// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
)

//go:embed mesh/*.yaml
var templates embed.FS

// mesh is what the files of templates are filled with.
type mesh struct {
	Version  int
	VIP      netip.AddrPort
	Versions []version
}

// version is one of the service's, a cluster of its own.
type version struct {
	Name      string
	Weight    int
	Endpoints []netip.AddrPort
}

// write puts the files into dir, each by an atomic rename, as an operator's tool should. What is as it was is not
// touched.
func (m mesh) write(dir string) error {
	all, err := template.ParseFS(templates, "mesh/*.yaml")
	if err != nil {
		return err
	}
	return fs.WalkDir(templates, "mesh", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var text bytes.Buffer
		if err := all.ExecuteTemplate(&text, d.Name(), m); err != nil {
			return fmt.Errorf("filling in %s: %w", path, err)
		}
		to := filepath.Join(dir, d.Name())
		if old, err := os.ReadFile(to); err == nil && bytes.Equal(old, text.Bytes()) {
			return nil
		}
		// A name that the helper does not read, until it is whole.
		if err := os.WriteFile(to+".new", text.Bytes(), 0o600); err != nil {
			return err
		}
		return os.Rename(to+".new", to)
	})
}
