// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// platformImage is the image of one platform.
type platformImage struct {
	platform *v1.Platform
	bin      string // folder of its programs
	image    v1.Image
}

// entry is one file of the image. All belong to root and may be written by nobody else.
type entry struct {
	name string
	mode fs.FileMode
	data []byte
	to   string // of a symbolic link
}

// folders are there because something is mounted on them, or in them.
var folders = []string{"dev", "etc", "proc", "run", "sys", "tmp", "usr", "usr/local", "usr/local/bin", "var", "var/lib"}

// assemble puts a platform's programs into an image.
func (o options) assemble(p platformImage, licence []byte) (v1.Image, error) {
	var entries []entry
	for _, name := range folders {
		entries = append(entries, entry{name: name, mode: fs.ModeDir | 0o755})
	}
	// Container runtimes name network namespaces below /var/run.
	entries = append(entries, entry{name: "LICENSE", mode: 0o644, data: licence}, entry{name: "var/run", mode: fs.ModeSymlink | 0o777, to: "../run"})
	for _, program := range programs {
		data, err := os.ReadFile(filepath.Join(p.bin, path.Base(program)))
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name: path.Join(binDir, path.Base(program)), mode: 0o755, data: data})
	}
	layer, err := tarOf(entries, o.Created)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("layer of %s: %w", p.platform, err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, l)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = p.platform.OS, p.platform.Architecture, p.platform.Variant
	config.Created = v1.Time{Time: o.Created}
	config.History = nil
	config.Config = v1.Config{
		Entrypoint: []string{"/" + path.Join(binDir, "kmesh-helper")},
		Env:        []string{"PATH=/" + binDir},
		User:       "0:0",
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "kmesh",
			"org.opencontainers.image.version":  o.Version,
			"org.opencontainers.image.licenses": "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		},
	}
	return mutate.ConfigFile(image, config)
}

// tarOf writes entries in the order of their names, all of one time.
func tarOf(entries []entry, at time.Time) ([]byte, error) {
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), Size: int64(len(e.data)), Linkname: e.to, ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		switch {
		case e.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, e.name+"/"
		case e.mode.Type() == fs.ModeSymlink:
			h.Typeflag = tar.TypeSymlink
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// indexOf lists the images by platform.
func indexOf(images []platformImage) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, i := range images {
		desc := v1.Descriptor{Platform: i.platform}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: i.image, Descriptor: desc})
	}
	return index, nil
}

// write makes an OCI layout of index below dir, and a tar of it at out, at once.
func write(index v1.ImageIndex, ref name.Tag, dir, out string) error {
	l, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	// Two readers, two names: containerd takes the first, other tools the second.
	err = l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          ref.String(),
		"org.opencontainers.image.ref.name": ref.TagStr(),
	}))
	if err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	var entries []entry
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		e := entry{name: filepath.ToSlash(rel), mode: 0o644}
		if d.IsDir() {
			e.mode = fs.ModeDir | 0o755
		} else if e.data, err = os.ReadFile(p); err != nil {
			return err
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	data, err := tarOf(entries, time.Unix(0, 0).UTC())
	if err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(out+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(out+".new", out)
}
