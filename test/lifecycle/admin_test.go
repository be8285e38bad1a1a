// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAdminIsNotInEffect: on no thread of a running helper is CAP_SYS_ADMIN in effect,
// at any look, while it stays permitted for the calls that need it. What it is for, the
// tests of upgrades and of UDP show: they run this same helper.
func TestAdminIsNotInEffect(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	b.only(b.client("client"), "v1", 5)
	tasks := fmt.Sprintf("/proc/%d/task", h.Process.Process.Pid)
	const admin = 1 << unix.CAP_SYS_ADMIN
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		threads, err := filepath.Glob(filepath.Join(tasks, "*", "status"))
		if err != nil || len(threads) < 2 {
			t.Fatalf("threads of the helper: %v, %v", threads, err)
		}
		for _, thread := range threads {
			status, err := os.ReadFile(thread)
			if err != nil {
				continue // the thread has ended
			}
			if capabilities(t, status, "CapEff")&admin != 0 {
				t.Fatalf("%s: CAP_SYS_ADMIN is in effect:\n%s", thread, status)
			}
			if capabilities(t, status, "CapPrm")&admin == 0 {
				t.Fatalf("%s: CAP_SYS_ADMIN is not permitted, and cannot be taken back:\n%s", thread, status)
			}
		}
	}
}

// capabilities reads a set from /proc/PID/status.
func capabilities(t *testing.T, status []byte, set string) uint64 {
	t.Helper()
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, set+":"); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no %s in %s", set, status)
	return 0
}
