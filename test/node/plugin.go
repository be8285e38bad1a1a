// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// plugins is how libcni starts plugins here: each in a process group of its own, so that an interrupt from the terminal
// does not cut short the very DEL that cleans up after it.
type plugins struct {
	version.PluginDecoder
}

func (*plugins) FindInPath(name string, paths []string) (string, error) {
	return invoke.FindInPath(name, paths)
}

func (*plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	// A plugin tells its error on standard output.
	told := &types.Error{}
	if jerr := json.Unmarshal(stdout.Bytes(), told); jerr == nil && told.Code != 0 {
		return nil, told
	}
	return nil, fmt.Errorf("%w; it printed %q and, as errors, %q", errors.Join(err, context.Cause(ctx)), stdout.Bytes(), stderr.Bytes())
}
