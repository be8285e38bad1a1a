// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ, 100 on every architecture that Go knows.
const tick = 10 * time.Millisecond

// IstiodCPU is how long istiod has computed since it started: fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)).
func (c *Control) IstiodCPU() (time.Duration, error) {
	if c.istiod == nil {
		return 0, errors.New("istiod does not run")
	}
	path := fmt.Sprintf("/proc/%d/stat", c.istiod.Process.Pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// What is in parentheses, the second field, may have blanks.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s has %d fields", path, len(fields))
	}
	user, userErr := strconv.ParseInt(fields[11], 10, 64)
	system, systemErr := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(userErr, systemErr)
}
