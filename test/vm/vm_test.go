// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestNewest(t *testing.T) {
	packages := []string{
		"linux-image-6.1.0-9-amd64", "linux-image-6.1.0-57-amd64", "linux-image-6.1.0-47-amd64", "linux-image-6.1.0-58-amd64-dbg",
		"linux-image-6.1.0-58-cloud-amd64", "linux-image-6.1.0-58-rt-amd64", "linux-image-6.1.0-58-amd64-unsigned",
		"linux-image-6.1.0-60-arm64", "linux-image-6.12.9+deb12-amd64", "linux-image-6.12.111+deb12-amd64", "linux-image-6.12-amd64", "linux-image-amd64",
	}
	for kernel, want := range map[string]string{
		"6.1": "linux-image-6.1.0-57-amd64", "6.12": "linux-image-6.12.111+deb12-amd64", "6": "linux-image-6.12.111+deb12-amd64", "5.10": "",
	} {
		got, err := newest(packages, kernel, "amd64")
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", kernel, got, err)
		}
	}
	if got, err := newest(packages, "6.1", "arm64"); got != "linux-image-6.1.0-60-arm64" {
		t.Errorf("for arm64: %q, %v", got, err)
	}
}

func TestOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	failed := errors.New("failed")
	fill := func(err error) func(string) error {
		return func(into string) error {
			return errors.Join(os.WriteFile(filepath.Join(into, "f"), nil, 0o600), err)
		}
	}
	if err := once(dir, fill(failed)); !errors.Is(err, failed) {
		t.Errorf("%v, want %v", err, failed)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("half of it is there")
	}
	if err := once(dir, fill(nil)); err != nil {
		t.Fatal(err)
	}
	if err := once(dir, fill(failed)); err != nil {
		t.Errorf("filled twice: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v: want b alone", left, err)
	}
}

// TestImage reads an image as the kernel does (Documentation/driver-api/early-userspace/buffer-format.rst).
func TestImage(t *testing.T) {
	to := filepath.Join(t.TempDir(), "initrd")
	img, err := newImage(to)
	if err != nil {
		t.Fatal(err)
	}
	img.add("/a/b/c", 0o755, []byte("12345"))
	img.add("/a/d", 0o644, nil)
	img.dir("/a/e")
	if err := img.close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for at := 0; at < len(raw); {
		if !bytes.HasPrefix(raw[at:], []byte("070701")) || len(raw) < at+110 {
			t.Fatalf("no header at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseInt(string(raw[at+6+8*i:at+14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		name := string(raw[at+110 : at+110+field(11)-1])
		begin := (at + 110 + field(11) + 3) &^ 3
		end := begin + field(6)
		got = append(got, fmt.Sprintf("%s %o %s", name, field(1), raw[begin:end]))
		at = (end + 3) &^ 3
	}
	want := []string{"a 40755 ", "a/b 40755 ", "a/b/c 100755 12345", "a/d 100644 ", "a/e 40755 ", "TRAILER!!! 0 "}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestDepends reads this program as a module: it is none.
func TestDepends(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := depends(self); err == nil {
		t.Error("a program was read as a module")
	}
	if _, err := inOrder(t.TempDir(), modules); err == nil {
		t.Error("modules were found in nothing")
	}
}
