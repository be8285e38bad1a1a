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

// TestAdminIsNotInEffect: on no thread of a running helper is CAP_SYS_ADMIN in effect but
// for the moments of the calls that need it: of many looks at all threads, hardly any
// meets one. What it is for, the tests of upgrades and of UDP show: they run this same
// helper.
func TestAdminIsNotInEffect(t *testing.T) {
	b := newBed(t)
	b.write("mesh.yaml", b.meshOf(1, 0))
	h := b.start()
	b.only(b.client("client"), "v1", 5)
	tasks := fmt.Sprintf("/proc/%d/task", h.Process.Process.Pid)
	const admin = 1 << unix.CAP_SYS_ADMIN
	looks, met := 0, 0
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
			looks++
			if capabilities(t, status, "CapEff")&admin != 0 {
				met++
			}
			if capabilities(t, status, "CapPrm")&admin == 0 {
				t.Fatalf("%s: CAP_SYS_ADMIN is not permitted, and cannot be taken back:\n%s", thread, status)
			}
		}
	}
	// A thread that had it all the time, of some ten, would be met in a tenth of the looks.
	if t.Logf("%d looks at a thread met it %d times", looks, met); met*50 > looks {
		t.Errorf("CAP_SYS_ADMIN was in effect in %d of %d looks at a thread", met, looks)
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
