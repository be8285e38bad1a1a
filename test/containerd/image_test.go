// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

const sandboxImage = "kmesh.test/pause:1"

// descriptor is OCI's.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// writeImage makes an OCI image layout of one static program, as a tar, so that no registry is needed.
func writeImage(program, to string) error {
	bin, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := tarball([]file{{"etc/", nil}, {"proc/", nil}, {"sys/", nil}, {"dev/", nil}, {"pause", bin}})
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
		"config": map[string]any{"Entrypoint": []string{"/pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	}))
	manifest := blob("manifest.v1+json", text(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []descriptor{layerDesc},
	}))
	manifest.Annotations = map[string]string{"io.containerd.image.name": sandboxImage, "org.opencontainers.image.ref.name": "1"}
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
