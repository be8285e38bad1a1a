// SPDX-License-Identifier: Apache-2.0

// Package oci makes container images of one static program, so that tests need no registry and no daemon.
//
// Invariant: an image is a function of the program's bytes and its name: nothing of the machine or the time gets into it.
package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// descriptor is OCI's.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// WriteImage makes an archive, an OCI image layout, of a static program. It is the image's entry point, in the root folder
// under its own name. The image's name has a tag.
func WriteImage(to, name, program string) error {
	bin, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	_, tag, ok := strings.Cut(name, ":")
	if !ok {
		return fmt.Errorf("image name %q: add a tag, as in %s:1", name, name)
	}
	entry := filepath.Base(program)
	layer, err := tarball([]file{{"etc/", nil}, {"proc/", nil}, {"sys/", nil}, {"dev/", nil}, {entry, bin}})
	if err != nil {
		return err
	}
	var files []file
	blob := func(mediaType string, data []byte) descriptor {
		digest := fmt.Sprintf("%x", sha256.Sum256(data))
		files = append(files, file{"blobs/sha256/" + digest, data})
		return descriptor{MediaType: "application/vnd.oci.image." + mediaType, Digest: "sha256:" + digest, Size: len(data)}
	}
	text := func(v any) []byte {
		b, _ := json.Marshal(v) // maps and strings only
		return b
	}
	layerDesc := blob("layer.v1.tar", layer)
	config := blob("config.v1+json", text(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/" + entry}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	}))
	manifest := blob("manifest.v1+json", text(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []descriptor{layerDesc},
	}))
	manifest.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
	files = append(files,
		file{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		file{"index.json", text(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})})
	image, err := tarball(files)
	if err != nil {
		return err
	}
	return os.WriteFile(to, image, 0o600)
}

type file struct {
	name string // a folder's ends with a slash
	data []byte
}

func tarball(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.data == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}
