// SPDX-License-Identifier: Apache-2.0

package l7

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"kmesh/bpf"
	"kmesh/test/node"
)

// What must be so when all connections have ended.

// wantIdle fails unless the kernel has forgotten all connections, once they are closed, and no pod has seen a wrong
// checksum.
func (b *bed) wantIdle(t *testing.T) {
	t.Helper()
	b.wantGoodSums(t)
	b.wantForgotten(t)
}

// wantForgotten fails unless the kernel has forgotten all connections.
func (b *bed) wantForgotten(t *testing.T) {
	t.Helper()
	if b.rt == nil {
		return
	}
	eventually(t, "flows that are still open", func() (open []string) {
		for i := range b.rt.Flows() {
			f := &b.rt.Flows()[i]
			if f.State == bpf.FlowSyn || f.State == bpf.FlowOpen || f.State == bpf.FlowClosed && f.Hold != 0 {
				open = append(open, flowLine(f))
			}
		}
		return open
	}, func(open []string) bool { return len(open) == 0 })
	for _, name := range []string{"km_quotas", "km_active"} {
		eventually(t, name+" that is not 0", func() (sum uint64) {
			var key, value []byte
			m := b.rt.Map(name)
			key, value = make([]byte, m.KeySize()), make([]byte, m.ValueSize())
			for it := m.Iterate(); it.Next(&key, &value); {
				for i, c := range value {
					sum += uint64(c) << (8 * (i % 8))
				}
			}
			return sum
		}, func(sum uint64) bool { return sum == 0 })
	}
	b.wantUncounted(t)
}

// wantUncounted fails unless no connection is counted any more.
func (b *bed) wantUncounted(t *testing.T) {
	t.Helper()
	eventually(t, "connections that are still counted", func() map[bpf.ConnectionsKey]uint32 { return b.counted(t) },
		func(open map[bpf.ConnectionsKey]uint32) bool { return len(open) == 0 })
}

// counterOf reads a counter of a pod's network namespace.
func counterOf(p *node.Pod, file, group, name string) (n uint64, err error) {
	err = p.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := range min(len(names), len(values)) {
				if names[0] == group+":" && names[j] == name {
					n, err = strconv.ParseUint(values[j], 10, 64)
					return err
				}
			}
		}
		return fmt.Errorf("no counter %s of %s in %s", name, group, file)
	})
	return n, err
}
