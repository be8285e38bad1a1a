// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	core "k8s.io/api/core/v1"

	apiv1 "kmesh/helper/api/v1"
)

// capabilityBits are those that a manifest of ours may name.
var capabilityBits = map[core.Capability]int{
	"BPF": unix.CAP_BPF, "PERFMON": unix.CAP_PERFMON, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BROADCAST": unix.CAP_NET_BROADCAST,
	"DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
}

// checkConfined looks at the processes of Kmesh's pod: the kernel holds each to what the chart says of its container,
// and to no more.
func (b *bed) checkConfined() {
	b.Helper()
	for container, program := range map[string]string{"helper": "kmesh-helper", "install": "kmesh-install"} {
		var bound uint64
		for _, c := range b.container(container).SecurityContext.Capabilities.Add {
			bit, known := capabilityBits[c]
			if !known {
				b.Fatalf("container %s asks for %s, which is not among those that were shown to be needed", container, c)
			}
			bound |= 1 << bit
		}
		pids := b.processesOf(b.kmesh.pod, program)
		if len(pids) != 1 {
			b.Fatalf("%s runs as %v, want one process", program, pids)
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
		if err != nil {
			b.Fatal(err)
		}
		status := map[string]string{}
		for line := range strings.Lines(string(raw)) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.TrimSpace(value)
		}
		for key, want := range map[string]string{
			"CapBnd": fmt.Sprintf("%016x", bound), "CapInh": fmt.Sprintf("%016x", 0), "NoNewPrivs": "1", "Seccomp": "2",
		} {
			if status[key] != want {
				b.Errorf("%s of %s is %s, want %s", key, program, status[key], want)
			}
		}
	}
}

// checkShown compares what kmeshctl says, in a pod as any administrator's, with the kernel.
func (b *bed) checkShown(in []*core.Pod) {
	b.Helper()
	out := b.finish(b.begin("kmeshctl", "helper", "/usr/local/bin/kmeshctl", "pods", "-o", "json"))
	var shown apiv1.PodsResponse
	if err := protojson.Unmarshal([]byte(out), &shown); err != nil {
		b.Fatalf("kmeshctl pods: %v\n%s", err, out)
	}
	byUID := map[string]*apiv1.Pod{}
	for _, p := range shown.Pods {
		byUID[p.Uid] = p
	}
	if len(byUID) != len(in) {
		b.Errorf("kmeshctl shows %d pods, want %d", len(byUID), len(in))
	}
	for _, p := range in {
		k, err := b.kernel(p)
		if err != nil {
			b.Fatal(err)
		}
		s := byUID[string(p.UID)]
		if s.GetState() != "live" || s.GetName() != p.Name || s.GetCgroupInode() != k.cgroup || s.GetIfindex() != k.ifindex {
			b.Errorf("kmeshctl shows pod %s as %v, want it live, on cgroup %d and interface %d", p.Name, s, k.cgroup, k.ifindex)
		}
	}
}
