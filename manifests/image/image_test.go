// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

const root = "../.." // of the repository, seen from here

// built is one image of both platforms, made once for all tests.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kmesh-image-test-")
	if err != nil {
		return "", err
	}
	_, err = run(context.Background(), options{Out: filepath.Join(dir, "image.tar"), Name: "kmesh.net/kmesh:v1", Version: "v1-test", Platforms: []string{"linux/amd64", "linux/arm64"}, Go: "go", Dir: root})
	return dir, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// files unpacks a tar of regular files.
func files(t *testing.T, r io.Reader) (map[string][]byte, []*tar.Header) {
	t.Helper()
	out := map[string][]byte{}
	var headers []*tar.Header
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		if h.Typeflag == tar.TypeReg {
			if out[h.Name], err = io.ReadAll(tr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// unpack gives the image's layout as a folder.
func unpack(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	contents, _ := files(t, bytes.NewReader(raw))
	for name, data := range contents {
		if err := os.MkdirAll(filepath.Join(to, path.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// TestImage: both platforms are in it, each with static programs of its own architecture, that say their version, and
// with nothing else.
func TestImage(t *testing.T) {
	dir := unpack(t)
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := outer.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"io.containerd.image.name": "kmesh.net/kmesh:v1", "org.opencontainers.image.ref.name": "v1"}
	if len(top.Manifests) != 1 || !maps.Equal(top.Manifests[0].Annotations, want) {
		t.Fatalf("the layout has %+v, want one index with %v", top.Manifests, want)
	}
	index, err := outer.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	machines := map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}
	for _, desc := range list.Manifests {
		machine, ok := machines[desc.Platform.String()]
		if !ok {
			t.Errorf("platform %s is not expected, or there twice", desc.Platform)
			continue
		}
		delete(machines, desc.Platform.String())
		image, err := index.Image(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkPlatform(t, image, desc.Platform, machine)
	}
	if len(machines) > 0 {
		t.Errorf("missing: %v", machines)
	}
}

func checkPlatform(t *testing.T, image v1.Image, platform *v1.Platform, machine elf.Machine) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != platform.Architecture || config.OS != "linux" || config.Config.User != "0:0" || !config.Created.IsZero() && config.Created.Unix() != 0 {
		t.Errorf("%s: its configuration is %+v", platform, config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers, %v", platform, len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	contents, headers := files(t, r)
	var want []string
	for _, p := range programs {
		want = append(want, path.Join(binDir, path.Base(p)))
	}
	want = append(want, "LICENSE")
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(contents)); !slices.Equal(got, want) {
		t.Errorf("%s: files %q, want %q", platform, got, want)
	}
	for _, h := range headers {
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 || h.Typeflag != tar.TypeSymlink && h.Mode&0o022 != 0 || h.Mode&0o7000 != 0 {
			t.Errorf("%s: %s: %+v", platform, h.Name, h)
		}
	}
	for name, data := range contents {
		if name == "LICENSE" {
			continue
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %s: %v", platform, name, err)
			continue
		}
		libs, _ := f.ImportedLibraries()
		dynamic := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		if f.Machine != machine || len(libs) > 0 || dynamic {
			t.Errorf("%s: %s is for %s, with an interpreter: %t, libraries %q; want %s, static", platform, name, f.Machine, dynamic, libs, machine)
		}
		if platform.Architecture == runtime.GOARCH && (path.Base(name) == "kmesh-helper" || path.Base(name) == "kmesh-install") {
			checkVersion(t, data)
		}
	}
}

func checkVersion(t *testing.T, program []byte) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "v1-test") {
		t.Errorf("version: %v: %q", err, out)
	}
}

// TestTwoBuildsAreOne: the same sources in another place, with other times, another umask, time zone and environment,
// give the same bytes.
func TestTwoBuildsAreOne(t *testing.T) {
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "a", "longer path", "to the sources")
	copyTree(t, root, elsewhere)
	for name, value := range map[string]string{"TZ": "Asia/Kolkata", "GOFLAGS": "-ldflags=-X=main.version=other", "GOAMD64": "v3", "LANG": "C", "CGO_ENABLED": "1"} {
		t.Setenv(name, value)
	}
	defer syscall.Umask(syscall.Umask(0o077))
	again := filepath.Join(t.TempDir(), "again.tar")
	digest, err := run(t.Context(), options{Out: again, Name: "kmesh.net/kmesh:v1", Version: "v1-test", Platforms: []string{"linux/amd64", "linux/arm64"}, Go: "go", Dir: elsewhere})
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(filepath.Join(dir, "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("two builds differ: %d and %d bytes%s", len(a), len(b), difference(t, a, b))
	}
	// And it is the sources that the bytes depend on.
	other, err := run(t.Context(), options{Out: again, Name: "kmesh.net/kmesh:v1", Version: "v2-test", Platforms: []string{"linux/" + runtime.GOARCH}, Go: "go", Dir: elsewhere})
	if err != nil {
		t.Fatal(err)
	}
	if other == digest {
		t.Error("another version has the same digest")
	}
}

// difference names the first file of two layouts that the other one has not.
func difference(t *testing.T, a, b []byte) string {
	in, _ := files(t, bytes.NewReader(a))
	out, _ := files(t, bytes.NewReader(b))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if !bytes.Equal(in[name], out[name]) {
			return fmt.Sprintf("; %s is in one only:\n%.2000s", name, in[name])
		}
	}
	return ""
}

// copyTree copies what is needed to build: sources and what they embed.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "test" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWrongOptions are refused by name, before anything is built.
func TestWrongOptions(t *testing.T) {
	for _, tt := range []struct {
		o     options
		epoch string
		says  string
	}{
		{options{Name: "kmesh", Platforms: []string{"linux/amd64"}}, "", "-name"},
		{options{Name: "kmesh.net/kmesh:v1", Platforms: []string{"windows/amd64"}}, "", `-platforms: "windows/amd64"`},
		{options{Name: "kmesh.net/kmesh:v1", Platforms: []string{"linux"}}, "", `-platforms: "linux"`},
		{options{Name: "kmesh.net/kmesh:v1", Platforms: []string{""}}, "", `-platforms: ""`},
		{options{Name: "kmesh.net/kmesh:v1", Platforms: []string{"linux/amd64"}}, "yesterday", "SOURCE_DATE_EPOCH"},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tt.epoch)
		tt.o.Go = "/nowhere/go"
		if _, err := run(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v, want an error that says %s", tt.o, err, tt.says)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	if at, err := created("1700000000"); err != nil || at.Unix() != 1700000000 {
		t.Errorf("SOURCE_DATE_EPOCH is read as %v, %v", at, err)
	}
}
