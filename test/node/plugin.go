// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

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
	call, hooks := &Call{Plugin: filepath.Base(path), Cmd: cmd, Stdin: stdin}, hooksOf(ctx)
	for _, v := range env {
		if verb, ok := strings.CutPrefix(v, "CNI_COMMAND="); ok {
			call.Verb = verb
		}
	}
	call.tell(hooks, func(h Hook) func(*Call) { return h.Before })
	began := time.Now()
	err := cmd.Run()
	call.Took, call.Stdout, call.Err = time.Since(began), stdout.Bytes(), err
	call.tell(hooks, func(h Hook) func(*Call) { return h.After })
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
