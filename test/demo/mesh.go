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

//go:embed mesh/*.yaml shop/*.yaml
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

// shop is what the files of the service with HTTP are filled with.
type shop struct {
	Routes, Endpoints int // version of each file that changes
	VIP               netip.AddrPort
	Host              string
	Weights           [2]int // of the clusters v1 and v2
	Clusters          []cluster
}

type cluster struct {
	Name      string
	Endpoints []endpoint
}

type endpoint struct {
	Addr   netip.AddrPort
	Health string // as EDS has it
}

func (m mesh) write(dir string) error { return fill("mesh", dir, m) }

func (sh shop) write(dir string) error { return fill("shop", dir, sh) }

// fill puts a folder of templates, filled in, into dir, each file by an atomic rename, as an operator's tool should.
// What is as it was is not touched.
func fill(folder, dir string, content any) error {
	all, err := template.ParseFS(templates, folder+"/*.yaml")
	if err != nil {
		return err
	}
	return fs.WalkDir(templates, folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var text bytes.Buffer
		if err := all.ExecuteTemplate(&text, d.Name(), content); err != nil {
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
