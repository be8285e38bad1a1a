// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// options of one image.
type options struct {
	Out       string
	Name      string
	Version   string
	Platforms []string
	Go        string
	// Dir is the module's root, or a folder in it; "" is the current one.
	Dir string
	// Created is the time that the image says it was made at: a fixed one, for the same bytes.
	Created time.Time
}

// programs are what is in the image, by its main package.
var programs = []string{
	"kmesh/cni/kmesh-cni", "kmesh/install/kmesh-cni-stub", "kmesh/install/kmesh-install",
	"kmesh/helper/kmesh-helper", "kmesh/helper/kmeshctl",
}

// binDir is where they are in it: on the PATH, so that kubectl exec finds them.
const binDir = "usr/local/bin"

func run(ctx context.Context, o options) (v1.Hash, error) {
	ref, err := name.NewTag(o.Name, name.StrictValidation)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("-name: %w: give a name with a tag, such as kmesh.net/kmesh:devel", err)
	}
	if o.Created, err = created(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return v1.Hash{}, err
	}
	tmp, err := os.MkdirTemp("", "kmesh-image-")
	if err != nil {
		return v1.Hash{}, err
	}
	defer os.RemoveAll(tmp)

	images := make([]platformImage, len(o.Platforms))
	for i, p := range o.Platforms {
		if images[i].platform, err = v1.ParsePlatform(p); err != nil || images[i].platform.OS != "linux" || images[i].platform.Architecture == "" {
			return v1.Hash{}, fmt.Errorf("-platforms: %q is none: give linux/ARCHITECTURE, with commas between several", p)
		}
		images[i].bin = filepath.Join(tmp, strconv.Itoa(i))
	}
	for _, image := range images {
		if err := o.compile(ctx, image); err != nil {
			return v1.Hash{}, err
		}
	}
	licence, err := o.licence(ctx)
	if err != nil {
		return v1.Hash{}, err
	}
	g, _ := errgroup.WithContext(ctx)
	for i := range images {
		g.Go(func() (err error) {
			images[i].image, err = o.assemble(images[i], licence)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return v1.Hash{}, err
	}
	index, err := indexOf(images)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := write(index, ref, filepath.Join(tmp, "layout"), o.Out); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

// created reads SOURCE_DATE_EPOCH (https://reproducible-builds.org).
func created(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	s, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds: unset it, or set it to the time of the commit", epoch)
	}
	return time.Unix(s, 0).UTC(), nil
}

// compile builds all programs for a platform. What could differ between two machines is
// said here: settings of the go command in their environments do not count.
func (o options) compile(ctx context.Context, p platformImage) error {
	args := []string{
		"build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X main.version=" + o.Version, "-o", p.bin + "/",
	}
	cmd := exec.CommandContext(ctx, o.Go, append(args, programs...)...)
	cmd.Dir = o.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off",
		"GOOS="+p.platform.OS, "GOARCH="+p.platform.Architecture, "GOAMD64=v1", "GOARM64=v8.0")
	if err := os.MkdirAll(p.bin, 0o755); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build for %s: %w\n%s", p.platform, err, out)
	}
	return nil
}

// licence is the text that goes with the programs.
func (o options) licence(ctx context.Context) ([]byte, error) {
	cmd := exec.CommandContext(ctx, o.Go, "list", "-m", "-f", "{{.Dir}}")
	cmd.Dir = o.Dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m: %w", err)
	}
	return os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "LICENSE"))
}
