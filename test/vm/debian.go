// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernelPackage are Debian's kernels: not those for clouds, for real time, unsigned, or of debug symbols.
var kernelPackage = regexp.MustCompile(`^linux-image-(\d+\.\d+[.0-9]*(?:-\d+|\+deb\d+)?)-(amd64|arm64)$`)

// newest is the newest of the packages that are of a kernel ("6.1") of an architecture.
func newest(packages []string, kernel, arch string) (string, error) {
	var found []string
	for _, p := range packages {
		m := kernelPackage.FindStringSubmatch(p)
		if m != nil && m[2] == arch && (strings.HasPrefix(m[1], kernel+".") && strings.ContainsAny(m[1], "-+")) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("apt knows no kernel %s for %s", kernel, arch)
	}
	return slices.MaxFunc(found, byNumbers), nil
}

var digits = regexp.MustCompile(`\d+`)

// byNumbers compares names by the numbers in them.
func byNumbers(a, b string) int {
	numbers := func(s string) (out []int) {
		for _, d := range digits.FindAllString(s, -1) {
			n, _ := strconv.Atoi(d)
			out = append(out, n)
		}
		return out
	}
	return cmp.Or(slices.Compare(numbers(a), numbers(b)), cmp.Compare(a, b))
}

// debian is where packages come from: apt as it is set up here, with options.
type debian []string

// debianOf is that of an architecture. For another one than this machine's, apt has lists of their own, in dir, and
// looks at nothing that is installed.
func debianOf(ctx context.Context, arch, dir string) (debian, error) {
	own, err := apt(ctx, "", "dpkg", "--print-architecture")
	if err != nil || strings.TrimSpace(string(own)) == arch {
		return nil, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return debian{
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "Dir::State::status=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
	}, nil
}

// run runs one of apt's programs.
func (d debian) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	return apt(ctx, dir, name, append(slices.Clone(d), args...)...)
}

func apt(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

// kernelOf finds the package of a kernel.
func (d debian) kernelOf(ctx context.Context, version, arch string) (name string, err error) {
	err = d.withLists(ctx, func() error {
		out, err := d.run(ctx, "", "apt-cache", "pkgnames", "linux-image-"+version+".")
		if err == nil {
			name, err = newest(strings.Fields(string(out)), version, arch)
		}
		return err
	})
	return name, err
}

// download puts a package into a folder.
func (d debian) download(ctx context.Context, dir, name string) error {
	return d.withLists(ctx, func() error {
		_, err := d.run(ctx, dir, "apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", "download", name)
		return err
	})
}

// downloadAll puts a package into a folder with all that it needs and this machine does not have.
func (d debian) downloadAll(ctx context.Context, dir, name string) error {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return err
	}
	return d.withLists(ctx, func() error {
		_, err := d.run(ctx, dir, "apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", "-o", "Acquire::Retries=3",
			"-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "-o", "Dir::Cache::archives="+dir, "install", name)
		return err
	})
}

// withLists repeats what failed with new package lists: they may be absent (a fresh image), or too old.
func (d debian) withLists(ctx context.Context, f func() error) error {
	err := f()
	if err == nil {
		return nil
	}
	if _, update := d.run(ctx, "", "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "update"); update != nil {
		return errors.Join(err, update)
	}
	return f()
}

// unpack puts what is in the packages of a folder below another; only what matches, when there are patterns.
func unpack(ctx context.Context, debs, to string, patterns ...string) error {
	all, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("no package in %s", debs)
	}
	for _, deb := range all {
		from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
		args := []string{"-x", "-C", to}
		if len(patterns) > 0 {
			args = append(append(args, "--wildcards"), patterns...)
		}
		tar := exec.CommandContext(ctx, "tar", args...)
		var stderr bytes.Buffer
		from.Stderr, tar.Stderr = &stderr, &stderr
		if tar.Stdin, err = from.StdoutPipe(); err != nil {
			return err
		}
		if err := from.Start(); err != nil {
			return err
		}
		err := tar.Run()
		if err := errors.Join(err, from.Wait()); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(deb), err, stderr.Bytes())
		}
	}
	return nil
}

// once makes a folder with a function, all of it or nothing, unless it is there.
func once(dir string, fill func(into string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := fill(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// fetch gets and unpacks a package into a folder of the cache, once. Nothing is installed.
func fetch(ctx context.Context, dir, name string, get func(ctx context.Context, dir, name string) error, patterns ...string) error {
	return once(dir, func(into string) error {
		fmt.Fprintf(os.Stderr, "vm: downloading %s: it is not installed, but unpacked in %s\n", name, dir)
		debs, err := os.MkdirTemp("", "vm-debs-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(debs)
		if err := get(ctx, debs, name); err != nil {
			return err
		}
		return unpack(ctx, debs, into, patterns...)
	})
}
