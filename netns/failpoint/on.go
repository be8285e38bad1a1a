// SPDX-License-Identifier: Apache-2.0

//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// passed counts the points of this process.
var passed atomic.Uint64

// plan is what the environment says, as it was at the start.
var plan = strings.Split(os.Getenv(Variable), ",")

// Here is a point. name is a constant, so that nothing is computed for it.
func Here(name string) error {
	number := strconv.FormatUint(passed.Add(1), 10)
	for _, what := range plan {
		if file, ok := strings.CutPrefix(what, "trace="); ok {
			trace(file, name)
			continue
		}
		action, at, ok := strings.Cut(what, "@")
		if !ok || at != number && at != name {
			continue
		}
		switch action {
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // it comes when this thread next enters the kernel, at the latest
		case "unsupported":
			return fmt.Errorf("failpoint %s: %w", name, ebpf.ErrNotSupported)
		}
		for errno := unix.Errno(1); errno < 200; errno++ {
			if unix.ErrnoName(errno) == action {
				return os.NewSyscallError("failpoint "+name, errno)
			}
		}
		panic(Variable + ": no such action: " + what)
	}
	return nil
}

func trace(file, name string) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(name + "\n")
		f.Close()
	}
	if err != nil {
		panic(Variable + ": " + err.Error())
	}
}
