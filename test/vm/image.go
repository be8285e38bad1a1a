// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"kmesh/test/vm/plan"
)

// modules are what a node needs that Debian's kernel does not have built in: pods' interfaces, the bridge, and TC
// programs.
var modules = []string{"veth", "bridge", "sch_ingress", "cls_bpf"}

// inOrder lists the files of modules, each behind those that it depends on.
func inOrder(root string, names []string) ([]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(root, "lib/modules"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []string
	var add func(name string) error
	add = func(name string) error {
		file, ok := files[strings.ReplaceAll(name, "-", "_")]
		if !ok {
			return fmt.Errorf("the kernel's package has no module %s", name)
		}
		if slices.Contains(out, file) {
			return nil
		}
		needs, err := depends(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		out = append(out, file)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// depends reads the modules that one depends on.
func depends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s has no .modinfo", file)
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range bytes.Split(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}

// image is an initial file system: a cpio archive (newc).
type image struct {
	w    *bufio.Writer
	file *os.File
	ino  int
	has  map[string]bool
}

func newImage(to string) (*image, error) {
	f, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	return &image{w: bufio.NewWriter(f), file: f, has: map[string]bool{".": true, "/": true}}, nil
}

// entry writes one entry; errors are kept by the writer until close.
func (i *image) entry(name string, mode uint32, content []byte) {
	i.ino++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		i.ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	pad := func(n int) { _, _ = i.w.Write(make([]byte, -n&3)) }
	_, _ = i.w.WriteString(header + name + "\x00")
	pad(len(header) + len(name) + 1)
	_, _ = i.w.Write(content)
	pad(len(content))
}

// add puts a file there, and the folders above it.
func (i *image) add(name string, mode uint32, content []byte) {
	i.dir(path.Dir(name))
	i.entry(strings.TrimPrefix(name, "/"), 0o100000|mode, content)
}

func (i *image) dir(name string) {
	if i.has[name] {
		return
	}
	i.has[name] = true
	i.dir(path.Dir(name))
	i.entry(strings.TrimPrefix(name, "/"), 0o40755, nil)
}

// copy puts a file of this machine there.
func (i *image) copy(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	i.add(name, 0o755, content)
	return nil
}

func (i *image) close() error {
	i.entry("TRAILER!!!", 0, nil)
	if err := i.w.Flush(); err != nil {
		i.file.Close()
		return err
	}
	return i.file.Close()
}

// makeImage makes the guest's file system: its first process, the programs in a folder, modules, and the plan.
func makeImage(to, guest, bin, kernel string, steps []plan.Step) error {
	ko, err := inOrder(kernel, modules)
	if err != nil {
		return err
	}
	img, err := newImage(to)
	if err != nil {
		return err
	}
	defer img.file.Close()
	p := plan.Plan{Steps: steps}
	for _, file := range ko {
		at := "/modules/" + filepath.Base(file)
		if err := img.copy(at, file); err != nil {
			return err
		}
		p.Modules = append(p.Modules, at)
	}
	if err := img.copy("/init", guest); err != nil {
		return err
	}
	programs, err := os.ReadDir(bin)
	if err != nil {
		return err
	}
	for _, e := range programs {
		if err := img.copy(path.Join(plan.Bin, e.Name()), filepath.Join(bin, e.Name())); err != nil {
			return err
		}
	}
	img.add("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	img.add("/etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))
	img.dir("/root")
	raw, err := json.Marshal(&p)
	if err != nil {
		return err
	}
	img.add(plan.Path, 0o644, raw)
	return img.close()
}
